"""LoRA in the real trainer: it starts as the base, resumes to the digit, and its checkpoints are the adapters alone."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import same_bits, weights, write_hf
from support.job import Job, figures, write_corpus

from megatron_chimed.convert import lora, verify
from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.strict import OPTIMIZER
from megatron_chimed.errors import InputError
from megatron_chimed.inference.open import open_engine

LORA = {"rank": 4, "alpha": 8}
HARD = {"bf16": True, "use-distributed-optimizer": True, "tensor-model-parallel-size": 2, "sequence-parallel": True}
DROPOUT = LORA | {"dropout": 0.1, "targets": ["q_proj", "o_proj", "up_proj"]}
PAIRS = [([5, 9, 200, 31], [7, 8, 9]), ([1, 2], [3])]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a corpus, hf and base (one model, as a checkpoint), and other, another base."""
    folder = tmp_path_factory.mktemp("lora")
    write_corpus(folder)
    for name, seed in (("hf", 0), ("hf_other", 1)):
        torch.manual_seed(seed)
        write_hf(folder / name, vocab_size=250, num_hidden_layers=2, max_position_embeddings=64)
    changed = load_file(folder / "hf_other/model.safetensors")
    changed["model.norm.weight"][0] += 1  # the least difference
    from safetensors.torch import save_file

    save_file(changed, folder / "hf_other/model.safetensors", metadata={"format": "pt"})
    for name, source in (("base", "hf"), ("other", "hf_other"), ("same", "hf")):
        hf_to_megatron(folder / source, folder / name, progress=False)
    return folder


def job(world: Path, folder: Path, settings: dict | None, **stage) -> Job:
    """A pre-training with adapters of these settings; without, of all weights."""
    chimed = {"isolate_documents": True} | ({"lora": settings} if settings else {})
    made = Job(folder, None, {"data-path": str(world / "corpus_text_document"), "lr": 1e-2} | stage, chimed)
    made.model = world / "base/model.yaml"
    return made


def start(world: Path, base: str = "base") -> list:
    return ["--load", world / base, "--finetune", "--tokenizer-type", "NullTokenizer"]


@pytest.fixture(scope="module")
def trained(world):
    """Adapters on all linears, in float32, of ten iterations on one rank."""
    made = job(world, world / "job", LORA)
    output = made.run(*start(world), "--save", world / "run", "--train-iters", 6, ranks=1)
    assert "LoRA trains 7,424 of the 101,952 weights of a rank" in output, output[-3000:]
    return world / "run"


def test_it_starts_as_its_base_and_learns(world, trained, tmp_path):
    full = job(world, tmp_path, None)
    full.run(*start(world), "--save", tmp_path / "run", "--train-iters", 1, ranks=1)
    losses = [float(row[1]) for row in figures(trained)]
    assert figures(trained)[0][1] == figures(tmp_path / "run")[0][1]  # all digits
    assert losses[-1] < losses[0] - 0.01


def test_a_checkpoint_holds_the_adapters_and_the_base_stays_as_it_is(world, trained, tmp_path):
    opened = lora.open_checkpoint(trained)
    kept = {name for name in opened.source.tensors if not OPTIMIZER.match(name)}
    assert kept == set(lora.adapter_shapes(opened.model, opened.lora.options))
    assert {name.split(".")[-2] for name in kept} == set(opened.lora.options.targets)
    states = [name for name in opened.source.tensors if OPTIMIZER.match(name)]
    assert states and all("adapters" in name for name in states)
    megatron_to_hf(world / "base", tmp_path / "again", progress=False)
    assert same_bits(weights(world / "hf"), weights(tmp_path / "again"))


def test_interrupted_and_resumed_is_uninterrupted_in_all_digits(world, tmp_path):
    made = job(world, tmp_path, DROPOUT, **HARD)
    made.run(*start(world), "--save", tmp_path / "whole", "--train-iters", 4)
    made.run(*start(world), "--save", tmp_path / "parts", "--train-iters", 2)
    made.run("--tokenizer-type", "NullTokenizer", "--save", tmp_path / "parts", "--train-iters", 4)  # it knows its base
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    opened = [lora.open_checkpoint(tmp_path / name) for name in ("whole", "parts")]
    for name in lora.adapter_shapes(opened[0].model, opened[0].lora.options):
        size = tuple(opened[0].source.tensors[name].size)
        one, other = (each.source.read(name, (0,) * len(size), size) for each in opened)
        assert torch.equal(one, other) and (one != 0).any()


