"""Normalise a text for comparison."""

import unicodedata


def normalise(text: str) -> str:
    """Normalise a text as it is compared: one width of characters (NFKC), no case, no white space."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
