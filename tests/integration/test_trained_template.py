"""A model trained on rows of ChatML: its export is asked by transformers in the words of its training, and stops."""

from pathlib import Path

import pytest
import torch
from support.chatml import END, EOS, write_chatml
from support.checkpoints import write_hf
from support.dialogues import make_dialogues, write_dialogues
from support.job import Job, write_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_chimed.convert import trained_template
from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.records import Turn
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import load_template
from megatron_chimed.text.tokenizer import load_tokenizer

LENGTH = 128
CHATML = load_template("chatml")
STAGE = {
    "seq-length": LENGTH, "micro-batch-size": 1, "global-batch-size": 2, "split": "90,10,0", "lr": 1e-3,
    "eval-iters": 0, "train-iters": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """sft: two iterations from a base that speaks otherwise; pretrain: two on documents from there; hf: its export."""
    folder = tmp_path_factory.mktemp("trained")
    base = write_chatml(folder / "base", eos=EOS)
    (base / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    tokenizer = load_tokenizer(base)
    write_hf(base, vocab_size=tokenizer.vocab_size, num_hidden_layers=2)
    hf_to_megatron(base, folder / "megatron", progress=False)
    source = write_dialogues(folder / "dialogues.jsonl", make_dialogues(40, most_turns=3, most_words=8))
    options = DialogueRowOptions(sequence_length=LENGTH, progress=False)
    pack_dialogues([str(source)], folder / "packed", Renderer(CHATML, tokenizer), options)
    corpus = write_corpus(folder, ids=tokenizer.vocab_size)
    for name, data, load in (("sft", folder / "packed", "megatron"), ("pretrain", corpus, "sft")):
        job = Job(folder / f"{name}-job", None, STAGE | {"data-path": str(data)}, name=name)
        job.model = folder / "megatron/model.yaml"
        job.run("--load", folder / load, "--finetune", "--save", folder / name, ranks=1)
    megatron_to_hf(folder / "pretrain", folder / "hf", progress=False)
    return folder


def test_the_template_stays_with_the_checkpoints_also_of_a_later_pre_training(folder):
    found = {name: trained_template.of_checkpoint(folder / name) for name in ("megatron", "sft", "pretrain")}
    assert found == {"megatron": None, "sft": CHATML, "pretrain": CHATML}
    assert trained_template.of_folder(folder / "hf") == CHATML


def test_the_export_gives_transformers_the_prompts_of_the_training_and_ends_an_answer_there(folder):
    ours, theirs = Renderer(CHATML, load_tokenizer(folder / "hf")), AutoTokenizer.from_pretrained(folder / "hf")
    turns = [Turn("user", " 头痛\n\n三次"), Turn("assistant", "休息 "), Turn("user", "再见")]
    for given in ([Turn("system", "你是医生"), *turns], turns, turns[:1]):
        messages = [{"role": turn.role, "content": turn.text} for turn in given]
        found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found == ours.render_prompt(given).tolist()
    model = AutoModelForCausalLM.from_pretrained(folder / "hf")
    prompt, end = torch.tensor([found]), theirs.convert_tokens_to_ids(END)
    settings = {"do_sample": False, "max_new_tokens": 4, "attention_mask": torch.ones_like(prompt)}
    assert end != theirs.eos_token_id
    with torch.no_grad():  # exchange two rows of the output layer, so that the most likely id is what ends an answer
        likely, weight = int(model(prompt).logits[0, -1].argmax()), model.lm_head.weight
        weight[[likely, end]] = weight[[end, likely]]
    assert model.generate(prompt, **settings)[0, prompt.size(1) :].tolist() == [end]
    assert model.generate(prompt, **settings, eos_token_id=theirs.eos_token_id).size(1) > prompt.size(1) + 1
