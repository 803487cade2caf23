"""Compare a Hugging Face folder with a Megatron checkpoint: the same tokens through transformers and Megatron."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_chimed.checkpoints import split_adapter
from megatron_chimed.convert.architecture import Architecture, read_hf
from megatron_chimed.convert.lora import Opened, open_checkpoint
from megatron_chimed.convert.plan import DTYPES
from megatron_chimed.convert.stored import peft_head
from megatron_chimed.convert.transformers_model import load_model
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json
from megatron_chimed.workers import count_cores

TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest absolute difference of a logit, by the type of the arithmetic. In bfloat16 it is relative to the largest
logit: the type has 8 bits, and the two sides round at different places."""

CONTROL_FACTOR = 10
"""The control must exceed the tolerance by this, or the comparison could not have shown a fault."""

ROWS, LENGTH, PROMPT = 2, 64, 8
REWARDED = (64, 40, 17, 9)
"""Lengths of the sequences whose rewards are compared, together in one padded batch."""


@dataclass(frozen=True)
class Report:
    """Figures of one comparison; differences are absolute, of logits [rows, length, vocab] or rewards [rows]."""

    head: str

    dtype: str
    tolerance: float
    largest: float
    mean: float
    agreeing: int | None
    """Positions whose most likely next token is the same; None for a reward model."""

    positions: int
    generated: tuple[int, int] | None
    """(equal, all) tokens of greedy continuations; None when not asked for."""

    control: float
    """Largest difference of the conversion without the interleaving of query, key and value."""

    @property
    def passed(self) -> bool:
        """Whether the two are one model, and the check could have seen that they are not."""
        same_text = self.dtype != "float32" or self.generated is None or self.generated[0] == self.generated[1]
        return self.largest <= self.tolerance and same_text and self.control_failed

    @property
    def control_failed(self) -> bool:
        """Whether the wrong conversion was found out."""
        return self.control > CONTROL_FACTOR * self.tolerance


def verify(
    hf: str | Path,
    megatron: str | Path,
    *,
    iteration: int | None = None,
    tensor_parallel: int = 1,
    dtype: str = "float32",
    generate: int = 0,
) -> Report:
    """Compare the Hugging Face folder `hf` with a checkpoint in the Megatron folder `megatron`.

    dtype: of the arithmetic, float32 or bfloat16, whatever the weights are stored in. generate: also compare greedy
    continuations of so many tokens. Needs the memory of the model, on one side at a time.

    Raises InputError when one side cannot be read or gives no numbers, or their architectures differ.
    """
    opened = open_checkpoint(megatron, iteration)
    place, model = opened.source.folder, same_architecture(hf, opened)
    if problems := model.sizes.problems(tensor_parallel):
        raise InputError(f"--tensor-parallel {tensor_parallel}: " + "; ".join(problems))
    if model.head == "reward" and generate:
        raise InputError(f"{hf}: a reward model, which generates nothing; leave --generate out")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = str(place) if opened.base is None else f"{opened.base.folder}+{place}"
        request = {"checkpoint": asked, "dtype": dtype, "generate": generate}
        write_json(folder / "request.json", request)
        if model.head == "reward":
            tokens, expected = _rewards_by_transformers(hf, model, DTYPES[dtype])
        else:
            tokens, expected = _by_transformers(hf, model, DTYPES[dtype], generate)
        save_file(tokens, folder / "tokens.safetensors")
        found = _by_megatron(folder, tensor_parallel)
    for name, side in ((hf, expected), (place, found)):
        if not torch.isfinite(side["outputs"]).all():
            raise InputError(f"{name}: its outputs are no numbers; its weights hold NaN or infinity, take other ones")
    return _report(model.head, dtype, expected, found)


def same_architecture(hf: str | Path, opened: Opened) -> Architecture:
    """Read the architecture of both, which may have families of two names. Raises InputError listing what differs."""
    adapter, base = split_adapter(hf)
    ours, theirs, place = read_hf(base or adapter), opened.model, opened.source.folder
    if base is not None:  # the adapters have the head
        ours = dataclasses.replace(ours, head=peft_head(adapter))
    if ours.head != theirs.head:
        raise InputError(f"{hf} and {place}: one is a reward model, the other is not; give two of a kind")
    if ours.family.body == theirs.family.body and ours.family.fixed_args == theirs.family.fixed_args:
        theirs = dataclasses.replace(theirs, family=ours.family)  # they differ in their names alone
    one, other = (vars(model) | {"family": model.family.title} for model in (ours, theirs))
    differences = [f"{key} is {one[key]}, and {other[key]}" for key in one if one[key] != other[key]]
    if differences:
        raise InputError(f"{hf} and {place} are different models: " + "; ".join(differences))
    return ours