def test_another_base_is_refused_by_its_hash_and_the_same_one_elsewhere_is_not(world, trained, tmp_path):
    made = job(world, tmp_path, LORA)
    shutil.copytree(trained, tmp_path / "run")
    process = made.start(*start(world, "other"), "--save", tmp_path / "run", "--train-iters", 7, ranks=1)
    assert process.wait(240) == 1
    assert "its adapters belong to another base than" in made.output()
    with pytest.raises(InputError, match="not the base of .*: its weights have the hash"):
        lora.open_checkpoint(f"{world / 'other'}+{trained}")
    assert lora.open_checkpoint(f"{world / 'same'}+{trained}").base.folder.parent == world / "same"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 8, "alpha": 8}, "its adapters were trained with rank 4, now 8; keep their settings"),
        ({"rank": 0, "alpha": 8}, "lora: rank is 0; expected more than 0"),
        ({"rank": 4, "alpha": 8, "targets": ["query"]}, "lora: targets are query; expected some of q_proj"),
        ({"rank": 4, "alpha": 8, "dropout": 1.0}, "lora: dropout is 1.0; expected 0 or more, and less than 1"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_settings_that_cannot_be_are_refused_in_one_line(world, trained, tmp_path, settings, message):
    shutil.copytree(trained, tmp_path / "run")
    made = job(world, tmp_path, settings)
    assert made.start(*start(world), "--save", tmp_path / "run", "--train-iters", 7, ranks=1).wait(240) == 1
    assert message in made.output() and "Traceback" not in made.output()


def test_without_a_base_there_is_nothing_to_adapt(world, tmp_path):
    made = job(world, tmp_path, LORA)
    words = ["--tokenizer-type", "NullTokenizer", "--save", tmp_path / "run", "--train-iters", 1]
    assert made.start(*words, ranks=1).wait(240) == 1
    assert "lora: no base is given; give --load with the checkpoint whose weights stay as they are" in made.output()


def test_engines_take_adapters_with_their_base_in_either_form(world, trained, tmp_path):
    megatron_to_hf(trained, tmp_path / "peft", progress=False)
    megatron_to_hf(trained, tmp_path / "merged", merge=True, progress=False)
    shutil.copytree(trained, tmp_path / "moved")
    names = [f"megatron:{trained}", f"megatron:{world / 'same'}+{tmp_path / 'moved'}"]
    names += [f"hf:{world / 'hf'}+{tmp_path / 'peft'}", f"hf:{tmp_path / 'merged'}", f"hf:{world / 'hf'}"]
    found = []
    for name in names:
        with open_engine(name) as engine:
            found.append(torch.tensor([score for score, _ in engine.loglikelihoods(PAIRS)]))
    *adapted, base = found
    assert all(torch.allclose(adapted[0], other, atol=1e-4) for other in adapted[1:]), found
    assert (adapted[0] - base).abs().max() > 0.01
    report = verify.verify(f"{world / 'hf'}+{tmp_path / 'peft'}", trained, tensor_parallel=2)
    assert report.passed, report
    assert not verify.verify(world / "hf", trained).passed


def test_a_comparison_hashes_the_base_once_for_the_command_and_its_ranks(world, trained, tmp_path, monkeypatch):
    """The ranks are not asked to: they load a base that the command takes for the right one."""
    megatron_to_hf(trained, tmp_path / "peft", progress=False)
    expected, hashed = lora.open_checkpoint(trained).lora.sha256, []
    monkeypatch.setattr(lora, "hash_weights", lambda source: hashed.append(source.folder.parent) or expected)
    report = verify.verify(f"{world / 'hf'}+{tmp_path / 'peft'}", f"{world / 'other'}+{trained}", tensor_parallel=2)
    assert hashed == [world / "other"] and report.largest > report.tolerance
    monkeypatch.undo()
    with pytest.raises(InputError, match="not the base of"):
        verify.verify(f"{world / 'hf'}+{tmp_path / 'peft'}", f"{world / 'other'}+{trained}")


@pytest.fixture(scope="module")
def moved(world, trained):
    """(base, adapters): those that were trained, whose base is no longer where they say."""
    megatron_to_hf(trained, world / "moved/peft", progress=False)
    shutil.copytree(world / "base", world / "moved/was")
    hf_to_megatron(world / "moved/peft", world / "moved/adapters", base=world / "moved/was")
    (world / "moved/was").rename(world / "moved/base")
    return world / "moved/base", world / "moved/adapters"


def test_adapters_of_peft_are_the_start_of_a_training_and_their_base_may_have_moved(world, trained, moved, tmp_path):
    base, adapters = moved
    made = job(world, tmp_path, LORA)
    for name, place in (("moved", f"{base}+{adapters}"), ("trained", trained)):
        words = ["--load", place, "--finetune", "--tokenizer-type", "NullTokenizer", "--train-iters", 1]
        made.run(*words, "--save", tmp_path / name, ranks=1)
    first = [figures(tmp_path / name) for name in ("moved", "trained")]
    assert first[0] == first[1] != figures(trained)[:1]
    assert lora.open_checkpoint(tmp_path / "moved").lora.base == str(base)


@pytest.mark.parametrize(
    ("load", "settings", "message"),
    [
        ("{1}", LORA, "its base {2} is not there; give its place, --load BASE+ADAPTER"),
        ("{0}+{0}", LORA, "{0} holds a whole model, no adapters; give one of the two"),
        ("{0}+{1}", None, "holds LoRA's adapters, no whole model; give their lora: in the chimed: block"),
    ],
    ids=["moved", "two bases", "without lora"],
)
def test_a_start_that_is_none_is_refused_in_one_line(world, moved, tmp_path, load, settings, message):
    places = [*moved, world / "moved/was"]
    words = ["--load", load.format(*places), "--finetune", "--tokenizer-type", "NullTokenizer", "--train-iters", 1]
    made = job(world, tmp_path, settings)
    assert made.start(*words, "--save", tmp_path / "run", ranks=1).wait(240) == 1
    assert message.format(*places) in made.output() and "Traceback" not in made.output()
