"""Evaluation: tasks by lm-eval on models by any engine, figures with intervals, reports."""
