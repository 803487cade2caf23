"""Convert checkpoints from Hugging Face to Megatron and back: all is checked first, then written tensor by tensor.

Memory does not grow with the model: a tensor is read, transformed and written when its turn comes. The output gets its
name only when it is whole. Weights alone are converted; optimizer states have no place in a Hugging Face folder.
"""

import contextlib
import dataclasses
import functools
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from megatron_chimed.convert import trained_template
from megatron_chimed.convert.architecture import Architecture, read_hf, to_hf
from megatron_chimed.convert.family import Entry
from megatron_chimed.convert.hf_folder import HuggingFaceFolder, write_weights
from megatron_chimed.convert.lora import MergedCheckpoint, Source, open_checkpoint
from megatron_chimed.convert.megatron_args import to_megatron, to_megatron_args, to_options
from megatron_chimed.convert.peft_folder import peft_to_megatron, write_peft
from megatron_chimed.convert.plan import DTYPES, Planned, name_of, total_bytes
from megatron_chimed.convert.stored import is_peft_folder
from megatron_chimed.convert.strict import check_hf_tensors, check_megatron_tensors
from megatron_chimed.convert.tensors import merge, split
from megatron_chimed.convert.tokenizer_files import (
    copy_tokenizer,
    export_tokenizer,
    generation_config,
    require_loadable,
    require_rows,
    tokenizer_folder,
    vocabulary,
)
from megatron_chimed.convert.torch_dist import write_checkpoint
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_folder, atomic_output, write_json
from megatron_chimed.text.tokenizer_folder import has_tokenizer

RESERVE = 64 << 20
"""Bytes that must stay free on the disk beside the weights: for metadata, tokenizer, and a file system's own needs."""


def hf_to_megatron(
    hf: str | Path,
    megatron: str | Path,
    dtype: str = "keep",
    progress: bool = True,
    base: str | Path | None = None,
) -> Architecture:
    """Convert the Hugging Face folder `hf` to the Megatron checkpoint folder `megatron`.

    The new folder holds the checkpoint ("release": a start without optimizer or iteration), model.yaml with Megatron's
    arguments of the model, and the tokenizer's files. dtype: bfloat16, float32 or keep. base: of a folder of PEFT, the
    Megatron folder of the model that the adapters belong to.

    Raises InputError listing all that does not fit, before anything is written.

    >>> import megatron_chimed as mc
    >>> mc.hf_to_megatron("hf", "base", progress=False).sizes.layers
    4
    """
    hf, megatron = Path(hf), Path(megatron)
    if is_peft_folder(hf) or base is not None:
        return peft_to_megatron(hf, base, megatron)
    source = HuggingFaceFolder(hf)
    model = read_hf(hf)
    if has_tokenizer(hf):
        require_rows(hf, model.sizes.vocab)
        generation_config(hf, {})
    planned = list(_plan_megatron(model, source, DTYPES.get(dtype)))
    with atomic_folder(megatron) as folder:
        _require_space(folder, planned)
        settings, options = to_megatron(model), to_options(model)
        args, template = to_megatron_args(settings, options), None
        if has_tokenizer(hf):
            _take_tokenizer(hf, folder / "tokenizer")
            template = trained_template.of_folder(hf)
            settings |= {"tokenizer-type": "HuggingFaceTokenizer", "tokenizer-model": str(megatron / "tokenizer")}
        if template is not None:
            setattr(args, trained_template.KEY, template.to_row())
        args.params_dtype = planned[0].dtype
        args.tokenizer_model = settings.get("tokenizer-model")
        with _progress(planned, progress) as written:
            write_checkpoint(folder, planned, model.family.extra_states(model.sizes), args, written)
        with atomic_output(folder / "model.yaml") as file:
            file.write(f"# Megatron's arguments of the model in {hf.name}.\n")
            blocks = {"megatron": settings} | ({"chimed": options} if options else {})
            yaml.safe_dump(blocks, file, sort_keys=False, allow_unicode=True)
    return model


