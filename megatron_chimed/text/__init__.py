"""Texts to token ids: the template, the tokenizers, their training."""
