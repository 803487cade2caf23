"""Find duplicate documents, exact and near: the first occurrence in document order is kept.

Both classes share one interface. `signature(text)` is a pure function and does the work, so worker processes can run
it on a copy of the object; `is_duplicate_signature` must see the signatures one after the other in document order.
Near duplicates are found by MinHash and locality-sensitive hashing. Sources: Broder, "On the resemblance and
containment of documents" (1997); the sketch is Dahlgaard, Knudsen, Thorup, "Fast Similarity Sketching" (2017), by
rensa, which visits each shingle a few times and not once for each permutation.
"""

import array
import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache

import numpy as np

from megatron_chimed.text.normalise import normalise, normalised_codes

SHINGLE = 5  # characters; 5-grams of Chinese are about three words long
PLACES = np.array(  # odd, and drawn at random: one for each character of a shingle
    [0xD187F5E7ECE1412F, 0xA2885EFC416CEB91, 0x853E9ED4A766F45D, 0x821D93DB09A1780F, 0xE8193D3C166F289D], np.uint64
)
EXACT, NEAR = "exact duplicate", "near duplicate"  # names of what is found, in reports


class Deduplicator[S](ABC):
    """Deduplicator that remembers the documents that it has seen. S is the type of a signature; it can be pickled."""

    @abstractmethod
    def signature(self, text: str) -> S:
        """Compute what is compared in place of the text. It depends on nothing that was seen before."""

    @abstractmethod
    def is_duplicate_signature(self, signature: S) -> bool:
        """Whether a document with such a signature was seen; if not, it is remembered."""

    def signatures(self, texts: Sequence[str]) -> list[S]:
        """`signature` of many."""
        return [*map(self.signature, texts)]

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
        return _digest(normalise(text))

    def signatures(self, texts: Sequence[str]) -> list[bytes]:
        """The same of many, in a third of the time."""
        codes, bounds = normalised_codes(texts)
        text = codes.tobytes().decode("utf-32-le", "surrogatepass")
        return [_digest(text[start:stop]) for start, stop in itertools.pairwise(bounds.tolist())]

    def is_duplicate_signature(self, signature: bytes) -> bool:
        """Whether such a digest was seen; if not, it is remembered."""
        known = len(self._seen)
        self._seen.add(signature)
        return len(self._seen) == known


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


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
        """Compute the sketch of the text's 5-grams, uint32 [num_perm]."""
        return self.signatures([text])[0]

    def signatures(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same of many, in less time."""
        from rensa import RMinHash

        hashes, bounds = shingle_hashes(*normalised_codes(texts))
        sketch, found = RMinHash.digest_matrix_from_flat_token_hashes, []
        for start, stop in itertools.pairwise(bounds.tolist()):  # of many texts at once it would start threads
            (row,) = sketch(hashes[start:stop], [0, stop - start], self.num_perm, self.seed).to_rows()
            found.append(np.frombuffer(array.array("I", row), np.uint32))
        return found

    def is_duplicate_signature(self, signature: np.ndarray) -> bool:
        """Whether a kept document's estimated similarity reaches the threshold; if none does, this one is kept.

        signature: [permutations], of `signature`.
        """
        return self.are_duplicates(signature[None])[0]

    def are_duplicates(self, signatures: np.ndarray) -> list[bool]:
        """The same of many, [documents, permutations]."""
        return [*map(self._is_duplicate, signatures, self._keys(signatures).tolist())]

    def _is_duplicate(self, signature: np.ndarray, keys: list[int]) -> bool:
        number = len(self._kept)
        if self._table.keys().isdisjoint(keys):  # as nearly always
            self._table.update(dict.fromkeys(keys, number))
        elif self._is_like_one_of(signature, keys):
            return True
        else:
            for key in keys:
                known = self._table.setdefault(key, number)
                if isinstance(known, list):
                    known.append(number)
                elif known != number:
                    self._table[key] = [known, number]
        self._kept.append(signature)
        return False

    def _is_like_one_of(self, signature: np.ndarray, keys: list[int]) -> bool:
        """Whether one of the documents with such a key is similar."""
        found = (self._table.get(key, ()) for key in keys)
        candidates = dict.fromkeys(one for some in found for one in ((some,) if isinstance(some, int) else some))
        return any(np.mean(self._kept[one] == signature) >= self.threshold for one in candidates)

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


def shingle_hashes(codes: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash the 5-grams of texts: code points [characters] and where each text begins [texts + 1] -> uint64 [5-grams],
    in order, and where those of each text begin.

    A text of one to four characters is one shingle. All are computed at once, as sums of code points, each times the
    constant of its place, in arithmetic modulo 2^64.

    >>> shingle_hashes(np.arange(8), np.array([0, 6, 8, 8]))[1].tolist()
    [0, 2, 3, 3]
    """
    sizes = np.diff(bounds)
    room = np.where(sizes, np.maximum(sizes, SHINGLE), 0)
    ends = np.cumsum(room)
    padded = np.zeros(max(SHINGLE, int(room.sum())), dtype=np.uint64)
    padded[np.arange(len(codes)) + np.repeat(ends - room - bounds[:-1], sizes)] = codes
    hashes = np.correlate(padded, PLACES, "valid")
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    inside = np.zeros(len(padded), dtype=bool)
    inside[: int(room.sum())] = True
    for place in range(1, SHINGLE):  # no shingle goes from one text into the next
        inside[ends[room > 0] - place] = False
    counts = np.maximum(room - SHINGLE + 1, 0)
    return hashes[inside[: len(hashes)]], np.concatenate([[0], np.cumsum(counts)])