Tensors = dict[str, torch.Tensor]


def _draw(model: Architecture, rows: int, length: int) -> torch.Tensor:
    """Draw random ids [rows, length], int64."""
    return torch.randint(model.sizes.vocab, (rows, length), generator=torch.Generator().manual_seed(0))


def _rewards_by_transformers(hf: str | Path, model: Architecture, dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    """Compute (tokens [b, s] and lengths [b]; outputs, their rewards [b] float32 in one batch). Raises InputError."""
    reference = load_model(hf, "AutoModelForSequenceClassification", dtype)
    lengths = torch.tensor(REWARDED).clamp(max=model.max_positions)
    tokens, pad = _draw(model, len(lengths), int(lengths.max())), reference.config.pad_token_id
    if pad is None:  # then transformers scores the last token, whatever it is
        lengths = torch.full_like(lengths, tokens.size(1))
        rows = tokens.split(1)
    else:
        tokens[tokens == pad] = (pad + 1) % model.sizes.vocab
        tokens[torch.arange(tokens.size(1)) >= lengths[:, None]] = pad
        rows = [tokens]
    with torch.no_grad():
        rewards = torch.cat([reference(row, attention_mask=torch.ones_like(row)).logits[:, 0] for row in rows])
    return {"tokens": tokens, "lengths": lengths}, {"outputs": rewards.float()}


def _by_transformers(hf: str | Path, model: Architecture, dtype: torch.dtype, generate: int) -> tuple[Tensors, Tensors]:
    """Compute (tokens [b, s] and prompts [b, PROMPT]; outputs, their logits [b, s, vocab], and generated).

    generated: [b, generate], int64 as all tokens; logits are float32. Raises InputError.
    """
    reference = load_model(hf, "AutoModelForCausalLM", dtype)
    tokens = _draw(model, ROWS, max(1, min(LENGTH, model.max_positions - generate)))
    with torch.no_grad():
        results = {"outputs": reference(tokens).logits.float()}
        if generate:
            prompts = tokens[:, :PROMPT]
            reference.generation_config.eos_token_id = None  # both sides go on for as long as they are asked to
            reference.generation_config.pad_token_id = 0
            whole = reference.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=generate
            )
            results["generated"] = whole[:, prompts.size(1) :]
    return {"tokens": tokens, "prompts": tokens[:, :PROMPT].contiguous()}, results


def _by_megatron(folder: Path, ranks: int) -> Tensors:
    """Compute the same and "control", by `ranks` processes with Megatron. Raises InputError with a failure's reason."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "megatron_chimed.convert.verify_worker", str(folder)]
    threads = str(max(1, count_cores() // ranks))
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads, "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        faults = [line for line in done.stderr.splitlines() if "Error" in line and "ChildFailed" not in line]
        raise InputError(f"Megatron could not load it: {(faults or ['no reason given'])[0].strip()[:300]}")
    return load_file(folder / "megatron.safetensors")


def _report(head: str, dtype: str, expected: Tensors, found: Tensors) -> Report:
    """Make the figures of two sets of results, both of `_by_transformers`' or `_rewards_by_transformers`' shapes."""
    outputs = expected["outputs"]
    scale = outputs.abs().max().item() if dtype == "bfloat16" else 1.0
    difference = (outputs - found["outputs"]).abs()
    agreeing = None
    if head == "lm":
        agreeing = outputs.argmax(-1).eq(found["outputs"].argmax(-1)).sum().item()
    generated = None
    if "generated" in expected:
        generated = (expected["generated"].eq(found["generated"]).sum().item(), found["generated"].numel())
    return Report(
        head=head,
        dtype=dtype,
        tolerance=TOLERANCES[dtype] * scale,
        largest=difference.max().item(),
        mean=difference.mean().item(),
        agreeing=agreeing,
        positions=outputs.shape[:2].numel(),
        generated=generated,
        control=(outputs - found["control"]).abs().max().item(),
    )
