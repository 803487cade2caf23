"""The full training regime of ChiMed-GPT (arXiv 2311.06025) as an extension of Megatron-LM."""

__version__ = "0.1.0"
