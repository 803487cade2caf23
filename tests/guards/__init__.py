"""Checkers behind test_guards.py: each takes text or files and returns its findings as lines ``path:line: reason``."""
