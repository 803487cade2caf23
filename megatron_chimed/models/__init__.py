"""GPT and reward model with Megatron's layers, without Transformer Engine."""
