"""One rank of test_model.py: builds small models with our layers and Megatron's own, and prints figures as JSON."""

import json
import sys

import torch
import torch.nn.functional as F

from megatron_chimed.backend import cpu

cpu.install()

from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402

from megatron_chimed.models.branches import describe_row  # noqa: E402
from megatron_chimed.models.gpt import layer_spec  # noqa: E402
from megatron_chimed.models.prediction import vocabulary_argmax  # noqa: E402

VOCAB, LENGTHS = 256, (30, 1, 49, 20)


def build(own: bool, groups: int = 2, tied: bool = False, **changes) -> GPTModel:
    """A four-head model with our layer specification, or with Megatron's local one."""
    config = TransformerConfig(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_query_groups=groups,
        ffn_hidden_size=128,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        transformer_impl="local",
        tensor_model_parallel_size=torch.distributed.get_world_size(),
        **({"attention_dropout": 0.0, "hidden_dropout": 0.0} | changes),
    )
    spec = layer_spec(config, "auto") if own else get_gpt_layer_local_spec(normalization="RMSNorm")
    torch.manual_seed(0)
    return GPTModel(
        config,
        spec,
        VOCAB,
        512,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=tied,
        parallel_output=False,
    )


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def compare_layers(groups: int, tied: bool) -> dict[str, float]:
    """Our layers against Megatron's local ones: dense, packed against separate, and the control without boundaries."""
    own, local = build(True, groups, tied), build(False, groups, tied)
    own.load_state_dict(local.state_dict())
    tokens = torch.randint(VOCAB, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    labels = tokens.roll(-1)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    dense = largest(own(tokens, positions, None), local(tokens, positions, None))
    separate = [
        local(document, torch.arange(document.size(1))[None], None) for document in tokens.split(LENGTHS, dim=1)
    ]
    together = own(tokens, positions, None, packed_seq_params=describe_row(positions))
    unmasked = own(tokens, positions, None)

    F.cross_entropy(together[0], labels[0], reduction="sum").backward()
    for logits, label in zip(separate, labels.split(LENGTHS, dim=1), strict=True):
        F.cross_entropy(logits[0], label[0], reduction="sum").backward()
    gradients = max(
        largest(p.grad, q.grad) / max(1.0, q.grad.abs().max().item())
        for p, q in zip(own.parameters(), local.parameters(), strict=True)
    )
    return {
        "dense": dense,
        "packed": largest(together, torch.cat(separate, dim=1)),
        "packed_gradients": gradients,
        "unmasked": largest(unmasked, torch.cat(separate, dim=1)),
    }


def dropout_masks() -> dict[str, bool]:
    """Hidden dropout must agree on all tensor-parallel ranks, attention dropout (of different heads) must not."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = build(True, attention_dropout=0.5, hidden_dropout=0.5)
    tokens = torch.arange(40)[None]
    first = model(tokens, tokens, None)
    second = model(tokens, tokens, None)
    outputs = [torch.empty_like(first) for _ in range(world)]
    torch.distributed.all_gather(outputs, first.contiguous())
    attention = model.decoder.layers[0].self_attention.core_attention
    query = torch.ones(40, 1, 4 // world, 16)  # the same on every rank
    attended = attention(query, query, query, None).contiguous()
    others = [torch.empty_like(attended) for _ in range(world)]
    torch.distributed.all_gather(others, attended)
    states = tensor_parallel.get_cuda_rng_tracker().get_states()
    saved, generator = {name: state.clone() for name, state in states.items()}, torch.get_rng_state()
    third = model(tokens, tokens, None)
    tensor_parallel.get_cuda_rng_tracker().set_states(saved)
    torch.set_rng_state(generator)
    return {
        "ranks_agree": all(torch.equal(outputs[rank], other) for other in outputs),
        "draws_differ": not torch.equal(first, second),
        "restored": torch.equal(third, model(tokens, tokens, None)),
        "heads_differ": world == 1 or not torch.equal(others[0], others[1]),
    }


def argmax_agrees() -> bool:
    """The most likely ids of logits that are spread over the ranks against those of the whole."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    logits = torch.randn(7, 3, 32, generator=torch.Generator().manual_seed(2))
    found = vocabulary_argmax(logits.chunk(world, dim=-1)[rank], parallel_state.get_tensor_model_parallel_group())
    return torch.equal(found, logits.argmax(-1).T)


def main() -> None:
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=torch.distributed.get_world_size())
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    figures = {
        "gqa": compare_layers(groups=2, tied=False),
        "mha": compare_layers(groups=4, tied=True),
        "dropout": dropout_masks(),
        "argmax": argmax_agrees(),
    }
    if torch.distributed.get_rank() == 0:
        print("FIGURES " + json.dumps(figures))
    sys.stdout.flush()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