def bytes_of(size: str) -> int:
    """Parse ``5GB``, ``500MB`` or a number of bytes. Raises InputError."""
    match = re.fullmatch(r"(\d+)(KB|MB|GB|)", size.upper())
    if not match or not int(match[1]):
        raise InputError(f"expected a size such as 5GB or 500MB, found {size!r}")
    return int(match[1]) * {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]


def _take_tokenizer(hf: Path, folder: Path) -> None:
    """Copy the tokenizer's files, and what not every model has beside them. Raises InputError."""
    folder.mkdir()
    copy_tokenizer(hf, folder)
    require_loadable(folder, hf)
    if (hf / "generation_config.json").is_file():
        shutil.copyfile(hf / "generation_config.json", folder / "generation_config.json")


def _plan_megatron(model: Architecture, source: HuggingFaceFolder, dtype: torch.dtype | None) -> Iterator[Planned]:
    """Plan Megatron's tensors, checked against those that are there. Raises InputError."""
    check_hf_tensors(model, source, dtype)
    for entry in model.family.entries(model.head, model.tied):
        stack, shape = entry.stack(model.sizes), entry.megatron_shape(model.sizes)
        for place in entry.places(model.sizes):
            names = entry.hf_names(place)
            wanted = dtype or source.tensors[names[0]].dtype
            make = functools.partial(_join, entry, model, source, names, wanted)
            yield Planned(entry.megatron, shape, wanted, make, stack, place)


def _join(entry: Entry, model: Architecture, source: HuggingFaceFolder, names: list[str], dtype) -> torch.Tensor:
    """Read and merge the parts `names` of one Megatron tensor: [rows, ...] of type `dtype`."""
    parts = [source.tensors[name].read() for name in names]
    return merge(entry, parts, model.sizes).to(dtype)


def megatron_to_hf(
    megatron: str | Path,
    hf: str | Path,
    *,
    iteration: int | None = None,
    tokenizer: str | Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
    merge: bool = False,
    progress: bool = True,
) -> Architecture:
    """Convert a checkpoint in the Megatron folder `megatron` to the Hugging Face folder `hf`.

    iteration: the newest one by default. tokenizer: a folder or SentencePiece model whose files go with the weights;
    by default the one that the model was trained with, where it still is. Rows that Megatron has added to the
    vocabulary are left out. The template of the training is written as the chat template, and the ids that end its
    answers into config.json and generation_config.json; without one these are the tokenizer folder's. LoRA's adapters
    become a folder of PEFT, or with `merge` one model with their base.

    Raises InputError listing all that does not fit, before anything is written.

    >>> import megatron_chimed as mc
    >>> mc.megatron_to_hf("base", "back", progress=False).head
    'lm'
    """
    if tokenizer is not None and tokenizer_folder(tokenizer) is None:
        raise InputError(f"{tokenizer}: no such file or folder; give a tokenizer")
    opened = open_checkpoint(megatron, iteration, check_bytes=True)
    if opened.lora is not None and not merge:
        write_peft(opened, Path(hf), tokenizer)
        return opened.model
    source = MergedCheckpoint(opened) if merge else opened.source
    return _export(source, opened.model, Path(hf), tokenizer, max_shard_bytes, progress)


