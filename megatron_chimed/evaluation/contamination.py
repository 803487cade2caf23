"""Test items whose text also stands in training data: common 13-grams.

The rule is that of `data.decontamination`, the other way round: the grams of the test items are few and kept, and the
training data is read once. An item is contaminated if one of its texts shares 13 tokens in a row with the training
data, or, for a question shorter than that, equals a text of it.
"""

import numpy as np

from megatron_chimed.data.decontamination import gram_hashes, read_texts
from megatron_chimed.workers import Bar


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
