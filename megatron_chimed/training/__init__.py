"""Megatron's trainer with our stages: settings, what is mended upstream, saves, faults, the record of a run."""
