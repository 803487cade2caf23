"""Checkpoints to and from Hugging Face, streamed tensor by tensor, and the proof that both hold one model."""
