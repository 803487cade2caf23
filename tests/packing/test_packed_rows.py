"""Packed rows: no label crosses a boundary, every response token is learnt exactly once, damage is named."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.dialogues import KINDS, make_dialogues, make_renderer, write_dialogues
from support.paths import SHARED

from megatron_chimed.errors import InputError
from megatron_chimed.packing import packed_rows as packed_module
from megatron_chimed.packing.bin_packing import Packing
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.packing.packed_rows import PackedRows, row_arrays
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

LENGTH = 256


@pytest.fixture(scope="module")
def renderers(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: make_renderer(kind, folder) for kind in KINDS}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Dialogues of real questions and answers, single and multi-turn, and the renderer of a real model."""
    model, answers = SHARED / "chinese_sp.model", SHARED / "cmd_finetune_huatuo.jsonl"
    chats = SHARED / "sharegpt_medical_1k.jsonl"
    if not all(path.exists() for path in (model, answers, chats)):
        pytest.skip("the shared sample data is not beside the project")
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    pairs = [(row["instruction"] + row["input"], row["output"]) for row in lines if row["output"].strip()]
    chats = [json.loads(line)["conversations"] for line in chats.read_text(encoding="utf-8").splitlines()]
    texts = [("cmd", pair) for pair in pairs[:1500]]
    texts += [("several", sum(pairs[n : n + 3], ())) for n in range(1500, 2400, 3)]
    texts += [("sharegpt", tuple(turn["value"] for turn in chat)) for chat in chats if len(chat) % 2 == 0]
    dialogues = [
        Dialogue(f"real:{n}", source, tuple(Turn(("user", "assistant")[k % 2], one) for k, one in enumerate(parts)))
        for n, (source, parts) in enumerate(texts)
        if all(part.strip() for part in parts)
    ]
    return dialogues, Renderer(Template(), load_tokenizer(model))


def pack(folder, dialogues, renderer, length=LENGTH, **options) -> PackedRows:
    options = DialogueRowOptions(length, progress=False, **options)
    pack_dialogues([str(write_dialogues(folder / "in.jsonl", dialogues))], folder / "packed", renderer, options)
    return PackedRows(folder / "packed")


def check_rows(packed: PackedRows, dialogues, renderer) -> Counter:
    """Assert all that holds for the rows of whole dialogues that fit; returns what was seen.

    The twin knows nothing of rows: it renders each dialogue alone and predicts each response token from what stands
    before it in the dialogue. Rows must give exactly those pairs of context and target, each once.
    """
    seen = Counter()
    expected = Counter()
    for number, dialogue in enumerate(dialogues):
        tokens, mask = (part.tolist() for part in renderer.render(dialogue))
        expected.update((number, place, tokens[place]) for place in range(len(tokens)) if mask[place])
    learnt = Counter()
    for row in range(len(packed)):
        arrays = row_arrays(packed, row)
        assert all(len(values) == packed.sequence_length for values in arrays.values())
        end = 0
        for segment in packed.segments(row):
            number = int(packed.arrays["segment_dialogue"][segment])
            tokens = renderer.render(dialogues[number]).tokens
            start, end = end, end + len(tokens)
            assert arrays["tokens"][start:end].tolist() == tokens.tolist()
            assert arrays["labels"][start : end - 1].tolist() == tokens[1:].tolist()
            assert arrays["position_ids"][start:end].tolist() == list(range(len(tokens)))
            source = packed.sources.index(dialogues[number].source)
            assert (arrays["source"][start:end] == source).all()
            assert arrays["loss_mask"][end - 1] == 0, "a label crosses the end of a segment"
            for place in np.flatnonzero(arrays["loss_mask"][start:end]).tolist():
                learnt[number, place + 1, int(arrays["labels"][start + place])] += 1
            seen["eos learnt"] += int(arrays["labels"][end - 2] == renderer.tokenizer.eos_id)
            seen["multi-turn"] += len(dialogues[number].turns) > 2
        padding = packed.sequence_length - end
        assert (arrays["tokens"][end:] == packed.pad_id).all() and not arrays["loss_mask"][end:].any()
        assert arrays["position_ids"][end:].tolist() == list(range(padding)), "padding is a tail of its own"
        assert (arrays["source"][end:] == -1).all()
        assert np.count_nonzero(arrays["position_ids"] == 0) == len(packed.segments(row)) + bool(padding)
        seen["boundaries inside a row"] += len(packed.segments(row)) - 1
        seen["padded rows"] += bool(padding)
    assert learnt == expected
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_every_response_token_is_learnt_exactly_once_and_no_label_crosses_a_boundary(tmp_path, renderers, kind):
    dialogues = make_dialogues(120, most_turns=3, most_words=4)
    packed = pack(tmp_path, dialogues, renderers[kind], 512)
    assert packed.manifest["report"]["kept"] == packed.manifest["report"]["in"], "the test needs all of them to fit"
    seen = check_rows(packed, dialogues, renderers[kind])
    assert seen["eos learnt"] == 120 and seen["multi-turn"] > 50
    assert seen["boundaries inside a row"] > 50 and seen["padded rows"] > 2
    assert (packed.pad_id == renderers[kind].tokenizer.eos_id) == (kind in ("pad_is_eos", "dummy_prefix"))


