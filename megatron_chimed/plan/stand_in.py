"""Stand in, in a dry run, for a tokenizer or a corpus that is not there yet."""

import json
from pathlib import Path

import numpy as np

from megatron_chimed.config import RunConfig
from megatron_chimed.corpus.indexed_dataset import token_dtype, write_index
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import sha256_file

DOCUMENTS, LENGTH = 64, 256
DATA = ("train-data-path", "valid-data-path", "test-data-path", "data-path", "split")


def missing_tokenizer(settings: RunConfig) -> str:
    """Return the path of a tokenizer that is not there, or an empty text; a name may be of one that is published."""
    given, kind = settings.megatron.get("tokenizer-model"), settings.megatron.get("tokenizer-type")
    name = str(given.value) if given else ""
    is_path = name.count("/") > 1 or name.endswith(".model")
    return name if is_path and not Path(name).exists() and not (kind and kind.value == "NullTokenizer") else ""


def tokenizer_note(settings: RunConfig) -> str:
    """Return what to say of Megatron's NullTokenizer in the place of one that is not there, or an empty text.

    It needs the size of the vocabulary alone. A tokenizer of the command line is wanted, and not replaced.
    """
    size, *named = (settings.megatron.get(key) for key in ("vocab-size", "tokenizer-model", "tokenizer-type"))
    name = missing_tokenizer(settings)
    if not size or not name or any(one and one.where.startswith("command line") for one in named):
        return ""
    return f"tokenizer: {name} is not there; NullTokenizer with the vocab-size that is given, {int(size.value):,}"


def write_corpus(folder: Path, stage: str, vocab: int) -> str:
    """Write a corpus of ids from 0 on to a folder and return its prefix. Raises InputError but for pretrain."""
    if stage != "pretrain":
        raise InputError(f"--skip-data: the stage {stage} reads packed rows, which must be there; leave it out")
    prefix = folder / "stand_in_text_document"
    ids = np.arange(DOCUMENTS * LENGTH) % vocab
    Path(f"{prefix}.bin").write_bytes(ids.astype(token_dtype(vocab)).tobytes())
    with open(f"{prefix}.idx", "wb") as file:
        write_index(file, token_dtype(vocab), np.full(DOCUMENTS, LENGTH), np.arange(DOCUMENTS + 1))
    files = [Path(f"{prefix}.{end}") for end in ("bin", "idx")]
    facts = {"bytes": {file.name: file.stat().st_size for file in files}, "vocab_size": vocab}
    facts["sha256"] = {file.name: sha256_file(file) for file in files}
    (folder / "stand_in.manifest.json").write_text(json.dumps(facts))
    return str(prefix)
