"""Join the corpora of all shards into one: byte for byte what one run over the whole input gives.

That holds with deduplication too: shards keep their duplicates and store signatures, and the decision which document
was there first is made here, in document order.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from megatron_chimed.corpus.builder import MADE_BY, find_finished, shard_prefix, work_folder
from megatron_chimed.corpus.indexed_dataset import read_index
from megatron_chimed.corpus.output import Assembler, dataset_name, manifest_path
from megatron_chimed.corpus.part import Documents, Part
from megatron_chimed.corpus.verify import verify_corpus
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json, sha256_file, sha256_json

BLOCK_DOCUMENTS = 10_000


def merge_shards(prefix: Path, progress: bool = True) -> dict:
    """Join PREFIX_shard-00000-of-N ... into PREFIX. The shards stay; delete them when they are no longer needed.

    Every shard is verified first. Returns the manifest. Raises InputError: no shards, one missing, shards made with
    different settings, a damaged one, another run on the same prefix.
    """
    shards = find_shards(prefix)
    manifests = [read_json(manifest_path(shard)) for shard in shards]
    first = manifests[0]
    for shard, content in zip(shards, manifests, strict=True):
        if any(content["parents"][name] != first["parents"][name] for name in ("tokenizer", "settings")):
            raise InputError(f"{shard}: made with another tokenizer or other settings than {shards[0]}; make it again")
    parents = {name: first["parents"][name] for name in ("tokenizer", "settings")}
    inputs = sha256_json([sha256_file(manifest_path(shard)) for shard in shards])
    with work_folder(prefix) as work:
        if present := find_finished(prefix, parents, lambda: inputs):
            return present
        made = Assembler(work / "joined", first["json_keys"], np.dtype(first["dtype"]), first["settings"]["dedup"])
        with contextlib.closing(made) as assembler:
            for shard, content in zip(tqdm(shards, unit="shard", disable=not progress), manifests, strict=True):
                verify_corpus(shard)
                _add_shard(assembler, shard, content)
            if not assembler.num_documents:
                raise InputError(f"{prefix}: the shards hold no documents; check --input and --json-keys")
            return assembler.publish(
                prefix,
                made_by=f"{MADE_BY} --merge",
                parents={**parents, "inputs": inputs},
                vocab_size=first["vocab_size"],
                tokenizer=first["tokenizer"],
                sources=[source for content in manifests for source in content["sources"]],
                settings=first["settings"],
            )


def find_shards(prefix: Path) -> list[Path]:
    """Find the prefixes of all shards of a corpus, in order.

    Raises InputError: none, one missing, or of two divisions.
    """
    pattern = re.compile(re.escape(prefix.name) + r"_shard-(\d{5})-of-(\d{5})\.manifest\.json")
    found = [match for path in prefix.parent.glob("*.manifest.json") if (match := pattern.fullmatch(path.name))]
    counts = sorted({int(match[2]) for match in found})
    if len(counts) != 1:
        state = f"shards of {' and of '.join(map(str, counts))}" if counts else "no finished shard"
        raise InputError(f"{prefix}: {state}; expected the shards of one --num-shards, all of them, and no others")
    shards = [shard_prefix(prefix, counts[0], number) for number in range(counts[0])]
    missing = [number for number, shard in enumerate(shards) if not manifest_path(shard).exists()]
    if missing:
        raise InputError(f"{prefix}: shard {missing[0]} of {counts[0]} is not finished; run it with --shard-index")
    return shards


def _add_shard(assembler: Assembler, shard: Path, content: dict) -> None:
    """Append a verified shard, with its counts and rejected rows."""
    with open(shard.with_name(f"{shard.name}.rejected.jsonl"), "rb") as file:
        shutil.copyfileobj(file, assembler.rejected)
    assembler.num_rows += content["input_rows"]
    assembler.reasons.update(content["dropped"])
    assembler.redacted.update(content["redacted"])
    assembler.cleaned.update(content.get("cleaned", {}))
    for part in _read_blocks(shard, content):
        assembler.add(part)


def _read_blocks(shard: Path, content: dict) -> Iterator[Part]:
    """Read the documents of a shard, some thousand at a time."""
    indices, binaries = {}, {}
    for key in content["json_keys"]:
        dataset = shard.with_name(dataset_name(shard, key))
        indices[key] = read_index(f"{dataset}.idx")
        binaries[key] = open(f"{dataset}.bin", "rb")  # noqa: SIM115 (closed below)
    signed = content["settings"]["dedup"] is not None
    signatures = np.load(shard.with_name(f"{shard.name}.signatures.npy"), mmap_mode="r") if signed else None
    for first in range(0, content["documents"], BLOCK_DOCUMENTS):
        documents = {}
        for key, index in indices.items():
            boundaries = index.boundaries[first : first + BLOCK_DOCUMENTS + 1]
            lengths = index.lengths[boundaries[0] : boundaries[-1]]
            ids = np.fromfile(binaries[key], dtype=index.dtype, count=int(lengths.sum(dtype=np.int64)))
            documents[key] = Documents(ids, lengths, np.diff(boundaries))
        count = len(boundaries) - 1
        block = signatures[first : first + count] if signed else np.zeros((count, 0), np.uint8)
        yield Part(documents, block)
    for binary in binaries.values():
        binary.close()
