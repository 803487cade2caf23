"""Rank 0 of the real trainer on the real configuration, in one CPU process that takes itself for one of many.

Megatron's fake process group stands in for all other ranks: what they would send is never waited for. So the losses
mean nothing; arguments, sizes, files and data sets are those of the job. The model is scaled down in layers and width,
and a step to one micro batch; what divides at full size is checked by arithmetic first.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoints import require_loadable, split_adapter
from megatron_chimed.config import RunConfig
from megatron_chimed.errors import InputError
from megatron_chimed.plan import memory
from megatron_chimed.plan.layout import Layout, problems
from megatron_chimed.plan.model import Model
from megatron_chimed.plan.settings import Plan, change_settings, read_plan
from megatron_chimed.plan.stand_in import DATA, missing_tokenizer, tokenizer_note, write_corpus

PATIENCE = 600  # seconds
ERROR, RESULT = "megatron_chimed: error: ", "dry run: "
LEFT_OUT = ("load", "finetune", "save", "transformer-impl", "distributed-backend", "rampup-batch-size")
"""Settings that the dry run does without: it reads and writes no checkpoint, and has no GPU."""


def dry_run(
    plan: Plan,
    settings: RunConfig,
    words: list[str],
    *,
    layers: int | None = None,
    width: int | None = None,
    skip_load: bool = False,
    skip_data: bool = False,
) -> str:
    """One step of rank 0 of `plan.layout.gpus`; what was scaled, and the bytes that it allocated against the plan's.

    words: the stage's name, the two YAML files and the overrides, as the trainer takes them. layers, width: of the
    scaled model; by default as small as the layout allows. skip_load: do not ask for the checkpoint of --load, nor for
    the tokenizer of the YAML where vocab-size stands there too. skip_data: train on a corpus that
    is made up, in stage pretrain.
    Raises InputError with what the trainer refuses, and when the bytes differ.
    """
    if found := problems(plan.model, plan.layout):
        raise InputError("; ".join(found))
    changes: dict[str, Any] = {}
    notes = [note for note in [skip_load and tokenizer_note(settings)] if note]
    if notes:
        changes["tokenizer-type"] = "NullTokenizer"
        settings = change_settings(settings, changes)
    _check_files(settings, skip_load)
    changes |= scaled(plan.model, plan.layout, layers, width)
    if plan.steps is not None and "train-samples" not in settings.megatron:
        changes["train-iters"] = plan.steps
    small = read_plan(plan.stage, change_settings(settings, changes, LEFT_OUT), plan.layout.gpus)
    with tempfile.TemporaryDirectory(prefix="dry_run_") as folder:
        left_out = LEFT_OUT
        if skip_data:
            changes["data-path"], left_out = [write_corpus(Path(folder), plan.stage, plan.model.vocab)], LEFT_OUT + DATA
            changes["split"] = "90,10,0"
            notes.append("data: no corpus was read; made-up ids stand in for one")
        found = _run(words, changes, left_out, plan.layout.gpus)
    wanted = dict(zip(("weights", "gradients", "optimizer"), memory.states(small.model, small.layout, 0), strict=True))
    different = [f"{name} {found[name]:,}, planned {wanted[name]:,}" for name in wanted if found[name] != wanted[name]]
    if different:
        raise InputError(f"the trainer allocated other bytes than planned: {'; '.join(different)}")
    return _text(plan, small, found, notes)


def _check_files(settings: RunConfig, skip_load: bool) -> None:
    """Raise InputError for a checkpoint or a tokenizer that is not there; of data the trainer tells more."""
    load, tokenizer = settings.megatron.get("load"), settings.megatron.get("tokenizer-model")
    if load and not skip_load:
        for folder in filter(None, split_adapter(str(load.value))):
            require_loadable(folder, "or give --skip-load")
    if name := missing_tokenizer(settings):
        raise InputError(f"{tokenizer.where}: tokenizer-model {name}: no such file or folder; give a tokenizer")


def scaled(model: Model, layout: Layout, layers: int | None, width: int | None) -> dict[str, int]:
    """Megatron's arguments of the scaled model and batch: the head size and the share of groups stay.

    Raises InputError for layers or a width that the layout cannot divide.
    """
    share = model.heads // model.num_query_groups
    least = model.q_dim if model.num_query_groups % layout.tp else layout.tp * share * model.head_dim
    width = width or min(least, model.hidden)
    layers = layers or layout.pp
    if width % least and width != model.hidden:
        raise InputError(f"--width {width}: expected {model.hidden} or a multiple of {least}")
    if layers % layout.pp:
        raise InputError(f"--layers {layers}: expected a multiple of PP ({layout.pp})")
    heads = model.heads if width == model.hidden else width // model.head_dim

    def inner(size: int, ranks: int) -> int:
        return size if width == model.hidden else -(-size * width // (model.hidden * ranks)) * ranks

    sizes = {"num-layers": layers, "hidden-size": width, "ffn-hidden-size": inner(model.ffn, layout.tp)}
    if model.experts:
        sizes["moe-ffn-hidden-size"] = inner(model.expert_ffn, layout.etp or layout.tp)
    sizes |= {"num-attention-heads": heads, "kv-channels": model.head_dim}
    if share > 1:
        sizes["num-query-groups"] = heads // share
    return sizes | {"global-batch-size": layout.micro_batch * layout.dp}


def _run(words: list[str], changes: dict[str, Any], left_out: tuple[str, ...], gpus: int) -> dict[str, int]:
    """Start the rank and return what it says. Raises InputError with its error, in one line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"WORLD_SIZE": str(gpus), "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks |= {"CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "megatron_chimed.plan.dry_run_worker", json.dumps([changes, left_out]), *words]
    output = tempfile.NamedTemporaryFile("w+", prefix="dry_run_", suffix=".log", delete=False)  # noqa: SIM115
    with output:
        try:
            code = subprocess.run(
                command,
                env=os.environ | ranks,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
            ).returncode
        except subprocess.TimeoutExpired:
            raise InputError(f"the dry run took more than {PATIENCE} s; give smaller --layers and --width") from None
        output.seek(0)
        lines = output.read().splitlines()
    for line in lines:
        if line.startswith(ERROR):
            os.remove(output.name)
            raise InputError(line.removeprefix(ERROR))
    results = [line.removeprefix(RESULT) for line in lines if line.startswith(RESULT)]
    if code or not results:
        last = lines[-1].strip() if lines else "no output"
        raise InputError(f"rank 0 ended with code {code}: {last}; all of its output is in {output.name}")
    os.remove(output.name)
    return json.loads(results[-1])


def _text(plan: Plan, small: Plan, found: dict[str, int], notes: list[str]) -> str:
    """What was run; notes: what else was replaced, a line for each."""
    full, model, layout = plan.model, small.model, small.layout
    lines = [
        f"dry run of stage {plan.stage}: rank 0 of {layout.gpus} (TP {layout.tp} x PP {layout.pp} x DP {layout.dp}), "
        "one step on a CPU",
        f"scaled down: {model.layers} of {full.layers} layers, width {model.hidden} of {full.hidden}, "
        f"batch {layout.global_batch} of {plan.layout.global_batch} rows; no checkpoint was read or written",
        *notes,
        "full size: all that has to divide does",
    ]
    lines += [f"  {name:<10} {size:>15,} bytes allocated, as planned" for name, size in found.items()]
    return "\n".join([*lines, "passed"])
