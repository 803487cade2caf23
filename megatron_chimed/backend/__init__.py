"""Megatron on a CPU, and silence about libraries that are absent on purpose."""
