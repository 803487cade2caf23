"""Talking to a model: in the terminal, token by token, or through the server of another project."""
