"""Rejection sampling in rounds: sample, score, select, fine-tune, measure, beside a random control."""
