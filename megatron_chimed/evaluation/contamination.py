"""Test items whose text also stands in training data: common 13-grams.

A set whose questions are written by templates says so ("templated" in its items): grams that more than `FORMULA` of its
items share are formulas, which all data made by the same templates has, and do not count.

The rule is that of `data.decontamination`, the other way round: the grams of the test items are few and kept, and the
training data is read once. An item is contaminated if one of its texts shares 13 tokens in a row with the training
data, or, for a question shorter than that, equals a text of it.
"""

from collections import Counter

import numpy as np

from megatron_chimed.data.decontamination import gram_hashes, read_texts
from megatron_chimed.workers import Bar

FORMULA = 5


def item_texts(item: dict) -> tuple[str, list[str]]:
    """(the question or sentence of an item, its other texts that a model could have learnt by heart)."""
    if "history" in item:
        return item["history"][0], [*item["history"][1:], *filter(None, [item.get("reference")])]
    return item.get("question") or item.get("text") or item["statement"], []


def contaminated(items: list[dict], files: list[str], progress: bool = True) -> list[bool]:
    """Whether each item is contaminated by the files, read by `decontamination.read_texts`. Raises InputError."""
    hashes = []
    for item in items:
        first, others = item_texts(item)
        hashes.append(np.concatenate([gram_hashes(first), *(gram_hashes(text, short=False) for text in others)]))
    hashes = _without_formulas(items, hashes)
    grams = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
    seen = np.zeros(len(grams), bool)
    with Bar(total=len(files), desc="contamination", unit=" files", disable=not progress) as bar:
        for file in files:
            for text in read_texts(file):
                found = gram_hashes(text)
                places = np.searchsorted(grams, found)
                inside = places < len(grams)
                places, found = places[inside], found[inside]
                seen[places[grams[places] == found]] = True
            bar.update()
    return [bool(seen[np.searchsorted(grams, one)].any()) for one in hashes]


def _without_formulas(items: list[dict], hashes: list[np.ndarray]) -> list[np.ndarray]:
    """The grams of each item, of templated ones without those that more than `FORMULA` of them share."""
    counts = Counter(
        gram
        for item, one in zip(items, hashes, strict=True)
        if item.get("templated")
        for gram in np.unique(one).tolist()
    )
    formulas = np.array(sorted(gram for gram, count in counts.items() if count > FORMULA), np.uint64)
    return [
        one[~np.isin(one, formulas)] if item.get("templated") else one for item, one in zip(items, hashes, strict=True)
    ]
