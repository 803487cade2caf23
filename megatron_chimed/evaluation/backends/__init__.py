"""Models as lm-eval calls them."""
