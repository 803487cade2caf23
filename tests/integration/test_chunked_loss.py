"""The loss in chunks of tokens against that of whole logits: losses, gradients, predictions, on one rank and on two."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from support.job import Job, figures, write_corpus
from support.ranks import WITHOUT, start

CHUNKS = (0, 8, 14, 1, 10**6)
"""Tokens; rows of two samples of 30 positions: chunks of 4 positions, of 7 (the last of 2), of one, of all."""
PLAIN = {"chunks": [*CHUNKS, "control"], "sequence_parallel": False}
CASES = [PLAIN | {"name": name, "tied": tied} for name, tied in (("untied", False), ("tied", True))]
VARIANTS = [
    {"name": "untied fused", "tied": False, "fused": True},
    {"name": "tied fused", "tied": True, "fused": True},
    {"name": "native kernel", "tied": False, "native": True},
    {"name": "frozen", "tied": False, "frozen": True},
    {"name": "bf16", "tied": False, "dtype": "bfloat16", "chunks": [0, 1]},
]
CASES += [{"chunks": [0, 14], "sequence_parallel": False} | one for one in VARIANTS]
SPLIT = [one | {"name": f"{one['name']} split", "sequence_parallel": True} for one in CASES]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{(ranks, case, chunk): tensors of each rank}: two sessions of ranks go through all cases."""
    folder, results = tmp_path_factory.mktemp("chunks"), {}
    for ranks, cases in ((1, CASES), (2, CASES + SPLIT)):
        place = folder / str(ranks)
        place.mkdir()
        session = start([json.dumps(cases), place], ranks, place / "output.txt", "support.chunked_loss_worker")
        assert session.wait(timeout=240) == 0, (place / "output.txt").read_text()[-4000:]
        for case in cases:
            for chunk in case["chunks"]:
                files = (place / f"{case['name']} {chunk} {rank}.safetensors" for rank in range(ranks))
                results[ranks, case["name"], chunk] = [load_file(file) for file in files]
    return results


ALL = [(1, case) for case in CASES] + [(2, case) for case in CASES + SPLIT]
WAYS = [(ranks, case["name"], chunk) for ranks, case in ALL for chunk in case["chunks"] if chunk not in (0, "control")]
LAYOUTS = [(ranks, case["name"]) for ranks, case in ALL if "control" in case["chunks"]]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert one.shape == other.shape and one.dtype == other.dtype
    return ((one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)).item()


def gradients(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if name.startswith("gradient: ")]


@pytest.mark.parametrize(("ranks", "name", "chunk"), WAYS)
def test_losses_and_gradients_are_those_of_whole_logits(found, ranks, name, chunk):
    # In 16 bits hidden states get a gradient that is rounded as often, of sums in another order.
    tolerance = 1e-2 if name.startswith("bf16") else 1e-5
    for chunked, whole in zip(found[ranks, name, chunk], found[ranks, name, 0], strict=True):
        assert apart(chunked["losses"], whole["losses"]) <= 1e-6
        assert apart(chunked["evaluated"], whole["evaluated"]) <= 1e-6
        assert torch.equal(chunked["predicted"], whole["predicted"])
        assert apart(chunked["logits"], whole["logits"]) <= 1e-6, "without labels nothing is in chunks"
        names = gradients(whole)
        assert gradients(chunked) == names and len(names) > 8
        worst = max((apart(chunked[one], whole[one]), one) for one in names)
        assert worst[0] <= tolerance, worst