def _export(
    source: Source, model: Architecture, hf: Path, tokenizer: str | Path | None, max_shard_bytes: int, progress: bool
) -> Architecture:
    """Write a whole model as the Hugging Face folder `hf`. Raises InputError."""
    trained_with = getattr(source.args, "tokenizer_model", None)
    files = tokenizer_folder(tokenizer or trained_with)
    token_ids: dict[str, Any] = {}
    template, stop_ids = trained_template.of_args(source.args, str(source.folder)), ()
    if files is not None:
        size, token_ids = vocabulary(files)
        model = _with_vocabulary(model, size, files, is_known=bool(getattr(source.args, "vocab_size", None)))
    check_megatron_tensors(model, source)
    planned = list(_plan_hf(model, source))
    with atomic_folder(hf) as folder:
        _require_space(folder, planned)
        if files is not None:
            token_ids, stop_ids = export_tokenizer(files, folder, template, token_ids, model.head)
        with _progress(planned, progress) as written:
            write_weights(folder, planned, max_shard_bytes, written)
        write_json(folder / "config.json", to_hf(model, name_of(planned[0].dtype), token_ids))
        if model.head == "lm":
            write_json(folder / "generation_config.json", generation_config(files, token_ids, stop_ids))
    if files is None:
        trained_with = trained_with or "none that has files"
        print(f"{hf}: no tokenizer is with it (of the training: {trained_with}); give --tokenizer", file=sys.stderr)
    return model


def _with_vocabulary(model: Architecture, size: int, files: Path, is_known: bool) -> Architecture:
    """Take the number of ids from the tokenizer where the checkpoint does not tell it, but pads. Raises InputError."""
    if not is_known:
        return dataclasses.replace(model, sizes=dataclasses.replace(model.sizes, vocab=size))
    if size > model.sizes.vocab:
        raise InputError(f"{files}: has {size} ids, the model {model.sizes.vocab}; give the model's tokenizer")
    return model


def _plan_hf(model: Architecture, source: Source) -> Iterator[Planned]:
    """Plan Hugging Face's tensors, layer by layer, and expert by expert."""
    entries = model.family.entries(model.head, model.tied)
    first = [entry for entry in entries if not entry.per_layer and entry.has_vocabulary][:1]
    last = [entry for entry in entries if not entry.per_layer and entry not in first]
    layers = [(entry, place) for entry in entries if entry.per_layer for place in entry.places(model.sizes)]
    layers.sort(key=lambda one: one[1][0])  # a stable order: in a layer as in the table, each entry's experts in a row
    plan = [*((entry, ()) for entry in first), *layers, *((entry, ()) for entry in last)]
    for entry, place in plan:
        make = _one_by_one(functools.partial(_split, entry, model, source, place))
        dtype = source.tensors[entry.megatron].properties.dtype
        for name, shape in zip(entry.hf_names(place), entry.hf_shapes(model.sizes), strict=True):
            yield Planned(name, shape, dtype, make)


def _one_by_one(read: Callable[[], list[torch.Tensor]]) -> Callable[[], torch.Tensor]:
    """Make a function that gives the next part of a fused tensor at each call.

    The parts are written one after the other, in their order: the first call reads the fused tensor, and no part is
    held after its own.
    """
    parts: list[torch.Tensor] = []

    def make() -> torch.Tensor:
        if not parts:
            parts.extend(read())
        return parts.pop(0)

    return make


def _split(entry: Entry, model: Architecture, source: Source, place: tuple[int, ...]) -> list[torch.Tensor]:
    """Read one Megatron tensor and split it into Hugging Face's, of shapes `entry.hf_shapes`.

    place: (layer,) or (layer, expert) of a tensor [layers, rows, ...] or [layers, experts, rows, ...]. Rows behind the
    vocabulary are not read.
    """
    shape = entry.megatron_shape(model.sizes)
    offsets, sizes = (*place, *(0 for _ in shape)), (*(1 for _ in place), *shape)
    tensor = source.read(entry.megatron, offsets, sizes).view(shape)
    return split(entry, tensor, model.sizes)


def _require_space(folder: Path, planned: list[Planned]) -> None:
    """Raise InputError when the disk has not the room for the output."""
    needed, free = total_bytes(planned) + RESERVE, shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{folder.parent}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed; make room first")


@contextlib.contextmanager
def _progress(planned: list[Planned], shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes with GB/s and the time left; gives a function that takes the bytes of each tensor."""
    with tqdm(total=total_bytes(planned), unit="B", unit_scale=True, disable=not shown, mininterval=0.5) as bar:
        yield bar.update
