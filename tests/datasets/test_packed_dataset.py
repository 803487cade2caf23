"""Splits of few packed rows: a share above 0 is a row, and a split without one is said before anything is trained."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_config import convert_split_vector_to_split_matrix
from support.dialogues import make_dialogues, make_renderer, write_dialogues

from megatron_chimed.datasets.packed_dataset import build_packed_datasets, split_rows, template_of
from megatron_chimed.datasets.sft import SftDataset, SftDatasetConfig
from megatron_chimed.errors import InputError
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues

LENGTH = 64


def matrix(shares):
    return convert_split_vector_to_split_matrix([share / sum(shares) for share in shares])


@given(st.lists(st.sampled_from([0, 1, 2, 50, 98]), min_size=3, max_size=3).filter(any), st.integers(1, 60))
def test_splits_are_megatrons_but_that_none_is_empty(shares, size):
    places = split_rows(matrix(shares), size)
    upstream = [share and tuple(round(end * size) for end in share) for share in matrix(shares)]
    given_rows = [place for place in places if place]
    assert [place is None for place in places] == [share is None for share in upstream]
    assert given_rows[0][0] == 0 and given_rows[-1][1] == size
    assert all(one[1] == other[0] for one, other in zip(given_rows, given_rows[1:], strict=False))
    filled = [end > start for start, end in given_rows]
    assert filled == [number < size for number in range(len(filled))] or all(filled)
    if all(place is None or place[1] > place[0] for place in upstream):
        assert places == upstream


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Packed folders by their numbers of rows: one row, and several."""
    folder = tmp_path_factory.mktemp("packed")
    renderer = make_renderer("sentencepiece", folder)
    found = {}
    for count in (1, 12):
        source = write_dialogues(folder / f"{count}.jsonl", make_dialogues(count, most_turns=1, most_words=3))
        options = DialogueRowOptions(sequence_length=LENGTH, progress=False)
        found[count] = folder / str(count)
        pack_dialogues([str(source)], found[count], renderer, options)
    return found


def build(paths, split, wanted=(8, 4, 4)):
    config = SftDatasetConfig(
        random_seed=7,
        sequence_length=LENGTH,
        blend=([str(path) for path in paths], None),
        split=split,
        vocab_size=10**6,
    )
    return build_packed_datasets(SftDataset, config, wanted)


def test_rows_of_different_templates_are_refused_by_folder_and_name(folders, tmp_path):
    for name, change in (("renamed", {"name": "other"}), ("bare", {"bos": False}), ("unknown", None)):
        shutil.copytree(folders[12], tmp_path / name)
        path = tmp_path / name / "manifest.json"
        content = json.loads(path.read_text())
        content["template"] = change and content["template"] | change
        path.write_text(json.dumps(content))
    train = build([folders[12], tmp_path / "renamed", tmp_path / "unknown"], "90,10,0")
    assert template_of(train) == json.loads((folders[12] / "manifest.json").read_text())["template"]
    with pytest.raises(InputError, match=rf"^{tmp_path}/bare: packed with template 'chimed', {folders[12]} with 'ch"):
        build([folders[12], tmp_path / "bare"], "90,10,0")


def test_a_small_share_is_a_row(folders):
    train, valid, test = build([folders[12]], "98,1,1")
    assert len(train.indices) > 0 and len(valid.indices) == len(test.indices) == 1
    assert valid[0]["loss_mask"].sum() > 0


def test_one_row_trains_and_what_is_left_without_is_said(folders, capfd):
    train, valid, test = build([folders[1]], "98,2,0")
    assert len(train.indices) == 1 and valid is None and test is None
    said = capfd.readouterr().err
    assert "1 rows, none for its valid split (--split 98,2,0): it is left out; pack more" in said


def test_a_split_that_some_folders_lack_is_refused(folders):
    with pytest.raises(InputError, match=r"/1: 1 rows, none for its valid split .*; pack more, or give another"):
        build([folders[12], folders[1]], "98,2,0")


def test_an_evaluation_that_is_not_asked_for_needs_no_row(folders, capfd):
    train, valid, _ = build([folders[1]], "98,2,0", (8, 0, 0))
    assert len(train.indices) == 1 and valid is None and "left out" not in capfd.readouterr().err
