"""The commands as functions, for `import megatron_chimed as mc`."""

import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from megatron_chimed.commands.train import count_gpus, launch
from megatron_chimed.errors import InputError
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.tokenizer import Tokenizer
from megatron_chimed.text.tokenizer_template import open_template
from megatron_chimed.workers import Workers, count_cores


def build_corpus(
    inputs: Iterable[str | Path], prefix: str | Path, *, tokenizer: str | Path, workers: Workers = 0, **text: Any
) -> dict[str, Any]:
    """Build Megatron's indexed dataset of JSON lines; returns its manifest.

    prefix: outputs are PREFIX_{key}_document.bin and .idx and PREFIX.manifest.json; text: fields of
    `corpus.worker.TextOptions`, such as append_eod, clean, dedup. Raises InputError.

    >>> import megatron_chimed as mc
    >>> mc.build_corpus(["texts.jsonl"], "texts", tokenizer="tokenizer.model", append_eod=True)["documents"]
    20
    """
    from megatron_chimed.corpus.builder import RunOptions
    from megatron_chimed.corpus.builder import build_corpus as build
    from megatron_chimed.corpus.worker import TextOptions

    run = RunOptions(workers=workers, progress=False)
    paths = [str(path) for path in inputs]
    return build(
        paths, Path(prefix), Tokenizer.load(tokenizer), TextOptions(**text), run, tokenizer_path=str(tokenizer)
    )


def pack_sft(
    inputs: Iterable[str | Path],
    output: str | Path,
    *,
    tokenizer: str | Path,
    template: str | None = None,
    thinking: str = "train",
    **rows: Any,
) -> dict[str, Any]:
    """Pack dialogues (JSON lines) into rows of one length; returns the manifest of the folder `output`.

    template: a name or a YAML; thinking: train, mask or drop; rows: fields of
    `packing.dialogues.DialogueRowOptions`, such as sequence_length, mode, seed, workers. Raises InputError.

    >>> import megatron_chimed as mc
    >>> mc.pack_sft(["dialogues.jsonl"], "packed", tokenizer="tokenizer.model", sequence_length=128)["sequence_length"]
    128
    """
    from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues

    options = DialogueRowOptions(**{"progress": False, **rows})
    return pack_dialogues(*_packing(inputs, output, tokenizer, template, thinking), options, str(tokenizer))


def pack_rewards(
    inputs: Iterable[str | Path], output: str | Path, *, tokenizer: str | Path, template: str | None = None, **rows: Any
) -> dict[str, Any]:
    """Pack ranked answers (JSON lines) into rows of one length; returns the manifest of the folder `output`.

    rows: fields of `packing.rankings.RankingRowOptions`, such as sequence_length, pairing. Raises InputError.

    >>> import megatron_chimed as mc
    >>> mc.pack_rewards(["ranked.jsonl"], "ranked", tokenizer="tokenizer.model", sequence_length=256)["pairing"]
    'adjacent'
    """
    from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings

    options = RankingRowOptions(**{"progress": False, **rows})
    return pack_rankings(*_packing(inputs, output, tokenizer, template), options, str(tokenizer))


def _packing(
    inputs: Iterable[str | Path],
    output: str | Path,
    tokenizer: str | Path,
    template: str | None,
    thinking: str = "train",
) -> tuple[list[str], Path, Renderer]:
    """What packing takes, of any kind."""
    renderer = Renderer(open_template(template, tokenizer), Tokenizer.load(tokenizer), thinking)
    return [str(path) for path in inputs], Path(output), renderer


def train(
    stage: str,
    model: str | Path,
    stage_yaml: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    ranks: int | None = None,
) -> None:
    """Train a stage to its end with ranks of their own, as `chimed train` does; what they say goes to stderr.

    overrides: Megatron's arguments by name, ``{"train-iters": 20, "bf16": True}``. ranks: this machine's GPUs, else 2.
    The same call again continues. Raises InputError when the training ends with another code than 0.

    >>> import megatron_chimed as mc
    >>> mc.train("pretrain", "model.yaml", "pretrain.yaml", {"train-iters": 2, "save": "run"}, ranks=1)
    >>> open("run/latest_checkpointed_iteration.txt").read()
    '2'
    """
    argv = [stage, str(model), str(stage_yaml)]
    for key, value in (overrides or {}).items():
        values = value if isinstance(value, list | tuple) else [value]
        argv += [f"--{key}", *(() if value is True else map(str, values))]
    environment = os.environ | ({"NPROC": str(ranks)} if ranks else {})
    command, environment = launch(argv, environment, count_gpus(), count_cores())
    code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
    if code:
        raise InputError(f"the training of stage {stage} ended with code {code}; its message stands above")


def evaluate(
    model: str,
    tasks: Iterable[str],
    output: str | Path,
    *,
    template: str | None = None,
    training_data: Iterable[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a model on tasks, ``["ceval=raw/ceval"]``; returns the content of OUTPUT/results.json.

    model: hf:DIR, vllm:DIR, megatron:DIR or openai:MODEL; options: of `chimed evaluate`, with underscores, such as
    tokenizer, runs, limit, batch_size. Raises InputError.

    >>> import megatron_chimed as mc
    >>> results = mc.evaluate("hf:hf", ["ceval=ceval"], "evaluation", runs=1, limit=2)
    >>> sorted(results["tasks"])
    ['ceval', 'ceval_cloze', 'ceval_letter']
    """
    from megatron_chimed.convert.trained_template import choose
    from megatron_chimed.evaluation.backends.models import EngineOptions, open_model
    from megatron_chimed.evaluation.run import Settings, evaluate_model

    chosen = choose(model, template, options.get("tokenizer"), options.get("iteration"))
    of_model = {field.name for field in fields(EngineOptions)}
    settings = Settings(**{name: value for name, value in options.items() if name not in of_model})
    opened = open_model(
        model, EngineOptions(**{name: value for name, value in options.items() if name in of_model}), chosen
    )
    return evaluate_model(
        opened, list(tasks), output, settings, chosen, training_data=list(training_data), progress=False
    )
