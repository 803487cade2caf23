"""A process of test_inference.py: trains a small model with dropout, with and without generations between its steps,
and prints as JSON whether the losses are the same."""

import json

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.inference.utils import InferenceMode

from megatron_chimed.inference import decode
from megatron_chimed.inference.request import Request, SamplingParams
from support.model_worker import VOCAB, build

REQUESTS = [
    Request([1, 2, 3], SamplingParams(6, seed=1, top_p=0.9)),
    Request(list(range(9)), SamplingParams(4, seed=2)),
    Request([1, 2, 3], SamplingParams(5, seed=3)),
]


def generate(model) -> list[list[int]]:
    done = decode.generate(model, REQUESTS, [0], num_ids=VOCAB - 6, max_positions=512)
    return [sample.tokens for sample in done]


def losses(between) -> list[float]:
    """Of three steps, calling between(model) after each."""
    torch.manual_seed(3)
    tensor_parallel.model_parallel_cuda_manual_seed(4, force_reset_rng=True)
    model = build(True, attention_dropout=0.2, hidden_dropout=0.2)
    model.embedding.eval()  # a part that is not in training stays so
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(VOCAB, (2, 33), generator=torch.Generator().manual_seed(5))
    found = []
    for _ in range(3):
        logits = model(tokens[:, :-1], torch.arange(32).expand(2, -1), None)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
        between(model)
    return found


def check_left_alone(model) -> None:
    """Generate, and hold that the model is as before."""
    modes = [module.training for module in model.modules()]
    names, rng = [name for name, _ in model.named_modules()], torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor is not None}
    one, other = generate(model), generate(model)
    assert one == other and len({len(tokens) for tokens in one}) > 1
    assert modes == [module.training for module in model.modules()] and True in modes and False in modes
    assert names == [name for name, _ in model.named_modules()]
    assert torch.equal(rng, torch.get_rng_state()) and not InferenceMode.is_active()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


def check_listeners(model) -> None:
    """Hold that a module which something listens to is called for each token, and all say the same."""
    expected, layer = generate(model), model.decoder.layers[0]
    steps = max(len(tokens) for tokens in expected)
    for module in (layer, layer.self_attention, layer.self_attention.linear_qkv, layer.mlp.linear_fc2, model.decoder):
        calls: list[int] = []
        handle = module.register_forward_hook(lambda *call, calls=calls: calls.append(1))
        assert generate(model) == expected and len(calls) == steps, (type(module), len(calls), steps)
        handle.remove()


def main() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    alone = losses(lambda model: None)
    figures = {
        "generation": losses(generate) == alone,
        "left_alone": losses(check_left_alone) == alone,
        "listeners": losses(check_listeners) == alone,
        "control_global_draw": losses(lambda model: torch.rand(1)) == alone,
        "control_eval": losses(lambda model: model.eval()) == alone,
        "weights_move": len(set(alone)) == 3,
    }
    print("FIGURES " + json.dumps(figures))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
