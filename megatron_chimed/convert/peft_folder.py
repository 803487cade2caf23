"""Adapters in the form of PEFT, there and back: adapter_config.json and adapter_model.safetensors.

Source: peft 0.21, `LoraConfig` and `get_peft_model_state_dict`. Whatever of PEFT's settings would change a result, and
is not what our adapters do, is refused by name.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_chimed.checkpoints import resolve
from megatron_chimed.convert import trained_template
from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.hf_folder import Stored, open_safetensors
from megatron_chimed.convert.lora import (
    KEY,
    Lora,
    Opened,
    adapter_name,
    adapter_shapes,
    check_adapters,
    hash_weights,
    of_args,
    targets_of,
)
from megatron_chimed.convert.megatron_args import read_megatron
from megatron_chimed.convert.plan import FLOATS, Planned
from megatron_chimed.convert.stored import PEFT_CONFIG
from megatron_chimed.convert.tokenizer_files import copy_tokenizer, tokenizer_folder, write_chat_template
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint, write_checkpoint
from megatron_chimed.errors import InputError, short
from megatron_chimed.jsonl import atomic_folder, read_json, write_json
from megatron_chimed.models.options import LORA_TARGETS, LoraOptions

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT's names are the base's behind this."""

HEAD, MEGATRON_HEAD = f"{PREFIX}score.weight", "reward_head.weight"
TASKS = {"lm": "CAUSAL_LM", "reward": "SEQ_CLS"}
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "megatron_core", "peft_version",
    "revision", "task_type", "target_modules", "r", "lora_alpha", "lora_dropout", "use_rslora", "peft_type",
    "exclude_modules", "ensure_weight_tying", "qalora_group_size",
}  # fmt: skip
"""Settings that are read, or that change no result of trained weights."""

CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Starts of A and B that take something out of the base: adapters of that base alone."""


def write_peft(opened: Opened, folder: Path, tokenizer: str | Path | None = None, base: str | None = None) -> None:
    """Write the adapters of a checkpoint as a new folder of PEFT, with the tokenizer of the training where it still is.

    tokenizer: another one. base: the Hugging Face folder of the base, which PEFT's settings name. Raises InputError.
    """
    check_adapters(opened)
    source, model, options = opened.source, opened.model, opened.lora.options
    tensors = {}
    for name, hf_name, letter, _ in _tensors(model, options):
        for layer, tensor in enumerate(_read_whole(source, name)):
            tensors[_peft_name(hf_name, layer, letter)] = tensor.contiguous()
    if model.head == "reward":
        tensors[HEAD] = _read_whole(source, MEGATRON_HEAD)
    with atomic_folder(folder) as made:
        save_file(tensors, made / WEIGHTS, metadata={"format": "pt"})
        write_json(made / PEFT_CONFIG, _settings(model, options, base))
        if files := tokenizer_folder(tokenizer or getattr(source.args, "tokenizer_model", None)):
            copy_tokenizer(files, made)
            if template := trained_template.of_args(source.args, str(source.folder)):
                write_chat_template(made, template)


def _settings(model: Architecture, options: LoraOptions, base: str | None) -> dict[str, Any]:
    """PEFT's adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": TASKS[model.head],
        "base_model_name_or_path": base,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": sorted(options.targets),
        "use_rslora": options.rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": ["score"] if model.head == "reward" else None,
    }


def _peft_name(name: str, layer: int, letter: str) -> str:
    """PEFT's name of A or B of a weight."""
    return f"{PREFIX}{name.format(layer=layer).removesuffix('weight')}lora_{letter}.weight"


def _read_whole(source: TorchDistCheckpoint, name: str) -> torch.Tensor:
    size = tuple(source.tensors[name].size)
    return source.read(name, (0,) * len(size), size)


