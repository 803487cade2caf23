"""Samples for Megatron's trainer, from corpora and from packed rows."""