def test_the_same_on_real_dialogues(tmp_path, real):
    dialogues, renderer = real
    packed = pack(tmp_path, dialogues, renderer, 4096)
    seen = check_rows(packed, dialogues, renderer)
    assert seen["eos learnt"] == len(dialogues) > 2000 and seen["multi-turn"] >= 300
    assert seen["boundaries inside a row"] > 1000
    assert packed.manifest["report"]["rows"] == packed.manifest["report"]["lower_bound"]


def test_real_dialogues_that_are_too_long_are_accounted_for_to_the_token(tmp_path, real):
    dialogues, renderer = real
    packed = pack(tmp_path, dialogues, renderer, 200)
    report = packed.manifest["report"]
    rendered = [renderer.render(dialogue) for dialogue in dialogues]
    assert report["in"]["tokens"] == sum(len(one.tokens) for one in rendered)
    assert report["in"]["trained"] == sum(int(one.loss_mask.sum()) for one in rendered)
    for unit in ("tokens", "trained"):
        assert report["in"][unit] == sum(report[what][unit] for what in ("shortened", "cut", "dropped", "kept"))
    assert all(report[what]["instances"] for what in ("shortened", "cut", "dropped")), "a case was not seen"
    arrays = [row_arrays(packed, row) for row in range(len(packed))]
    assert sum(int(one["loss_mask"].sum()) for one in arrays) == report["kept"]["trained"]
    assert sum(int((one["source"] >= 0).sum()) for one in arrays) == report["kept"]["tokens"] == len(packed.tokens)
    assert report["padding"] == len(packed) * 200 - len(packed.tokens)
    number = packed.arrays["segment_dialogue"].tolist()
    assert len(set(number)) == len(number) == len(dialogues) - report["dropped"]["instances"]


def made_by_hand(folder: Path, **changes) -> Path:
    """A folder of two rows: segments [5, 6, 7] and [8, 9] in the first, [5] in the second; S = 6, pad 0.

    All tokens but 5 are to be learnt, 8 too, which nothing stands before: its label must not come from 7.
    """
    folder.mkdir()
    lengths = np.array([1, 3, 2], np.int32)
    per_token = {"tokens": np.array([5, 5, 6, 7, 8, 9], np.uint16), "loss_mask": np.array([0, 0, 1, 1, 1, 1], np.uint8)}
    files = packed_module.write_arrays(
        folder, Packing(np.array([1, 2, 0]), np.array([0, 2, 3])), lengths, per_token, {"source": np.array([1, 0, 1])}
    )
    content = {"format": packed_module.FORMAT, "rows": 2, "sequence_length": 6, "pad_id": 0, "sources": ["a", "b"]}
    (folder / "manifest.json").write_text(json.dumps(content | files | changes))
    return folder


def test_a_row_is_what_the_docstring_says(tmp_path):
    packed = PackedRows(made_by_hand(tmp_path / "p"))
    assert {name: values.tolist() for name, values in row_arrays(packed, 0).items()} == {
        "tokens": [5, 6, 7, 8, 9, 0],
        "labels": [6, 7, 0, 9, 0, 0],
        "loss_mask": [1, 1, 0, 1, 0, 0],
        "position_ids": [0, 1, 2, 0, 1, 0],
        "source": [0, 0, 0, 1, 1, -1],
    }
    assert row_arrays(packed, 1)["loss_mask"].tolist() == [0] * 6
    assert row_arrays(packed, 1)["position_ids"].tolist() == [0, 0, 1, 2, 3, 4]
    assert {name: values.dtype.name for name, values in row_arrays(packed, 1).items()} == {
        "tokens": "int64",
        "labels": "int64",
        "loss_mask": "float32",
        "position_ids": "int64",
        "source": "int32",
    }


