"""A Megatron checkpoint at work without the trainer: samples, log-likelihoods and rewards, at any tensor-parallel size.

The way in is `client.Engine`; the rest runs in its ranks.
"""
