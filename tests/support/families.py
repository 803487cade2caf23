"""Small models of every family for tests, made by transformers, and what transformers computes with them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from megatron_chimed.convert.families import of_architecture
from megatron_chimed.datasets.pretrain import PretrainDatasetConfig, build_pretrain_datasets

CONFIG = {
    "vocab_size": 103,  # a prime: every tensor-parallel size needs padding
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 |= {"low_freq_factor": 1.5, "high_freq_factor": 3.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 28, "norm_topk_prob": True}
UNUSUAL = YARN | {"attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False}

CASES = {
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True, "vocab_size": 151}),
    "qwen2 one group, yarn": ("Qwen2", {"num_key_value_heads": 1, "rope_scaling": YARN}),
    "qwen2 reward": ("Qwen2", {"reward": True}),
    "qwen3 head size of its own": ("Qwen3", {"head_dim": 20}),
    "qwen3 tied, yarn": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "rope_scaling": YARN}),
    "qwen3 reward": ("Qwen3", {"head_dim": 16, "reward": True}),
    "qwen3_moe odd head size": ("Qwen3Moe", EXPERTS | {"head_dim": 22}),
    "qwen3_moe one group, tied, scores as they are": (
        "Qwen3Moe",
        EXPERTS | {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True, "norm_topk_prob": False},
    ),
    "qwen3_moe reward": ("Qwen3Moe", EXPERTS | {"head_dim": 16, "reward": True}),
    "mistral odd head size": ("Mistral", {"head_dim": 22, "sliding_window": None}),
    "mistral reward": ("Mistral", {"reward": True, "sliding_window": None, "tie_word_embeddings": True}),
    "llama yarn of other constants": ("Llama", {"rope_scaling": UNUSUAL, "num_key_value_heads": 4}),
    "llama llama3 of other constants": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "llama tied, odd head size": ("Llama", {"tie_word_embeddings": True, "head_dim": 22}),
    "llama linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
}
"""{name: (class of transformers, changes to CONFIG)}."""

LENGTHS = (7, 20, 13)
"""Documents of the packed row."""
LEARNT = 0.6
"""Share of the tokens of a document that are learnt: its last ones, as an answer's."""
PROMPT, NEW = 24, 8


def has_experts(name: str) -> bool:
    """Whether a case's layers have experts."""
    return CASES[name][0].endswith("Moe")


def has_gradients(layout: str, experts: bool) -> bool:
    """Whether a model is trained in a layout: Megatron has no experts with tensor, but without sequence parallelism."""
    return not (experts and layout == "TP 2")


def config_of(name: str) -> dict:
    """The config.json of a case, as little of it as there can be."""
    kind, changes = CASES[name]
    changes = dict(changes)
    architecture = kind + ("ForSequenceClassification" if changes.pop("reward", False) else "ForCausalLM")
    family, _ = of_architecture(architecture)
    return CONFIG | {"architectures": [architecture], "model_type": family.name} | changes


def make_model(name: str, changes: dict, seed: int = 0) -> torch.nn.Module:
    """A random model of transformers, float32; weights large enough for logits that tell models apart."""
    import transformers

    changes = CONFIG | changes
    reward = changes.pop("reward", False)
    head, more = ("ForSequenceClassification", {"num_labels": 1, "pad_token_id": 0}) if reward else ("ForCausalLM", {})
    config = getattr(transformers, f"{name}Config")(**changes, **more)
    model = getattr(transformers, f"{name}{head}")(config)
    draw = torch.Generator().manual_seed(seed)
    for weight, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in weight else 0.0, 0.2, generator=draw)
    return model.eval()


def make_batch(vocab: int) -> dict[str, torch.Tensor]:
    """tokens [2, 40] for logits; packed [1, 40] of documents of LENGTHS with positions, labels and loss_mask."""
    draw = torch.Generator().manual_seed(1)
    total = sum(LENGTHS)
    mask = torch.cat([torch.arange(length) >= (1 - LEARNT) * length for length in LENGTHS])
    return {
        "tokens": torch.randint(1, vocab, (2, total), generator=draw),
        "packed": torch.randint(1, vocab, (1, total), generator=draw),
        "positions": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "labels": torch.randint(1, vocab, (1, total), generator=draw),
        "loss_mask": mask.float()[None],
    }


def expected(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], trained_only: bool = False
) -> dict[str, torch.Tensor]:
    """What transformers computes: "outputs", logits [2, 40, vocab] or rewards [2]; "generated" [2, NEW], greedily, of
    the first PROMPT tokens; "gradient of NAME" for every weight, of the mean loss of the packed documents.

    The loss of a reward model is the sum of the documents' rewards, each times its number, over the tokens.
    """
    documents = [batch[name].split(LENGTHS, dim=1) for name in ("packed", "labels", "loss_mask")]
    model.zero_grad()
    if hasattr(model, "score"):
        with torch.no_grad():
            results = {"outputs": model(batch["tokens"]).logits[:, 0]}
        for number, tokens in enumerate(documents[0]):
            ((number + 1) * model(tokens).logits[0, 0] / sum(LENGTHS)).backward()
    else:
        with torch.no_grad():
            results = {"outputs": model(batch["tokens"]).logits, "generated": continue_greedily(model, batch["tokens"])}
        for tokens, labels, mask in zip(*documents, strict=True):
            nll = torch.nn.functional.cross_entropy(model(tokens).logits[0], labels[0], reduction="none")
            ((nll * mask[0]).sum() / batch["loss_mask"].sum()).backward()
    named = [(name, one.grad) for name, one in model.named_parameters() if one.requires_grad or not trained_only]
    gradients = {f"gradient of {name}": gradient for pair in named for name, gradient in stored_as(*pair)}
    return {name: tensor.detach().contiguous() for name, tensor in (results | gradients).items()}


def stored_as(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of the tensors that a weight is in a folder: transformers joins experts when it loads them."""
    folder, _, last = name.rpartition(".")
    if last not in ("gate_up_proj", "down_proj"):
        yield name, tensor
        return
    for number, expert in enumerate(tensor):
        parts = ("down_proj",) if last == "down_proj" else ("gate_proj", "up_proj")
        for part, rows in zip(parts, expert.chunk(len(parts)), strict=True):
            yield f"{folder}.{number}.{part}.weight", rows


def continue_greedily(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The NEW most likely tokens [2, NEW] behind the first PROMPT ones, each by a pass over all, without a cache."""
    tokens = tokens[:, :PROMPT]
    for _ in range(NEW):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens[:, PROMPT:]


def reference_loss(hf, prefix, length: int = 64) -> float:
    """Loss by transformers on the first batch of a training with rows of so many tokens."""
    from transformers import AutoModelForCausalLM

    config = PretrainDatasetConfig(random_seed=7, sequence_length=length, blend=([str(prefix)], None), split="80,20,0")
    dataset = build_pretrain_datasets(config, (4, 0, 0))[0]
    samples = [dataset[number] for number in range(4)]
    tokens, labels, mask = (
        torch.from_numpy(np.stack([np.asarray(s[k]) for s in samples])) for k in ("tokens", "labels", "loss_mask")
    )
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(hf)(tokens.long()).logits
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten().long(), reduction="none")
    return (nll * mask.flatten()).sum().item() / mask.sum().item()


def write_case(folder: Path, name: str) -> torch.nn.Module:
    """Write the Hugging Face folder of a case; its model."""
    model = make_model(*CASES[name])
    model.save_pretrained(folder)
    return model
