"""Every family in every stage, and every stage in every layout, where no other test has them: `make test-thorough`.

Each training starts at what transformers computes of its first batch, and goes on as on one rank."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support.dialogues import make_dialogues, make_renderer, write_dialogues
from support.families import EXPERTS, make_model, reference_loss
from support.first_batch import instances, log_p, pair_losses, ranked_answers, target_losses
from support.job import Job, figures, write_corpus
from support.mutations import THOROUGH
from support.rankings import make_groups, write_groups
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.convert.lora import hash_model
from megatron_chimed.models.options import LORA_TARGETS
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings
from megatron_chimed.packing.reference import compute_reference

LENGTH, ROWS = 128, 4
STAGE = {
    "seq-length": LENGTH, "micro-batch-size": 1, "global-batch-size": ROWS, "split": "80,20,0", "lr": 2e-3,
    "eval-iters": 0, "train-iters": 4,
}  # fmt: skip
FAMILIES = {
    "LLaMA": ("Llama", {}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
    "Qwen3 with experts": ("Qwen3Moe", EXPERTS | {"head_dim": 16}),
    "Mistral": ("Mistral", {"head_dim": 22, "sliding_window": None}),
}
TP = ("--tensor-model-parallel-size", 2, "--sequence-parallel")
UNEVEN = ("--pipeline-model-parallel-size", 2, "--decoder-first-pipeline-num-layers", 1)
LAYOUTS = {
    "TP 2": (2, TP),
    "PP 3": (3, ("--pipeline-model-parallel-size", 3)),
    "TP 2 with PP 2": (4, (*TP, *UNEVEN)),
    "EP 2": (2, ("--expert-model-parallel-size", 2, "--moe-token-dispatcher-type", "alltoall")),
}
"""{name: (ranks, arguments)}."""
CELLS = [
    *((family, stage, "TP 2") for family in ("Qwen2", "Mistral") for stage in ("sft", "reward", "dpo")),
    *(("Qwen3 with experts", stage, "TP 2") for stage in ("reward", "dpo", "LoRA")),
    ("Qwen3", "dpo", "TP 2"),
    ("Mistral", "LoRA", "TP 2"),
    *(("LLaMA", stage, "TP 2 with PP 2") for stage in ("pretrain", "dpo", "LoRA")),
    *(("LLaMA", stage, "PP 3") for stage in ("dpo", "LoRA")),
    *(("Qwen3 with experts", stage, "EP 2") for stage in ("reward", "dpo", "LoRA")),
]
DATA = {"pretrain": "corpus_text_document", "sft": "dialogues", "LoRA": "dialogues", "reward": "ranked"}
ATTENTION = list(LORA_TARGETS[:4])
FIGURE = {"reward": "ranking loss", "dpo": "preference loss"}

pytestmark = pytest.mark.skipif(not THOROUGH, reason="two minutes: make test-thorough")


@pytest.fixture(scope="module")
def world(tmp_path_factory, one_thread):
    """A folder with the data of every stage, and what makes a family's models there once, FAMILY/KIND and its hf."""
    folder = tmp_path_factory.mktemp("stages")
    renderer = make_renderer("sentencepiece", folder)
    vocabulary = renderer.tokenizer.vocab_size
    write_corpus(folder, ids=vocabulary)
    source = write_dialogues(folder / "dialogues.jsonl", make_dialogues(80, most_turns=2, most_words=8))
    pack_dialogues([str(source)], folder / "dialogues", renderer, DialogueRowOptions(LENGTH, progress=False))
    source = write_groups(folder / "ranked.jsonl", make_groups(80))
    pack_rankings([str(source)], folder / "ranked", renderer, RankingRowOptions(LENGTH, pairing="all", progress=False))

    @cache
    def model(family: str, kind: str) -> Path:
        name, changes = FAMILIES[family]
        place = folder / family / kind
        changes = changes | {"vocab_size": vocabulary, "reward": kind == "reward"}
        made = make_model(name, changes)
        made.save_pretrained(place / "hf")
        hf_to_megatron(place / "hf", place / "megatron", progress=False)
        return place

    return folder, model


def reference(place: Path, ranked: Path) -> Path:
    """Ranked answers with what transformers thinks of each, by a family's model."""
    shutil.copytree(ranked, place / "ranked", dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(place / "hf")

    def values(pairs):
        return [log_p(model, prompt, answer).item() for prompt, answer in pairs]

    packed = PackedRows(place / "ranked")
    with torch.no_grad():
        compute_reference(packed, hash_model(place / "megatron"), {}, values, lambda done: None)
    return place / "ranked"


@torch.no_grad()
def first_loss(stage: str, place: Path, data: Path) -> float:
    """By transformers."""
    if stage == "pretrain":
        return reference_loss(place / "hf", data, LENGTH)
    if stage == "dpo":
        return np.log(2)
    if stage == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(place / "hf")
        found = [(loss, 1) for row in ranked_answers(data, LENGTH, ROWS) for loss in pair_losses(model, row)]
    else:
        model = AutoModelForCausalLM.from_pretrained(place / "hf")
        found = [one for row in instances(data, LENGTH, ROWS) for one in target_losses(model, row)]
    return sum(loss.item() for loss, _ in found) / sum(count for _, count in found)


def train(stage: str, place: Path, data: Path, save: Path, *arguments: object, ranks: int = 1) -> np.ndarray:
    """[iterations, 2]: the loss and the gradient norm of each step."""
    targets = ATTENTION if "experts" in place.parent.name else list(LORA_TARGETS)
    chimed = {"lora": {"rank": 4, "alpha": 8, "targets": targets}} if stage == "LoRA" else {}
    job = Job(save.parent, None, STAGE | {"data-path": str(data)}, chimed, {"LoRA": "sft"}.get(stage, stage))
    job.model = place / "megatron/model.yaml"
    start = ("--load", place / "megatron", "--finetune", "--tokenizer-type", "NullTokenizer", "--save", save)
    job.run(*start, *arguments, ranks=ranks)
    return np.array([row[1:] for row in figures(save, name=FIGURE.get(stage, "lm loss"))], float)


@pytest.mark.parametrize(("family", "stage", "layout"), CELLS)
def test_it_starts_at_the_loss_of_transformers_and_goes_on_as_on_one_rank(world, tmp_path, family, stage, layout):
    folder, model = world
    place = model(family, "reward" if stage == "reward" else "lm")
    data = reference(place, folder / "ranked") if stage == "dpo" else folder / DATA[stage]
    ranks, arguments = LAYOUTS[layout]
    alone = train(stage, place, data, tmp_path / "one/run")
    found = train(stage, place, data, tmp_path / "layout/run", *arguments, ranks=ranks)
    expected = first_loss(stage, place, data)
    apart = abs(found - alone).max(0)
    print(f"first {found[0, 0]:.6f}, by transformers {expected:.6f}; one rank {apart[0]:.1e}, {apart[1]:.1e}")
    assert found[0, 0] == pytest.approx(expected, abs=1e-5) and found.shape == (4, 2)
    assert abs(found[:, 0] - alone[:, 0]).max() <= 1e-4 and abs(found[:, 1] / alone[:, 1] - 1).max() <= 1e-4
    assert np.ptp(found[:, 0]) > 1e-3, "the control: it learns, so that later steps could differ"