@pytest.mark.parametrize(("ranks", "name", "chunk"), WAYS)
def test_no_more_positions_than_a_chunk_has_pass_the_output_layer(found, ranks, name, chunk):
    positions = min(30, max(1, chunk // 2))
    calls = -(-30 // positions)
    for tensors in found[ranks, name, chunk]:
        # Two micro batches forward and backward, one evaluation, and logits without a loss.
        sizes = tensors["sizes"].tolist()
        assert max(sizes[:-1]) == positions and sizes[-1] == 30 and len(sizes) == 5 * calls + 1


def twin(tensors: list[dict[str, torch.Tensor]], split: bool) -> dict[str, torch.Tensor]:
    """The same in float64 by torch, from the hidden states and the output weights of all ranks."""
    hidden = torch.cat([one["hidden"] for one in tensors]) if split else tensors[0]["hidden"]
    hidden = hidden.double().requires_grad_()
    weight = torch.cat([one["weight"] for one in tensors]).double().requires_grad_()
    logits = (hidden @ weight.t()).transpose(0, 1)[..., :250]
    labels, mask = tensors[0]["labels"], tensors[0]["mask"]
    losses = -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    (losses * mask).sum().backward()
    predicted = logits.argmax(-1)
    return {"losses": losses.detach(), "hidden": hidden.grad, "weight": 2 * weight.grad, "predicted": predicted}


@pytest.mark.parametrize(("ranks", "name"), LAYOUTS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_slow_obvious_twin_agrees(found, ranks, name, chunk):
    tensors, split = found[ranks, name, chunk], name.endswith("split")
    expected = twin(tensors, split)
    assert expected["losses"].max() - expected["losses"].min() > 1 and (tensors[0]["mask"] == 0).any()
    for one in tensors:
        assert apart(one["losses"].double(), expected["losses"]) <= 1e-6
        assert torch.equal(one["predicted"], expected["predicted"])
    hidden = torch.cat([one["gradient: hidden"] for one in tensors]) if split else tensors[-1]["gradient: hidden"]
    assert apart(hidden.double(), expected["hidden"]) <= 1e-5
    if not name.startswith("tied"):
        weight = torch.cat([one["gradient: output_layer.weight"] for one in tensors])
        assert apart(weight.double(), expected["weight"]) <= 1e-5
        assert not weight[250:].any(), "the padding of the vocabulary is not learnt"


@pytest.mark.parametrize(("ranks", "name"), LAYOUTS)
def test_control_a_chunk_left_out_has_the_same_losses_and_other_gradients(found, ranks, name):
    for chunked, whole in zip(found[ranks, name, "control"], found[ranks, name, 0], strict=True):
        assert torch.equal(chunked["predicted"], whole["predicted"])
        output = "embedding.word_embeddings" if name.startswith("tied") else "output_layer"
        assert apart(chunked[f"gradient: {output}.weight"], whole[f"gradient: {output}.weight"]) > 1e-2
    pairs = zip(found[ranks, name, "control"], found[ranks, name, 0], strict=True)
    assert max(apart(one["gradient: hidden"], other["gradient: hidden"]) for one, other in pairs) > 1e-2


def test_in_16_bits_the_gradient_of_the_output_weight_is_rounded_as_often_as_with_whole_logits(found):
    for ranks in (1, 2):
        expected = twin(found[ranks, "bf16", 0], split=False)["weight"]
        weights = (torch.cat([one["gradient: output_layer.weight"] for one in found[ranks, "bf16", n]]) for n in (0, 1))
        errors = [((weight.double() - expected).square().mean().sqrt() / expected.std()).item() for weight in weights]
        assert 1e-4 < errors[1] < 1.2 * errors[0] < 0.02, errors


def test_a_frozen_output_layer_gets_no_gradient(found):
    for ranks, chunk in itertools.product((1, 2), (0, 14)):
        assert not found[ranks, "frozen", chunk][0]["gradient: output_layer.weight"].any()


LAYOUT = ["--tensor-model-parallel-size", 2, "--sequence-parallel", "--use-distributed-optimizer"]
PIPELINE = ["--pipeline-model-parallel-size", 2, "--recompute-granularity", "full", "--recompute-method", "uniform"]
PIPELINE += ["--recompute-num-layers", 1]


def train(folder, chunk: int, layout: list, **model) -> list[list[tuple[float, float]]]:
    """[(loss, gradient norm)] of the iterations of a short training, and of its evaluations."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    stage = {"data-path": str(write_corpus(corpus)), "train-iters": 6, "eval-interval": 3}
    job = Job(folder, model, stage, {"cross_entropy_chunk_tokens": chunk})
    job.run("--save", folder / "run", *layout)
    rows = (figures(folder / "run", split) for split in ("train", "valid"))
    return [[(float(value), float(norm or 0)) for _, value, norm in split] for split in rows]


@pytest.mark.parametrize("layout", [LAYOUT, PIPELINE], ids=["TP2-SP", "PP2"])
def test_a_training_has_the_losses_and_gradient_norms_of_whole_logits(tmp_path, layout):
    tied = {"untie-embeddings-and-output-weights": False}
    whole, chunked = (train(tmp_path / str(chunk), chunk, layout, **tied) for chunk in (0, 48))
    for one, other in zip(whole, chunked, strict=True):
        assert len(one) == len(other) >= 2
        assert [value for row in other for value in row] == pytest.approx([v for row in one for v in row], rel=1e-5)
    assert whole[0][-1][0] < 0.99 * whole[0][0][0], "it learns"


def test_control_without_the_gradient_of_the_output_weight_a_training_goes_another_way(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", 0, LAYOUT)[0]
    monkeypatch.setenv(WITHOUT, "models.chunked_loss:_WeightGradient.result")
    chunked = train(tmp_path / "chunked", 48, LAYOUT)[0]
    assert chunked[0][0] == pytest.approx(whole[0][0], rel=1e-6)
    assert chunked[0][1] != pytest.approx(whole[0][1], rel=1e-2)
    assert chunked[-1][0] != pytest.approx(whole[-1][0], rel=1e-3)


def test_a_chunk_of_fewer_tokens_than_none_is_refused_in_a_line(tmp_path):
    job = Job(tmp_path, None, {"data-path": "none"}, {"cross_entropy_chunk_tokens": -1})
    process = job.start("--save", tmp_path / "run", ranks=1)
    assert process.wait(timeout=120) != 0
    message = "cross_entropy_chunk_tokens is -1; expected 0 (all at once) or more"
    assert message in job.output() and "Traceback" not in job.output()