def test_rows_are_counted_from_0_and_end(tmp_path):
    packed = PackedRows(made_by_hand(tmp_path / "p"))
    assert len(packed) == 2 and list(packed.segments(1)) == [2]
    for row in (-1, 2):
        with pytest.raises(IndexError):
            packed.segments(row)


def test_pieces_gathered_one_by_one_give_the_same_files(tmp_path, monkeypatch):
    made_by_hand(tmp_path / "one")
    monkeypatch.setattr(packed_module, "TOKENS_AT_ONCE", 1)
    made_by_hand(tmp_path / "other")
    assert len(list(packed_module._pieces(np.array([0, 3, 5, 6])))) == 3
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_packed_rows_go_to_a_loader_s_process_by_name(tmp_path, renderers):
    packed = pack(tmp_path, make_dialogues(300), renderers["sentencepiece"], 512)
    sent = pickle.dumps(packed)
    assert len(sent) < 1000 < len(packed.tokens)
    assert row_arrays(pickle.loads(sent), 0)["tokens"].tolist() == row_arrays(packed, 0)["tokens"].tolist()


def test_verify_finds_a_flipped_byte(tmp_path):
    path = made_by_hand(tmp_path / "p") / "tokens.npy"
    PackedRows(path.parent).verify()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokens\.npy: is not what the manifest's hash states"):
        PackedRows(path.parent).verify()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "packed rows 0"}, "not the manifest of packed rows"),
        ({"sequence_length": "6"}, "sequence_length is not there or no int"),
        ({"sequence_length": 4}, "a row has more than 4 tokens"),
        ({"rows": 3}, "its offsets do not fit"),
        ({"sources": ["a"]}, "a segment's source is none of the manifest's"),
        ({"bytes": {}}, "holds no loss_mask.npy"),
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_refused(tmp_path, changes, expected):
    with pytest.raises(InputError, match=expected):
        PackedRows(made_by_hand(tmp_path / "p", **changes))


def replace_array(folder: Path, name: str, values) -> None:
    """Put other values under a name, with a manifest that states their size."""
    np.save(folder / f"{name}.npy", values)
    content = json.loads((folder / "manifest.json").read_text())
    content["bytes"][f"{name}.npy"] = (folder / f"{name}.npy").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("row_offsets", np.array([0, 2, 4])),
        ("row_offsets", np.array([1, 2, 3])),
        ("row_offsets", np.array([0, 2, 2, 3])),
        ("row_offsets", np.array([0, 2, 3], np.int32)),
        ("segment_offsets", np.array([0, 3, 5, 7])),
        ("segment_offsets", np.array([0, 5, 3, 6])),
        ("segment_source", np.array([0, 1])),
        ("segment_source", np.array([0.0, 1.0, 1.0])),
        ("loss_mask", np.zeros(5, np.uint8)),
        ("tokens", np.zeros((2, 3), np.uint16)),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(tmp_path, name, values):
    folder = made_by_hand(tmp_path / "p")
    replace_array(folder, name, values)
    with pytest.raises(InputError, match="pack again"):
        PackedRows(folder)


@pytest.mark.parametrize("name", ["tokens.npy", "manifest.json", "row_offsets.npy"])
def test_a_missing_short_or_scrambled_file_is_named(tmp_path, name):
    for number, damage in enumerate((None, lambda content: content[:-1], lambda content: b"x" * len(content))):
        path = made_by_hand(tmp_path / str(number)) / name
        if damage:
            path.write_bytes(damage(path.read_bytes()) if name != "manifest.json" else b'{"format": ')
        else:
            path.unlink()
        with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
            PackedRows(path.parent)
        assert "\n" not in str(caught.value)


def test_a_pickle_in_place_of_an_array_is_not_loaded(tmp_path):
    folder = made_by_hand(tmp_path / "p")
    replace_array(folder, "segment_source", np.array([{}, {}, {}], dtype=object))
    with pytest.raises(InputError, match=r"segment_source\.npy: not a \.npy file"):
        PackedRows(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="no such folder; make it with"):
        PackedRows(tmp_path / "none")
