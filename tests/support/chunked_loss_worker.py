"""One rank of tests/integration/test_chunked_loss.py: small models whose loss is computed in chunks and whole.

argv: a JSON list of cases (see `answer`) and the folder for what is computed, a file of tensors for each case and way.
"""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import layers
from safetensors.torch import save_file

from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.families import LLAMA
from megatron_chimed.convert.model import gpt_config
from megatron_chimed.convert.sizes import Sizes
from megatron_chimed.models import chunked_loss
from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.models.options import ModelOptions
from megatron_chimed.models.prediction import last_predictions, record_argmax

VOCAB, PADDED, LENGTH, BATCH, HIDDEN = 250, 256, 30, 2, 32
SIZES = Sizes(layers=1, hidden=HIDDEN, ffn=64, heads=4, num_query_groups=2, head_dim=8, vocab=VOCAB)
Tensors = dict[str, torch.Tensor]


def build(case: dict, chunk: int) -> torch.nn.Module:
    """This rank's model, with the same weights for any chunk; case: tied, sequence_parallel, dtype, fused,
    native, frozen."""
    architecture = Architecture(LLAMA, "lm", case["tied"], SIZES, 1e-5, 64)
    changes = {"sequence_parallel": case["sequence_parallel"], "gradient_accumulation_fusion": case.get("fused", False)}
    changes |= {"cross_entropy_loss_fusion": case.get("native", False), "perform_initialization": True}
    groups = ProcessGroupCollection.use_mpu_process_groups()
    torch.manual_seed(0)
    model = build_gpt(
        ModelOptions(cross_entropy_chunk_tokens=chunk),
        gpt_config(architecture, getattr(torch, case.get("dtype", "float32")), gather_logits=False, **changes),
        vocab_size=PADDED,
        pre_process=True,
        post_process=True,
        pg_collection=groups,
    )
    record_argmax(model, groups.tp)
    output = output_weight(model)
    output.data.mul_(20)  # losses that differ from token to token
    output.requires_grad_(not case.get("frozen", False))
    return model.train()


def output_weight(model: torch.nn.Module) -> torch.nn.Parameter:
    """The output layer's weight, which is the embedding's where they are tied."""
    own = model.output_layer.weight
    return model.shared_embedding_or_output_weight() if own is None else own


class Fused:
    """In the place of apex's kernel: adds a product to the buffer of gradients."""

    @staticmethod
    def wgrad_gemm_accum_fp32(states: torch.Tensor, gradient: torch.Tensor, buffer: torch.Tensor) -> None:
        buffer += gradient.float().t() @ states.float()


def batch() -> Tensors:
    """Tokens, labels, positions and mask [b, s]; a third of the tokens is not learnt."""
    draw = torch.Generator().manual_seed(1)
    tokens, labels = torch.randint(VOCAB, (2, BATCH, LENGTH), generator=draw)
    mask = (torch.rand(BATCH, LENGTH, generator=draw) > 1 / 3).float()
    return {"tokens": tokens, "labels": labels, "mask": mask, "positions": torch.arange(LENGTH).expand(BATCH, -1)}


def note_what_passes(model: torch.nn.Module) -> tuple[Tensors, list[int]]:
    """(The hidden states that the output layer is given, positions of each call of it), filled by the next passes."""
    kept, sizes = {}, []

    def keep(module, inputs, output):
        if output.requires_grad:
            output.retain_grad()
            kept["hidden"] = output

    model.decoder.register_forward_hook(keep)
    model.output_layer.register_forward_hook(lambda module, inputs, outputs: sizes.append(outputs[0].size(0)))
    return kept, sizes


def compute(model: torch.nn.Module) -> Tensors:
    """Losses, predictions, and gradients of two micro batches, of all weights and of the output layer's input."""
    data, (kept, sizes) = batch(), note_what_passes(model)
    inputs = data["tokens"], data["positions"], None
    for parameter in model.parameters():
        parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)
        parameter.grad_added_to_main_grad = False
    for _ in range(2):
        losses = model(*inputs, labels=data["labels"])
        (losses * data["mask"]).sum().backward()
    predicted = last_predictions(model)
    results = {"losses": losses.detach(), "predicted": predicted, "hidden": kept["hidden"].detach()}
    results |= {"gradient: hidden": kept["hidden"].grad, "mask": data["mask"]}
    results |= {f"gradient: {name}": gradient(parameter) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        results["evaluated"] = model.eval()(*inputs, labels=data["labels"])
        results["logits"] = model(*inputs, runtime_gather_output=True)
    results["weight"] = output_weight(model)
    return results | {"labels": data["labels"], "sizes": torch.tensor(sizes)}


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What Megatron's gradient buffers make of a weight's two gradients; 0 for a frozen weight."""
    if parameter.grad is None:
        return parameter.main_grad
    both = not parameter.grad_added_to_main_grad or getattr(parameter, "zero_out_wgrad", False)
    return parameter.main_grad + parameter.grad if both else parameter.main_grad


def forget_a_chunk(self, head, states, labels, upstream, add=chunked_loss._WeightGradient.add) -> torch.Tensor:
    """The control: the second chunk of a backward pass gives no gradient."""
    self.calls = getattr(self, "calls", 0) + 1
    return add(self, head, states, labels, upstream * (self.calls != 2))


def answer(case: dict, folder: Path) -> None:
    """case: name, chunks (0 is whole; "control" is chunks of 8 of which one is left out) and what `build` takes."""
    for chunk in case["chunks"]:
        with contextlib.ExitStack() as stack:
            if chunk == "control":
                stack.enter_context(mock.patch.object(chunked_loss._WeightGradient, "add", forget_a_chunk))
            results = compute(build(case, 8 if chunk == "control" else chunk))
        rank = torch.distributed.get_rank()
        results = {name: tensor.detach().contiguous().clone() for name, tensor in results.items()}
        save_file(results, folder / f"{case['name']} {chunk} {rank}.safetensors")


def main() -> None:
    layers.fused_weight_gradient_mlp_cuda, layers._grad_accum_fusion_available = Fused, True
    cases, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(torch.distributed.get_world_size())
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    for case in cases:
        answer(case, folder)
    torch.distributed.destroy_process_group()
