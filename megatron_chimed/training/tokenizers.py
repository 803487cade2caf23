"""Data that were tokenized with another tokenizer than the model's are refused before anything is trained on them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_chimed.config import RunConfig
from megatron_chimed.corpus.manifest import find_corpus_manifest
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json
from megatron_chimed.packing.packed_rows import MANIFEST
from megatron_chimed.text.comparison import difference
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_folder import fingerprint_of

PATHS = ("data-path", "train-data-path", "valid-data-path", "test-data-path")


def check_tokenizers(settings: RunConfig) -> None:
    """Raise InputError if a corpus or packed folder was made with another tokenizer than --tokenizer-model.

    Two files of one tokenizer are one: where the hashes differ, the pieces and the ids of probe texts are compared.
    ``allow_other_tokenizer: true`` in ``chimed:``, or --allow-other-tokenizer, leaves the check out, and so does a
    model whose tokenizer is not on this machine. What else is wrong with the data the stage says.
    """
    allowed = settings.chimed.get("allow_other_tokenizer")
    given, kind = settings.megatron.get("tokenizer-model"), settings.megatron.get("tokenizer-type")
    if (allowed and allowed.value is True) or not given or (kind and kind.value == "NullTokenizer"):
        return
    model = str(given.value)
    if not Path(model).exists():
        return
    ours, seen = fingerprint_of(model), set()
    for place in _places(settings):
        made = _tokenizer_of(place)
        if made is None or made["fingerprint"] == ours or made["fingerprint"] in seen:
            continue
        seen.add(made["fingerprint"])
        if found := _difference(model, made):
            theirs = made.get("path") or "one without a name"
            raise InputError(
                f"{place}: tokenized with another tokenizer ({theirs}) than the model's ({model}): {found}; "
                "tokenize it again with the model's, or give --allow-other-tokenizer"
            )


def _places(settings: RunConfig) -> Iterator[str]:
    """The prefixes and folders of the data, without their weights."""
    for key in PATHS:
        value = settings.megatron[key].value if key in settings.megatron else []
        for place in value if isinstance(value, list) else [value]:
            if not str(place).replace(".", "", 1).isdecimal():
                yield str(place)
    for block in ("valid", "replay"):
        value = settings.chimed[block].value if block in settings.chimed else {}
        for key, place in value.items() if isinstance(value, dict) else ():
            if block == "valid" or key == "data":
                yield str(place.value)


def _tokenizer_of(place: str) -> dict[str, Any] | None:
    """{"path", "fingerprint"} of the tokenizer that made packed rows or a corpus; None where that is not known."""
    try:
        folder = Path(place)
        content = read_json(folder / MANIFEST) if folder.is_dir() else find_corpus_manifest(place)[1]
        made = content.get("tokenizer")
    except (InputError, AttributeError):
        return None
    return made if isinstance(made, dict) and made.get("fingerprint") else None


def _difference(model: str, made: dict[str, Any]) -> str | None:
    """What differs between the model's tokenizer and another whose hash is another one; None if nothing does."""
    path = made.get("path")
    if not path or not Path(path).exists() or fingerprint_of(path) != made["fingerprint"]:
        return "its hash is another one, and its files are no longer there to compare"
    return difference(load_tokenizer(model), load_tokenizer(path))
