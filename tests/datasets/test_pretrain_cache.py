"""Pre-training datasets and their files: the cache, what is refused at start-up, several processes."""

import dataclasses
import gc
import json
import multiprocessing
import pickle

import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from support.pretrain_corpus import config_of, contents, inputs, train_set, twin, write_corpus

from megatron_chimed.datasets import blend, pretrain, rows
from megatron_chimed.datasets.pretrain import PretrainDataset, PretrainDatasetConfig, build_pretrain_datasets
from megatron_chimed.errors import InputError


def test_a_rebuilt_corpus_is_not_read_with_the_old_cache(tmp_path):
    options = {"path_to_cache": str(tmp_path / "cache"), "min_cached_entries": 0, "length": 5}
    prefix, old_texts = write_corpus(tmp_path, "a", [[5], [9], [6]])
    assert [row[0] for row in twin(old_texts, 5, 7, 8)] == inputs(train_set(config_of(prefix, **options), 8))
    prefix, texts = write_corpus(tmp_path, "a", [[9], [5], [6]])  # files of the same size, other documents
    assert [row[0] for row in twin(texts, 5, 7, 8)] == inputs(train_set(config_of(prefix, **options), 8))
    assert [row[2] for row in twin(texts, 5, 7, 8)] != [row[2] for row in twin(old_texts, 5, 7, 8)]


def test_the_cache_is_used_and_a_damaged_one_is_built_again(tmp_path, monkeypatch):
    prefixes = [write_corpus(tmp_path, name, [[5], [9], [6]])[0] for name in "ab"]
    config = config_of(prefixes, [2.0, 1.0], path_to_cache=str(tmp_path / "cache"), min_cached_entries=0)
    expected = contents(train_set(config, 6))
    with monkeypatch.context() as patch:
        patch.setattr(rows, "build_epoch", lambda *_: pytest.fail("an epoch is built though it is cached"))
        patch.setattr(blend.helpers, "build_blending_indices", lambda *_: pytest.fail("the blend is built"))
        assert contents(train_set(config, 6)) == expected
    files = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    assert len(files) == 1 + 3, "one blend; three epochs, and those of b, which has the same content, are the same"
    for path, content in files.items():
        flipped = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(0, len(content), 7)]
        for damaged in [b"", content[:60], content[:-8], content[:-1], *flipped]:
            path.write_bytes(damaged)
            assert contents(train_set(config, 6)) == expected
        assert path.read_bytes() == content


def test_the_cache_key_knows_all_that_changes_an_epoch(tmp_path):
    a, _ = write_corpus(tmp_path, "a", [[5], [9], [6], [1]])
    b, _ = write_corpus(tmp_path, "b", [[5], [9], [7], [1]])
    datasets = [
        *build_pretrain_datasets(config_of(a, split="2,1,1"), (1, 1, 1)),
        train_set(config_of(b, split="2,1,1"), 1),
        train_set(config_of(a, split="2,1,1", seed=8), 1),
        train_set(config_of(a, split="2,1,1", length=9), 1),
    ]
    keys = [json.dumps(dataset._cache_key(epoch)) for dataset in datasets for epoch in (0, 1)]
    assert len(set(keys)) == 2 * len(datasets)
    assert train_set(config_of(a, split="2,1,1"), 9)._cache_key(0) == datasets[0]._cache_key(0)


def test_corpora_that_fail_the_quick_check_are_refused_together_and_nothing_is_written(tmp_path):
    good, _ = write_corpus(tmp_path, "good", [[5]])
    short, _ = write_corpus(tmp_path, "short", [[5]])
    with open(f"{short}.bin", "r+b") as file:
        file.truncate(16)
    unlisted = write_corpus(tmp_path, "unlisted", [[5]])[0]
    (tmp_path / "unlisted.manifest.json").unlink()
    empty, _ = write_corpus(tmp_path, "empty", [[0], []])
    before = sorted(tmp_path.iterdir())
    config = config_of([good, short, unlisted, empty], [1.0, 1.0, 1.0, -1.0], path_to_cache=str(tmp_path / "cache"))
    with pytest.raises(InputError) as error:
        train_set(dataclasses.replace(config, min_cached_entries=0), 3)
    for part in ["short_text_document.bin: has 16 bytes", "no manifest lists unlisted", "holds no tokens", "-1.0"]:
        assert part in str(error.value)
    assert "\n" not in str(error.value) and good not in str(error.value) and sorted(tmp_path.iterdir()) == before
    with pytest.raises(InputError, match="has 16 bytes"):
        BlendedMegatronDatasetBuilder(PretrainDataset, [3, 0, 0], lambda: True, config_of(short)).build()


def test_a_split_without_tokens_is_refused_only_if_it_is_read(tmp_path):
    prefix, _ = write_corpus(tmp_path, "a", [[5], [5]])
    config = config_of(prefix, split="98,1,1")
    train, valid, test = build_pretrain_datasets(config, (3, 0, 0))
    assert len(train) == 3 and valid is None and test is None
    with pytest.raises(InputError, match=r"valid split \(documents 2 to 2"):
        build_pretrain_datasets(config, (3, 1, 0))
    with pytest.raises(InputError, match="valid split"):
        BlendedMegatronDatasetBuilder(PretrainDataset, [3, 1, 0], lambda: True, config).build()
    with pytest.raises(InputError, match="no corpus given"):
        train_set(PretrainDatasetConfig(random_seed=1, sequence_length=4), 1)


def test_samples_outlive_their_dataset_and_datasets_a_pickle(tmp_path):
    prefix, texts = write_corpus(tmp_path, "a", [[50]])
    cache = {"path_to_cache": str(tmp_path / "cache"), "min_cached_entries": 0}
    dataset = pickle.loads(pickle.dumps(train_set(config_of(prefix, length=50, **cache), 1)))
    sample = dataset[0]
    del dataset
    gc.collect()
    assert sample["tokens"].tolist() == texts[0]


def test_a_long_run_keeps_few_epochs_in_memory(tmp_path):
    prefix, _ = write_corpus(tmp_path, "a", [[3], [4]])
    dataset = train_set(config_of(prefix, length=20), 30)  # a row crosses three epochs
    assert len(inputs(dataset)) == 30
    assert len(dataset._epochs) <= pretrain.MAX_EPOCHS_IN_MEMORY


def build_on_rank(rank, folder, good, bad):
    """One of two ranks: the rows that it reads, then what it says of a blend that only rank 1 cannot read."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for prefix in [good, bad if rank else good]:
        config = config_of([prefix, good], path_to_cache=f"{folder}/cache", min_cached_entries=0)
        try:
            found.append(inputs(train_set(config, 9)))
        except InputError as error:
            found.append(str(error))
    torch.distributed.destroy_process_group()
    return found


def test_two_ranks_read_the_same_and_refuse_together(tmp_path):
    good, _ = write_corpus(tmp_path, "good", [[20], [13]])
    jobs = [(rank, str(tmp_path), good, str(tmp_path / "missing")) for rank in (0, 1)]
    with multiprocessing.get_context("fork").Pool(2) as pool:  # spawned ranks would import torch for ten seconds
        ranks = pool.starmap_async(build_on_rank, jobs, chunksize=1).get(timeout=60)
    (rows_0, refusal_0), (rows_1, refusal_1) = ranks
    assert rows_0 == rows_1 and len(rows_0) >= 9
    assert "no manifest" in refusal_1 and "another rank" in refusal_0
