"""Draws that follow from a key alone, so that neither order nor batches nor a restart changes them."""

import hashlib
import json


def keyed_draw(*key: str | int) -> int:
    """A whole number below 2^48, drawn by hashing the key: the same on every machine, and exact in any JSON.

    It serves as the seed of a sample, and as the place in a random order.

    >>> keyed_draw(1234, "sample", 1, "toyhom:a.csv:2", 0) == keyed_draw(1234, "sample", 1, "toyhom:a.csv:2", 0)
    True
    """
    text = json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest())