def read_options(folder: Path, names: set[str]) -> LoraOptions:
    """LoRA's settings of a PEFT folder; the targets are those that have tensors. Raises InputError listing settings
    that our adapters have not."""
    path = folder / PEFT_CONFIG
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise InputError(f"{path}: expected the settings of LoRA (peft_type LORA)")
    harmless = WITHOUT_EFFECT | ({"modules_to_save"} if HEAD in names else set())
    wrong = [
        f"{key} is {short(value)}, which is not supported"
        for key, value in settings.items()
        if key not in harmless and value not in (None, False, {}, [], "none")
    ]
    if str(settings.get("init_lora_weights")).lower().startswith(CHANGES_BASE):
        wrong.append(f"init_lora_weights is {short(settings['init_lora_weights'])}, which changes the base; convert it")
    types = {"r": int, "lora_alpha": (int, float), "lora_dropout": (int, float), "use_rslora": bool}
    given = {key: settings.get(key, False if key == "use_rslora" else 0) for key in types}
    wrong += [f"{key} is {short(given[key])}; expected a number" for key, kind in types.items()
              if not isinstance(given[key], kind) or isinstance(given[key], bool) != (kind is bool)]  # fmt: skip
    targets = [target for target in LORA_TARGETS if any(f".{target}.lora_A." in name for name in names)]
    if not wrong:
        rank, alpha, dropout, rslora = given.values()
        options = LoraOptions(rank, float(alpha), targets, float(dropout), rslora)
        wrong = options.problems()
    if wrong:
        raise InputError(f"{path}: " + "; ".join(wrong))
    return options


def peft_to_megatron(peft: Path, base: str | Path | None, megatron: Path) -> Architecture:
    """Write the adapters of a PEFT folder as a checkpoint folder of adapters over a base. Raises InputError.

    base: folder of Megatron checkpoints of the model that they belong to.
    """
    if base is None:
        raise InputError(f"{peft}: holds adapters; give their base, --base with its Megatron folder")
    base = Path(base)
    try:
        stored = open_safetensors(peft / WEIGHTS)
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(f"{peft / WEIGHTS}: missing or damaged ({' '.join(str(error).split())[:160]})") from None
    source = TorchDistCheckpoint(resolve(base))
    if of_args(source.args, str(source.folder)) is not None:
        raise InputError(f"{base}: holds adapters too; give the whole model that these belong to")
    model = dataclasses.replace(read_megatron(source), head="reward" if HEAD in stored else "lm")
    options = read_options(peft, set(stored))
    _check_tensors(peft, stored, model, options, base)
    args = source.args
    setattr(args, KEY, Lora(options, str(base), hash_weights(source)).to_args())
    with atomic_folder(megatron) as folder:
        write_checkpoint(folder, _plan(stored, model, options), [], args, lambda count: None)
        if (base / "model.yaml").is_file():
            shutil.copyfile(base / "model.yaml", folder / "model.yaml")
    return model


def _check_tensors(
    peft: Path, stored: dict[str, Stored], model: Architecture, options: LoraOptions, base: Path
) -> None:
    """Raise InputError listing tensors that are missing, unknown, misshapen or of another type."""
    wanted = {}
    for _, hf_name, letter, shape in _tensors(model, options):
        wanted |= {_peft_name(hf_name, layer, letter): shape for layer in range(model.sizes.layers)}
    if model.head == "reward":
        wanted[HEAD] = (1, model.sizes.hidden)
    wrong = [f"{name} is missing" for name in wanted.keys() - stored.keys()]
    wrong += [f"{name} is no adapter of the model in {base}" for name in stored.keys() - wanted.keys()]
    for name in wanted.keys() & stored.keys():
        found = stored[name]
        if found.shape != wanted[name] or found.dtype not in FLOATS:
            wrong.append(f"{name} is {found.dtype} {list(found.shape)}, expected floats {list(wanted[name])}")
    if wrong:
        raise InputError(f"{peft}: {len(wrong)} faults: " + "; ".join(sorted(wrong)))


def _tensors(model: Architecture, options: LoraOptions) -> Iterator[tuple[str, str, str, tuple[int, int]]]:
    """(Megatron's name, Hugging Face name of the weight, A or B, shape in a layer) of all tensors of adapters."""
    shapes = adapter_shapes(model, options)
    for target, hf_name, _ in targets_of(model):
        for letter in "AB" if target in options.targets else "":
            name = adapter_name(target, letter)
            yield name, hf_name, letter, shapes[name][1:]


def _plan(stored: dict[str, Stored], model: Architecture, options: LoraOptions) -> list[Planned]:
    """The tensors of the checkpoint, layer by layer, and a reward model's head."""
    planned = []
    for name, hf_name, letter, shape in _tensors(model, options):
        for layer in range(model.sizes.layers):
            found = stored[_peft_name(hf_name, layer, letter)]
            planned.append(Planned(name, shape, found.dtype, found.read, (model.sizes.layers,), (layer,)))
    if model.head == "reward":
        planned.append(
            Planned(MEGATRON_HEAD, (1, model.sizes.hidden), torch.float32, lambda: stored[HEAD].read().float())
        )
    return planned
