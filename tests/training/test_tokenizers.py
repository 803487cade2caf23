"""Data of another tokenizer than the model's are refused before the ranks start; another form of it is the same."""

import shutil

import pytest
import yaml
from sentencepiece import sentencepiece_model_pb2
from support.corpora import build, make_texts, write_model, write_rows
from support.dialogues import make_dialogues, make_renderer, write_dialogues

from megatron_chimed.config import load_settings
from megatron_chimed.errors import InputError
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.text.sentencepiece_export import write_folder
from megatron_chimed.text.tokenizer_training import train_sentencepiece
from megatron_chimed.training.job import prepare
from megatron_chimed.training.tokenizers import check_tokenizers


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, tokenizer model, packed rows, prefix of a corpus)."""
    folder = tmp_path_factory.mktemp("world")
    renderer = make_renderer("sentencepiece", folder)
    model = next(folder.rglob("*.model"))
    source = write_dialogues(folder / "dialogues.jsonl", make_dialogues(20))
    options = DialogueRowOptions(sequence_length=128, progress=False)
    pack_dialogues([str(source)], folder / "packed", renderer, options, str(model))
    corpus = write_model(folder / "corpus_tokenizer") if (folder / "corpus_tokenizer").mkdir() is None else None
    rows = write_rows(folder / "a.jsonl", [{"text": text} for text in make_texts(30)])
    build([rows], folder / "corpus", corpus)
    return folder, model, corpus


def settings(tmp_path, model, *words, chimed=None):
    for name, content in (("model", {}), ("stage", {"chimed": chimed or {}})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    given = ["--tokenizer-model", str(model), *map(str, words)]
    return [str(tmp_path / "model.yaml"), str(tmp_path / "stage.yaml"), given]


def check(*given, **more):
    check_tokenizers(load_settings(*settings(*given, **more)))


def other_model(folder):
    path = folder / "other.model"
    path.write_bytes(train_sentencepiece(make_texts(200, seed=5), 400))
    return path


def test_replay_and_sets_by_name_are_data_too(tmp_path, world):
    folder, model, _ = world
    place, other = str(folder / "packed"), other_model(tmp_path)
    for more in ({"replay": {"data": place, "share": 0.1}}, {"valid": {"general": place}}):
        check(tmp_path, model, chimed=more)
        with pytest.raises(InputError, match="packed: tokenized with another tokenizer"):
            check(tmp_path, other, chimed=more)


@pytest.mark.parametrize("data", ["packed", "corpus_text_document"])
def test_another_tokenizer_is_refused_with_both_paths(tmp_path, world, data):
    folder, model, corpus = world
    mine = model if data == "packed" else corpus
    check(tmp_path, mine, "--train-data-path", folder / data)
    other = other_model(tmp_path)
    with pytest.raises(InputError) as caught:
        check(tmp_path, other, "--data-path", "0.5", folder / data, "0.5", folder / data)
    said = str(caught.value)
    assert said.startswith(f"{folder / data}: tokenized with another tokenizer ({mine}) than the model's ({other}): ")
    assert "ids and 400; tokenize it again" in said or "400 ids and" in said
    check(tmp_path, other, "--data-path", folder / data, "--allow-other-tokenizer")
    check(tmp_path, other, "--data-path", folder / data, chimed={"allow_other_tokenizer": True})


def test_another_form_of_the_tokenizer_is_the_same(tmp_path, world):
    folder, model, _ = world
    (tmp_path / "hf").mkdir()
    write_folder(model, tmp_path / "hf")
    check(tmp_path, tmp_path / "hf", "--valid-data-path", folder / "packed")


def test_pieces_of_which_one_is_another_are_found(tmp_path, world):
    folder, model, _ = world
    content = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
    content.pieces[300].piece = "▂▂"
    changed = tmp_path / "changed.model"
    changed.write_bytes(content.SerializeToString())
    with pytest.raises(InputError, match=r"id 300 is '▂▂' and '.*'; tokenize it again"):
        check(tmp_path, changed, "--data-path", folder / "packed")


def test_a_tokenizer_that_is_gone_cannot_be_compared(tmp_path, world):
    folder, model, _ = world
    shutil.copytree(folder / "packed", tmp_path / "packed")
    manifest = tmp_path / "packed" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(model), "/gone/tokenizer.model"))
    check(tmp_path, model, "--data-path", tmp_path / "packed")  # its hash is the model's
    with pytest.raises(InputError, match="no longer there to compare"):
        check(tmp_path, other_model(tmp_path), "--data-path", tmp_path / "packed")


def test_the_launcher_refuses_before_any_rank_starts(tmp_path, world):
    folder, _, _ = world
    model, stage, words = settings(tmp_path, other_model(tmp_path), "--data-path", folder / "packed")
    with pytest.raises(InputError, match="another tokenizer"):
        prepare(["sft", model, stage, *words, "--save", str(tmp_path / "save")])
    assert not (tmp_path / "save").exists()
