"""What pairs share at their beginning is read once by transformers' models too, and every figure is that of the pair
alone."""

import random

import pytest
import torch
import transformers

from megatron_chimed.inference import hf_engine
from megatron_chimed.inference.hf_engine import HuggingFaceEngine, reads_rows

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS),
}


def open_model(folder, config: str, **more) -> HuggingFaceEngine:
    """An engine over a small model of random weights, large enough that the order of tokens matters."""
    torch.manual_seed(1)
    made = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**SIZES, initializer_range=0.3, **more)
    )
    made.save_pretrained(folder)
    return HuggingFaceEngine(folder, "float32")


def questions() -> list[tuple[list[int], list[int]]]:
    """Six examples in front of each of three questions, with options of one token and of several; and two others."""
    draw = random.Random(0)

    def text(length: int) -> list[int]:
        return [draw.randrange(64) for _ in range(length)]

    examples = text(90)
    asked = [examples + text(9) for _ in range(3)]
    pairs = [(one, text(length)) for one in asked for length in (1, 1, 4, 6)]
    return [*pairs, (text(5), text(3)), (text(30), text(2))]


def alone(engine: HuggingFaceEngine, pairs) -> list[tuple[float, bool]]:
    """The same, each pair in a call of its own."""
    return [engine.loglikelihoods([pair])[0] for pair in pairs]


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_that_begin_alike_score_as_they_do_alone(tmp_path, family, monkeypatch):
    config, more = FAMILIES[family]
    engine, pairs, read = open_model(tmp_path, config, **more), questions(), []
    forward = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda ids, **more: read.append(ids.numel()) or forward(ids, **more))
    together = engine.loglikelihoods(pairs)
    tokens = sum(read)
    separate = alone(engine, pairs)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in separate]
    assert [score for score, _ in together] == pytest.approx([score for score, _ in separate], abs=1e-4)
    assert 5 * tokens < sum(read) - tokens, "the examples are read once"
    # Control: with a mask that lets a sequence see all that stands before it, the figures are others.
    monkeypatch.setattr(hf_engine, "sees", lambda row: torch.ones(len(row.tokens), len(row.tokens)).tril().bool())
    leaking = engine.loglikelihoods(pairs)
    assert max(abs(a - b) for (a, _), (b, _) in zip(leaking, separate, strict=True)) > 0.1


@pytest.mark.parametrize("config, more", [("MistralConfig", {"sliding_window": 16}), ("GPT2Config", {})])
def test_a_model_that_such_a_mask_would_mislead_reads_each_pair_alone(tmp_path, config, more):
    engine, pairs = open_model(tmp_path, config, **more), questions()
    assert not reads_rows(engine.model)
    found, expected = engine.loglikelihoods(pairs), alone(engine, pairs)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
