"""What tests share: small inputs and models, jobs with real ranks, stand-ins for servers."""
