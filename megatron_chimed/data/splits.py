"""Assign questions to the parts of a split: by the text of the question alone, whatever the order of the rows."""

import hashlib
import math
from collections.abc import Iterable
from fractions import Fraction

from megatron_chimed.errors import InputError

PARTS = ("train", "valid", "test")
EXPECTED = "expected three counts as 3800,100,100, or three shares with a point that sum to 1 as 0.95,0.025,0.025"


def parse_split(text: str) -> tuple[int, int, int] | tuple[Fraction, Fraction, Fraction]:
    """Parse the value of --split: three counts, or three shares. Raises InputError.

    >>> parse_split("3800,100,100"), parse_split("0.5,0.25,0.25")
    ((3800, 100, 100), (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)))
    """
    try:
        counts = "." not in text
        values = tuple((int if counts else Fraction)(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--split {text}: {EXPECTED}") from None
    if len(values) != len(PARTS) or min(values) < 0 or not values[0] or (not counts and sum(values) != 1):
        raise InputError(f"--split {text}: {EXPECTED}")
    return values


def assign_parts(questions: Iterable[bytes], split: tuple, seed: int) -> dict[bytes, str]:
    """Assign each question to a part; one that counts leave over is in none.

    questions: digests, in any order and any number of times; split: of `parse_split`, in questions. The questions are
    put into an order that depends on the seed and on themselves alone, and cut. Raises InputError when there are fewer
    than the counts ask for, or a share comes to no question.
    """
    drawn = sorted(set(questions), key=lambda question: hashlib.sha256(b"%d %b" % (seed, question)).digest())
    counts = split if isinstance(split[0], int) else _counts_of(split, len(drawn))
    if sum(counts) > len(drawn):
        raise InputError(
            f"--split {','.join(map(str, counts))} asks for {sum(counts)} questions, {len(drawn)} are left after "
            "cleaning and deduplication; ask for fewer, or give shares as 0.95,0.025,0.025"
        )
    labels = (part for part, count in zip(PARTS, counts, strict=True) for _ in range(count))
    return dict(zip(drawn, labels, strict=False))


def _counts_of(shares: tuple[Fraction, ...], total: int) -> list[int]:
    """Round shares to whole numbers that sum to `total`: each share rounded down, what is left to the largest
    remainders."""
    exact = [share * total for share in shares]
    counts = [math.floor(value) for value in exact]
    remainders = sorted(range(len(shares)), key=lambda place: counts[place] - exact[place])
    for place in remainders[: total - sum(counts)]:
        counts[place] += 1
    for share, count in zip(shares, counts, strict=True):
        if share and not count:
            raise InputError(f"--split: a share of {float(share):g} of {total} questions is none; give larger shares")
    return counts
