"""The template of a training in checkpoints and exports: chat template, stop ids, and what a model is asked in."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from support.chatml import END, EOS, write_chatml
from support.checkpoints import write_hf, write_plain
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from megatron_chimed.convert import trained_template
from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.tokenizer_files import give_own_pad, vocabulary
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json
from megatron_chimed.text.jinja import RECORD, record, to_jinja
from megatron_chimed.text.template import Template, load_template
from megatron_chimed.text.tokenizer import load_tokenizer

CHATML, OTHER = load_template("chatml"), "{{ messages[-1]['content'] }}"
SETTINGS = {"temperature": 0.7, "eos_token_id": 3, "pad_token_id": 0}


def model(folder: Path, text: str, eos: str = EOS, reward: bool = False) -> Path:
    """A Hugging Face folder with the tokenizer of ChatML, this chat template and a generation config."""
    write_chatml(folder, eos=eos)
    (write_hf if reward else write_plain)(
        folder, vocab_size=load_tokenizer(folder).vocab_size, **({"reward": True} if reward else {})
    )
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    write_json(folder / "generation_config.json", SETTINGS)
    return folder


def trained(work: Path, **options) -> Path:
    """A checkpoint that records ChatML over a base with another chat template, in a file and in the older place."""
    hf = model(work / "hf", record(CHATML), **options)
    hf_to_megatron(hf, work / "megatron", progress=False)
    files = work / "megatron/tokenizer"
    (files / "chat_template.jinja").write_text(OTHER)
    config = json.loads((files / "tokenizer_config.json").read_text()) | {"chat_template": OTHER}
    (files / "tokenizer_config.json").write_text(json.dumps(config))
    return work / "megatron"


def ids_of(folder: Path) -> tuple[int, int]:
    """(end of ChatML, EOS)."""
    tokenizer = load_tokenizer(folder)
    return tokenizer.token_to_id(END), tokenizer.eos_id


@pytest.mark.parametrize("text", [OTHER, record(CHATML) + to_jinja(CHATML)], ids=["its own", "an export's"])
def test_a_conversion_alone_keeps_chat_template_and_generation_config_to_the_byte(tmp_path, text):
    hf = model(tmp_path / "hf", text)
    if text != OTHER:
        megatron_to_hf(trained(tmp_path / "trained"), tmp_path / "export", progress=False)
        hf = tmp_path / "export"
    hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    megatron_to_hf(tmp_path / "megatron", tmp_path / "again", progress=False)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (hf / name).read_bytes()


@pytest.mark.parametrize("eos", [EOS, END])
def test_an_export_has_the_chat_template_and_the_stop_ids_of_the_training(tmp_path, eos):
    megatron_to_hf(trained(tmp_path, eos=eos), tmp_path / "again", progress=False)
    again, (end, last) = tmp_path / "again", ids_of(tmp_path / "hf")
    assert (again / "chat_template.jinja").read_text() == record(CHATML) + to_jinja(CHATML)
    assert AutoTokenizer.from_pretrained(again).chat_template == record(CHATML) + to_jinja(CHATML)
    assert "chat_template" not in json.loads((again / "tokenizer_config.json").read_text())
    stops = end if end == last else [end, last]
    assert json.loads((again / "generation_config.json").read_text()) == SETTINGS | {"eos_token_id": stops}
    assert GenerationConfig.from_pretrained(again).eos_token_id == stops
    assert AutoModelForCausalLM.from_pretrained(again).config.eos_token_id == stops
    assert trained_template.of_folder(again) == CHATML


def test_a_template_that_its_tokenizer_cannot_be_given_is_said_and_the_model_is_there(tmp_path, capsys):
    checkpoint = trained(tmp_path)
    path = checkpoint / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["rstrip"] |= token["content"] == END
    path.write_text(json.dumps(content))
    megatron_to_hf(checkpoint, tmp_path / "again", progress=False)
    said = capsys.readouterr().err
    assert said.startswith("no chat_template.jinja is written: template 'chatml'") and said.count("\n") == 1
    assert "the probe user" in said and "give servers prompts as ids" in said
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template is None
    stops = json.loads((tmp_path / "again/generation_config.json").read_text())["eos_token_id"]
    assert stops == list(ids_of(tmp_path / "hf"))


def test_a_reward_model_is_padded_with_what_ends_no_answer(tmp_path):
    megatron_to_hf(trained(tmp_path, reward=True), tmp_path / "again", progress=False)
    again, (end, eos) = tmp_path / "again", ids_of(tmp_path / "hf")
    assert not (again / "generation_config.json").exists()
    assert (again / "chat_template.jinja").read_text().startswith(RECORD)
    scorer = AutoModelForSequenceClassification.from_pretrained(again).eval()
    assert scorer.config.eos_token_id == [end, eos]
    ids = vocabulary(again)[1]
    for pad, kept in ((eos, eos), (end, None)):
        found = give_own_pad(again, again, ids | {"pad_token_id": pad}, (end,))["pad_token_id"]
        assert found == kept
    pad = scorer.config.pad_token_id
    assert pad not in (None, end)
    alone = scorer(torch.tensor([[5, 6, end]])).logits
    padded = torch.tensor([[5, 6, end, pad]])
    assert torch.allclose(scorer(padded, attention_mask=padded != pad).logits, alone, atol=1e-5)


def test_a_model_is_asked_in_the_template_of_its_training_and_another_is_said(tmp_path, capsys):
    checkpoint = trained(tmp_path)
    for name in (f"hf:{tmp_path / 'hf'}", f"vllm:{tmp_path / 'hf'}", f"megatron:{checkpoint}"):
        assert trained_template.choose(name, None) == CHATML
        assert capsys.readouterr().err == "template 'chatml', that of the model's training\n"
        assert trained_template.choose(name, "chatml") == CHATML and capsys.readouterr().err == ""
        assert trained_template.choose(name, "chimed") == Template()
        line = capsys.readouterr().err
        assert line.startswith("template 'chimed' is given") and "trained with 'chatml'" in line
    plain = write_plain(tmp_path / "plain")
    for name in (f"hf:{plain}", f"hf:{tmp_path}", f"megatron:{tmp_path}", "openai:gpt", ""):
        assert trained_template.choose(name, None) == Template()
    assert capsys.readouterr().err == ""


def test_a_damaged_record_is_refused(tmp_path):
    assert trained_template.of_args(Namespace(), "x") is None
    with pytest.raises(InputError, match=r"^x: chimed_template: expected a JSON object"):
        trained_template.of_args(Namespace(chimed_template="chatml"), "x")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not in UTF-8"):
        trained_template.of_folder(tmp_path)
