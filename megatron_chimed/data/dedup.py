"""Find duplicate documents, exact and near: the first occurrence in document order is kept.

Both classes share one interface. `signature(text)` is a pure function and does the work, so worker processes can run
it on a copy of the object; `is_duplicate_signature` must see the signatures one after the other in document order.
Near duplicates are found by MinHash and locality-sensitive hashing. Sources: Broder, "On the resemblance and
containment of documents" (1997); the sketch is Dahlgaard, Knudsen, Thorup, "Fast Similarity Sketching" (2017), by
rensa, which visits each shingle a few times and not once for each permutation.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache

import numpy as np

from megatron_chimed.text.normalise import normalise, normalised_codes

SHINGLE = 5  # characters; 5-grams of Chinese are about three words long
EXACT, NEAR = "exact duplicate", "near duplicate"  # names of what is found, in reports


class Deduplicator[S](ABC):
    """Deduplicator that remembers the documents that it has seen. S is the type of a signature; it can be pickled."""

    @abstractmethod
    def signature(self, text: str) -> S:
        """Compute what is compared in place of the text. It depends on nothing that was seen before."""

    @abstractmethod
    def is_duplicate_signature(self, signature: S) -> bool:
        """Whether a document with such a signature was seen; if not, it is remembered."""

    def is_duplicate(self, text: str) -> bool:
        """Whether the text duplicates one seen before; if not, it is remembered."""
        return self.is_duplicate_signature(self.signature(text))

    def are_duplicates(self, signatures: Sequence[S]) -> list[bool]:
        """The same of many signatures, one after the other."""
        return [*map(self.is_duplicate_signature, signatures)]


class ExactDeduplicator(Deduplicator[bytes]):
    """Deduplicator of texts that are equal after `normalise`.

    It keeps 16 bytes per text (some 100 with Python's set) whatever their length.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def signature(self, text: str) -> bytes:
        """Compute a digest of 16 bytes."""
        return hashlib.blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def is_duplicate_signature(self, signature: bytes) -> bool:
        """Whether such a digest was seen; if not, it is remembered."""
        known = len(self._seen)
        self._seen.add(signature)
        return len(self._seen) == known


@cache
def _index_shape(threshold: float, num_perm: int) -> tuple[int, int]:
    """Choose (bands, hashes in a band) of the index, which proposes a pair of similarity s with probability
    1 - (1 - s^hashes)^bands: the shape with the least error on either side of the threshold.

    Each candidate is then checked: so missing one weighs nine times as much as a false proposal.
    """
    steps = 1000
    similarity = (np.arange(steps) + 0.5) / steps
    duplicate = similarity >= threshold

    def error(shape: tuple[int, int]) -> float:
        bands, width = shape
        proposed = 1 - (1 - similarity**width) ** bands
        return float(np.where(duplicate, 0.9 * (1 - proposed), 0.1 * proposed).sum())

    shapes = ((bands, width) for bands in range(1, num_perm + 1) for width in range(1, num_perm // bands + 1))
    return min(shapes, key=error)


class NearDeduplicator(Deduplicator[np.ndarray]):
    """Deduplicator of texts whose sets of 5-grams have an estimated Jaccard similarity of `threshold` or more.

    A text is compared with those that were kept, not with those that were found to be duplicates. The estimate from
    `num_perm` hashes has a standard error of at most 0.5 / sqrt(num_perm), 0.035 at the threshold of 0.8. The same
    seed gives the same decisions on every machine.
    """

    def __init__(self, threshold: float = 0.8, num_perm: int = 128, seed: int = 1) -> None:
        self.threshold, self.num_perm, self.seed = threshold, num_perm, seed
        self._bands, self._width = _index_shape(threshold, num_perm)
        # One table for all bands, from 64 bits to one document or several: half of the memory of a table each.
        self._table: dict[int, int | list[int]] = {}
        self._kept: list[np.ndarray] = []

    def __getstate__(self) -> dict:
        """A copy sent to a worker process computes signatures: it takes along the settings, not what was seen."""
        return {"threshold": self.threshold, "num_perm": self.num_perm, "seed": self.seed}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def signature(self, text: str) -> np.ndarray:
        """Compute the MinHash of the text's 5-grams, uint32 [num_perm]."""
        from rensa import RMinHash

        hashes = shingle_hashes(normalised_codes(text))
        made = RMinHash.digest_matrix_from_flat_token_hashes(hashes, [0, len(hashes)], self.num_perm, self.seed)
        return np.array(made.to_rows()[0], np.uint32)

    def is_duplicate_signature(self, signature: np.ndarray) -> bool:
        """Whether a kept document's estimated similarity reaches the threshold; if none does, this one is kept.

        signature: [permutations], of `signature`.
        """
        return self.are_duplicates(signature[None])[0]

    def are_duplicates(self, signatures: np.ndarray) -> list[bool]:
        """The same of many, [documents, permutations]."""
        return [*map(self._is_duplicate, signatures, self._keys(signatures).tolist())]

    def _is_duplicate(self, signature: np.ndarray, keys: list[int]) -> bool:
        checked: set[int] = set()
        for key in keys:
            found = self._table.get(key, ())
            for candidate in (found,) if isinstance(found, int) else found:
                if candidate not in checked:
                    checked.add(candidate)
                    if np.mean(self._kept[candidate] == signature) >= self.threshold:
                        return True
        number = len(self._kept)
        for key in keys:
            known = self._table.setdefault(key, number)
            if isinstance(known, list):
                known.append(number)
            elif known != number:
                self._table[key] = [known, number]
        self._kept.append(signature)
        return False

    def _keys(self, signatures: np.ndarray) -> np.ndarray:
        """Hash each band of signatures [documents, num_perm] to 64 bits, uint64 [documents, bands]; two equal keys
        propose a candidate, which is then checked."""
        bands = signatures[:, : self._bands * self._width].reshape(-1, self._bands, self._width).astype(np.uint64)
        bands[:, :, 0] += np.arange(self._bands, dtype=np.uint64) << np.uint64(32)  # the place of a band counts
        keys = np.zeros(bands.shape[:2], dtype=np.uint64)
        for place in range(self._width):
            keys = (keys + bands[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        return keys


def make_deduplicators(kind: str) -> dict[str, Deduplicator]:
    """Make deduplicators by the name of what they find, the cheap one first. kind: "none", "exact" or "near" (both)."""
    found: dict[str, Deduplicator] = {} if kind == "none" else {EXACT: ExactDeduplicator()}
    return found | ({NEAR: NearDeduplicator()} if kind == "near" else {})


def shingle_hashes(codes: np.ndarray) -> np.ndarray:
    """Hash the 5-grams of a text's code points [characters] in order: uint64 [characters - 4].

    A text of one to four characters is one shingle. All are computed at once, as polynomials of the code points
    in arithmetic modulo 2^64.

    >>> [len(shingle_hashes(np.arange(characters))) for characters in (6, 2, 0)]
    [2, 1, 0]
    """
    if not len(codes):
        return np.empty(0, dtype=np.uint64)
    hashes = np.zeros(max(1, len(codes) - SHINGLE + 1), dtype=np.uint64)
    padded = np.zeros(len(hashes) + SHINGLE - 1, dtype=np.uint64)
    padded[: len(codes)] = codes
    for offset in range(SHINGLE):
        hashes += padded[offset : offset + len(hashes)]
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)  # without it, texts that differ in a few code points collide too often
    return hashes
