"""Verify that a corpus is whole and unaltered: what its manifest and index say is computed again from the bytes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from megatron_chimed.corpus.indexed_dataset import read_index
from megatron_chimed.corpus.manifest import find_corpus_manifest
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import manifest, read_json, sha256_file, write_json

BLOCK_TOKENS = 1 << 22
FIELDS = {"bytes": dict, "sha256": dict, "documents": int, "tokens": int, "vocab_size": int, "dtype": str}


class DatasetFacts(NamedTuple):
    """Facts of a .bin/.idx pair; max_id is -1 where there are no tokens."""

    documents: int
    tokens: int
    max_id: int
    dtype: str


def verify_corpus(prefix: str | Path, progress: bool = False) -> dict:
    """Check a corpus against its manifest, file by file, and its index against its tokens. Returns the manifest.

    prefix: the corpus's (PREFIX, with PREFIX.manifest.json) or one dataset's (PREFIX_text_document).
    Raises InputError at the first thing that is not as it should be: a missing or altered file, a wrong size, hash,
    index or count, an id outside the vocabulary.
    """
    path, content = find_manifest(prefix)
    names = sorted(content["bytes"])
    for name in tqdm(names, unit="file", disable=not progress):
        file = path.parent / name
        if not file.is_file():
            raise InputError(f"{file}: is missing, but {path.name} lists it; build the corpus again")
        size, digest = file.stat().st_size, content["sha256"].get(name)
        if size != content["bytes"][name]:
            raise InputError(f"{file}: {size} bytes, {path.name} states {content['bytes'][name]}; build it again")
        if sha256_file(file) != digest:
            raise InputError(f"{file}: altered (its SHA-256 is not the one in {path.name}); build the corpus again")
    datasets = [path.parent / name.removesuffix(".bin") for name in names if name.endswith(".bin")]
    tokens = 0
    for dataset in datasets:
        facts = check_dataset(dataset, content["vocab_size"])
        if (facts.documents, facts.dtype) != (content["documents"], content["dtype"]):
            raise InputError(
                f"{dataset}.idx: {facts.documents} documents of {facts.dtype}, {path.name} states "
                f"{content['documents']} of {content['dtype']}; build the corpus again"
            )
        tokens += facts.tokens
    if not datasets or tokens != content["tokens"]:
        raise InputError(f"{path}: states {content['tokens']} tokens, the files hold {tokens}; build the corpus again")
    return content


def find_manifest(prefix: str | Path) -> tuple[Path, dict]:
    """Find the manifest of a corpus by the corpus's or a dataset's prefix.

    Raises InputError: none, or not a corpus's.
    """
    path = Path(f"{prefix}.manifest.json")
    path, content = (path, read_json(path)) if path.exists() else find_corpus_manifest(prefix)
    for field, kind in FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(field), kind):
            raise InputError(f"{path}: field {field!r} is missing or wrong; expected the manifest of a corpus")
    return path, content


def check_dataset(dataset_prefix: str | Path, vocab_size: int | None = None) -> DatasetFacts:
    """Check that .idx and .bin agree and, given a vocabulary size, that 0 <= id < vocab_size for every id.

    Raises InputError; see also `read_index`.
    """
    binary = Path(f"{dataset_prefix}.bin")
    index = read_index(f"{dataset_prefix}.idx")
    tokens, size = int(index.lengths.sum(dtype=np.int64)), binary.stat().st_size
    if tokens * index.dtype.itemsize != size:
        raise InputError(f"{binary}: {size} bytes, its index asks for {tokens * index.dtype.itemsize}; build it again")
    largest = -1
    with open(binary, "rb") as file:
        for first in range(0, tokens, BLOCK_TOKENS):
            ids = np.fromfile(file, dtype=index.dtype, count=BLOCK_TOKENS)
            largest = max(largest, int(ids.max()))
            wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size if vocab_size is not None else False))
            if wrong.size:
                raise InputError(
                    f"{binary}: token {first + wrong[0]} has id {ids[wrong[0]]}, outside the vocabulary "
                    f"of {vocab_size}; build the corpus again with the model's tokenizer"
                )
    return DatasetFacts(len(index.boundaries) - 1, tokens, largest, index.dtype.name)


def adopt_dataset(dataset_prefix: str | Path, vocab_size: int | None = None) -> Path:
    """Write the manifest of a dataset that another tool has built, after the checks that are possible without one.

    vocab_size: of its tokenizer; where it is not known, the largest id plus one. Returns the manifest's path.
    Raises InputError if the dataset is damaged, or has a manifest already.
    """
    dataset_prefix = Path(dataset_prefix)
    names = [f"{dataset_prefix.name}.bin", f"{dataset_prefix.name}.idx"]
    paths = [dataset_prefix.parent / name for name in names]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; give the prefix of a dataset, without .bin or .idx")
    try:
        known, _ = find_corpus_manifest(dataset_prefix)
    except InputError:
        facts = check_dataset(dataset_prefix, vocab_size)
    else:
        raise InputError(f"{known}: lists {names[0]} already; delete it if another tool has written the dataset anew")
    hashes = {name: sha256_file(path) for name, path in zip(names, paths, strict=True)}
    output = Path(f"{dataset_prefix}.manifest.json")
    content = manifest(
        made_by="tools/verify_corpus.py --write-manifest",
        rows=facts.documents,
        sha256=hashes,
        parents={},
        dropped={},
        bytes={name: path.stat().st_size for name, path in zip(names, paths, strict=True)},
        documents=facts.documents,
        tokens=facts.tokens,
        vocab_size=facts.max_id + 1 if vocab_size is None else vocab_size,
        dtype=facts.dtype,
    )
    write_json(output, content)
    return output
