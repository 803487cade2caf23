"""Pre-training samples: their order, their targets and their blend, against a twin that concatenates lists."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from support.pretrain_corpus import config_of, contents, inputs, train_set, twin, write_corpus

from megatron_chimed.datasets.pretrain import PretrainDataset, PretrainDatasetConfig, build_pretrain_datasets

PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

DOCUMENTS = st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=1, max_size=9).filter(
    lambda documents: any(map(sum, documents))
)


@PROPERTY
@given(DOCUMENTS, st.integers(1, 12), st.integers(0, 99), st.booleans(), st.booleans(), st.booleans())
def test_rows_equal_the_concatenated_lists(tmp_path_factory, documents, length, seed, mask, isolate, cached):
    folder = tmp_path_factory.mktemp("corpus")
    prefix, texts = write_corpus(folder, "a", documents)
    options = {"path_to_cache": str(folder / "cache"), "min_cached_entries": 0} if cached else {}
    options |= {"mask_loss_across_documents": mask, "isolate_documents": isolate}
    dataset = train_set(config_of(prefix, length=length, seed=seed, **options), 30)
    found = [tuple(values.tolist() for values in sample.values()) for sample in dataset]
    assert found == twin(texts, length, seed, 30, mask, isolate)
    dtypes = [values.dtype for values in dataset[0].values()]
    assert dtypes == [torch.int64, torch.int64, torch.float32, torch.int64]
    assert bool(list((folder / "cache").glob("*.npy"))) == cached


def test_a_longer_run_repeats_a_shorter_one_and_goes_on(tmp_path):
    a, _ = write_corpus(tmp_path, "a", [[5], [3, 4], [11]])
    b, _ = write_corpus(tmp_path, "b", [[2], [9]], first_token=100)
    cache = {"path_to_cache": str(tmp_path / "cache"), "min_cached_entries": 0}
    for blend in [(a,), ([a, b], [0.7, 0.3]), ([a, b], None)]:
        longest = contents(train_set(config_of(*blend, **cache), 40))
        for num_samples in [1, 2, 5, 7, 20, 39]:
            shorter = contents(train_set(config_of(*blend, **cache), num_samples))
            assert len(shorter) >= num_samples
            assert shorter[:num_samples] == longest[:num_samples]


@PROPERTY
@given(DOCUMENTS, st.integers(1, 6))
def test_each_token_is_read_once_an_epoch(tmp_path_factory, documents, length):
    prefix, texts = write_corpus(tmp_path_factory.mktemp("corpus"), "a", documents)
    # after as many epochs as a row has tokens, rows and epochs end together
    read = np.ravel(inputs(train_set(config_of(prefix, length=length), sum(map(len, texts)))))
    assert np.bincount(read).tolist() == [length] * sum(map(len, texts))


def test_a_new_epoch_has_a_new_order_and_a_seed_its_own(tmp_path):
    prefix, _ = write_corpus(tmp_path, "a", [[4]] * 20)
    first, second = np.split(np.array(inputs(train_set(config_of(prefix, length=8), 20))), 2)
    assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(80))
    assert first.tolist() != second.tolist()
    assert sorted(first.tolist()) != sorted(second.tolist()), "the documents keep their order, only the rows move"
    assert inputs(train_set(config_of(prefix, length=8), 10)) == first.tolist()
    assert inputs(train_set(config_of(prefix, length=8, seed=8), 10)) != first.tolist()


def test_no_label_crosses_a_document(tmp_path):
    prefix, texts = write_corpus(tmp_path, "a", [[3], [6, 2], [], [0], [40], [1], [5]])
    document_of = {token: number for number, text in enumerate(texts) for token in text}

    def crossings(**options):
        """(rows' inner crossings, crossings at a row's end, masked targets) among the targets that are trained on."""
        inner = at_end = masked = 0
        for sample in train_set(config_of(prefix, length=6, **options), 60):
            for t, (token, label) in enumerate(zip(sample["tokens"].tolist(), sample["labels"].tolist(), strict=True)):
                crosses = document_of[token] != document_of[label] or label != token + 1
                trained = sample["loss_mask"][t] == 1
                assert trained or crosses, "a target inside a document is lost"
                inner, at_end = inner + (crosses and trained and t < 5), at_end + (crosses and trained and t == 5)
                masked += not trained
        return inner, at_end, masked

    inner, at_end, masked = crossings(mask_loss_across_documents=False)
    assert inner > 5 and at_end > 5 and masked == 0, "the corpus does not show the case"
    assert crossings() == (0, 0, inner + at_end)


def test_attention_segments_stay_inside_documents_when_isolated(tmp_path):
    prefix, texts = write_corpus(tmp_path, "a", [[3], [6, 2], [40], [1], [5]])
    document_of = {token: number for number, text in enumerate(texts) for token in text}

    def mixed_segments(isolate):
        dataset = train_set(config_of(prefix, length=6, isolate_documents=isolate), 40)
        tokens = np.ravel(inputs(dataset))
        positions = np.ravel([sample["position_ids"].numpy() for sample in dataset])
        bounds = [*np.flatnonzero(positions == 0), len(positions)]
        segments = [tokens[begin:end] for begin, end in itertools.pairwise(bounds)]
        assert sum(map(len, segments)) == len(tokens) and len(segments) >= 40
        return sum(len({document_of[token] for token in segment.tolist()}) > 1 for segment in segments)

    assert mixed_segments(isolate=False) > 5
    assert mixed_segments(isolate=True) == 0


def test_an_eod_token_ends_a_document_too(tmp_path):
    prefix, _ = write_corpus(tmp_path, "a", [[12]])  # tokens 0..11 in one document of the index
    by_index, by_token = (
        train_set(config_of(prefix, length=6, isolate_documents=True, eod_token=eod), 2) for eod in (None, 2)
    )
    row = inputs(by_index).index([0, 1, 2, 3, 4, 5])
    assert by_index[row]["loss_mask"].tolist() == [1, 1, 1, 1, 1, 1]
    assert by_token[row]["loss_mask"].tolist() == [1, 1, 0, 1, 1, 1]
    assert by_token[row]["position_ids"].tolist() == [0, 1, 2, 0, 1, 2]


def test_splits_share_no_token_and_lose_none(tmp_path):
    prefix, texts = write_corpus(tmp_path, "a", [[4]] * 50)
    splits = build_pretrain_datasets(config_of(prefix, split="80,15,5"), (20, 4, 2))
    train, valid, test = ({token for row in inputs(split) for token in row} for split in splits)
    assert len(train) == 160 and train | valid | test == set(itertools.chain(*texts))
    assert not (train & valid or train & test or valid & test)


def test_each_split_may_have_its_own_files(tmp_path):
    a, _ = write_corpus(tmp_path, "a", [[30]])
    b, _ = write_corpus(tmp_path, "b", [[30]], first_token=100)
    config = PretrainDatasetConfig(
        random_seed=1, sequence_length=5, blend_per_split=[([a], [1.0]), ([a, b], [1.0, 1.0]), None]
    )
    train, valid, test = build_pretrain_datasets(config, (6, 10, 3))
    assert max(map(max, inputs(train))) < 100 and test is None
    assert sum(min(row) >= 100 for row in inputs(valid)) == len(valid) // 2 == 5


BLENDS = [[1.0, 1.0], [3.0, 1.0], [0.9, 0.1], [5.0, 3.0, 2.0], [0.01, 0.6, 0.3, 0.09], [0.9, *[0.025] * 4]]


@pytest.mark.parametrize("weights", BLENDS)
def test_blend_weights_are_realised_to_within_two_samples(tmp_path, weights):
    """At most one sample ahead, fewer than two behind (with two corpora one); also in runs of a few samples."""
    prefixes = [write_corpus(tmp_path, f"c{number}", [[9], [4]])[0] for number in range(len(weights))]
    share = np.array(weights) / sum(weights)
    for num_samples in [1, 3, 10, 101]:
        drawn = np.array([sample["dataset_id"] for sample in train_set(config_of(prefixes, weights), num_samples)])
        for n in range(1, len(drawn) + 1):
            ahead = np.bincount(drawn[:n], minlength=len(weights)) - share * n
            assert ahead.max() <= 1 + 1e-9 and ahead.min() > (-1 - 1e-9 if len(weights) == 2 else -2)


def test_a_blend_without_weights_follows_tokens_and_outlasts_an_epoch(tmp_path):
    a, _ = write_corpus(tmp_path, "a", [[30]])
    b, _ = write_corpus(tmp_path, "b", [[10]] * 9, first_token=100)
    dataset = train_set(config_of([a, b], length=10), 48)  # four epochs: of a 12 rows, of b 36
    assert sorted(itertools.chain(*inputs(dataset))) == sorted([*range(30), *range(100, 190)] * 4)


def test_one_epoch_without_a_size_in_upstream_s_own_builder(tmp_path):
    prefix, _ = write_corpus(tmp_path, "a", [[9], [6], [1]])
    train, _, _ = BlendedMegatronDatasetBuilder(
        PretrainDataset, [None, None, None], lambda: True, config_of(prefix, length=4)
    ).build()
    assert len(train) == 4 and sorted(np.ravel(inputs(train))) == list(range(16))
