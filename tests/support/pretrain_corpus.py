"""Corpora for tests, whose every token is its own number, and the samples that a dataset should draw from them."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_chimed.datasets import rows
from megatron_chimed.datasets.pretrain import PretrainDatasetConfig, build_pretrain_datasets


def write_corpus(folder, name, documents, first_token=0):
    """Write a corpus of documents given as lists of sequence lengths; its tokens are first_token, first_token + 1, ...

    Returns (prefix, documents as lists of tokens).
    """
    prefix = Path(folder) / f"{name}_text_document"
    builder, token, texts = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32), first_token, []
    for lengths in documents:
        for length in lengths:
            builder.add_item(torch.arange(token, token + length))
            token += length
        builder.end_document()
        texts.append(list(range(token - sum(lengths), token)))
    builder.finalize(f"{prefix}.idx")
    files = {path.name: path for path in (Path(f"{prefix}.bin"), Path(f"{prefix}.idx"))}
    manifest = {
        "bytes": {file: path.stat().st_size for file, path in files.items()},
        "sha256": {file: hashlib.sha256(path.read_bytes()).hexdigest() for file, path in files.items()},
    }
    Path(folder, f"{name}.manifest.json").write_text(json.dumps(manifest))
    return str(prefix), texts


def config_of(prefixes, weights=None, length=8, split="1,0,0", seed=7, **options):
    blend = ([prefixes] if isinstance(prefixes, str) else prefixes, weights)
    return PretrainDatasetConfig(random_seed=seed, sequence_length=length, blend=blend, split=split, **options)


def train_set(config, num_samples):
    return build_pretrain_datasets(config, (num_samples, 0, 0))[0]


def contents(dataset):
    """The samples as comparable tuples of lists."""
    return [tuple((name, np.asarray(values).tolist()) for name, values in sample.items()) for sample in dataset]


def inputs(dataset):
    return [sample["tokens"].tolist() for sample in dataset]


def twin(texts, length, seed, num_samples, mask=True, isolate=False):
    """(tokens, labels, loss_mask, position_ids) of each sample, from the stream written out as a list."""
    num_tokens, stream, order = sum(map(len, texts)), [], []
    for epoch in itertools.count():
        for document in rows.permutation(len(texts), seed, epoch, rows.DOCUMENT_ORDER):
            text = texts[document]
            stream += [(token, place, place == len(text) - 1) for place, token in enumerate(text)]
        starting = [i for i in range(len(stream)) if epoch * num_tokens <= i * length < (epoch + 1) * num_tokens]
        order += [starting[i] for i in rows.permutation(len(starting), seed, epoch, rows.SAMPLE_ORDER)]
        if len(order) >= num_samples and len(stream) > (max(order[:num_samples]) + 1) * length:
            break
    samples = []
    for start in (i * length for i in order[:num_samples]):
        row, positions = stream[start : start + length + 1], []
        for t in range(length):
            positions.append(positions[-1] + 1 if t and (row[t][1] or not isolate) else 0)
        loss_mask = [0.0 if mask and last else 1.0 for _, _, last in row[:-1]]
        samples.append(([r[0] for r in row[:-1]], [r[0] for r in row[1:]], loss_mask, positions))
    return samples
