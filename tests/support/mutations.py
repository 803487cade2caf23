"""Ways in which the bytes of any file go wrong, for tests on hostile input."""

import os
import random
from collections.abc import Sequence

THOROUGH = "THOROUGH" in os.environ
"""As many mutants and kills as an acceptance asks for, and not what `make test` has time for."""

BYTE_KINDS = ["cut", "flip", "insert", "delete", "copy"]


def mutate_bytes(draw: random.Random, kind: str, content: bytes, tokens: Sequence[bytes]) -> bytes:
    """The content with one of BYTE_KINDS done to it; tokens: what "insert" puts in."""
    place, other = draw.randrange(len(content) + 1), draw.randrange(len(content) + 1)
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        mutated = bytearray(content)
        for _ in range(draw.choice([1, 3, 50])):
            mutated[draw.randrange(len(mutated))] ^= 1 << draw.randrange(8)
        return bytes(mutated)
    if kind == "insert":
        return content[:place] + draw.choice(tokens) + content[place:]
    if kind == "delete":
        return content[: min(place, other)] + content[max(place, other) :]
    assert kind == "copy", kind
    return content[:place] + content[: other // 2] + content[place:]
