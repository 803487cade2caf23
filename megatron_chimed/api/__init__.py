"""Chat completions of any OpenAI-compatible server, each answer kept so that none is paid for twice."""
