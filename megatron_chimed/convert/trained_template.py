"""Template that a model was trained with: its checkpoint keeps it, and an export has it in its chat template."""

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from megatron_chimed.checkpoints import resolve, split_adapter
from megatron_chimed.errors import InputError
from megatron_chimed.text.jinja import CHAT_TEMPLATE, recorded
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer_template import open_template

KEY = "chimed_template"
"""Name in a checkpoint's arguments of the template in JSON."""


def of_args(args: Namespace, where: str) -> Template | None:
    """Read the template in a checkpoint's arguments; None where none is recorded. Raises InputError."""
    row = getattr(args, KEY, None)
    return None if row is None else Template.from_row(row, f"{where}: {KEY}")


def of_checkpoint(folder: str | Path, iteration: int | None = None) -> Template | None:
    """Read that of a Megatron checkpoint, the newest one by default. Raises InputError."""
    from megatron_chimed.convert.torch_dist import TorchDistCheckpoint  # which imports torch

    place = resolve(split_adapter(folder)[0], iteration)
    return of_args(TorchDistCheckpoint(place).args, str(place))


def of_folder(folder: str | Path) -> Template | None:
    """Read that of a Hugging Face folder, which an export of ours has. Raises InputError."""
    adapter, base = split_adapter(folder)
    path = adapter / CHAT_TEMPLATE
    if base is not None and not path.is_file():
        path = base / CHAT_TEMPLATE
    try:
        return recorded(path.read_text(encoding="utf-8"), str(path))[0] if path.is_file() else None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not in UTF-8; take another copy") from None


def choose(model: str, given: str | None, tokenizer: str | None = None, iteration: int | None = None) -> Template:
    """Choose the template in which a model is asked: the one given, else that of its training, else chimed; another
    than that of the training is said.

    model: KIND:PLACE, of which a server's records none; tokenizer: whose chat template ``tokenizer`` is. Raises
    InputError.
    """
    kind, _, place = model.partition(":")
    trained = _of_model(kind, place, iteration)
    if given is None and trained is not None:
        if trained != Template():
            print(f"template {trained.name!r}, that of the model's training", file=sys.stderr)
        return trained
    found = open_template(given, tokenizer or place)
    if trained is not None and replace(found, name="", think=False) != replace(trained, name="", think=False):
        line = (
            f"template {found.name!r} is given; {model} was trained with {trained.name!r}, which is asked without one"
        )
        print(line, file=sys.stderr)
    return found


def _of_model(kind: str, place: str, iteration: int | None) -> Template | None:
    """Read the template of a model by the parts of its name; None where none is recorded. Raises InputError."""
    if kind in ("hf", "vllm"):
        return of_folder(place)
    if kind != "megatron":
        return None
    try:
        return of_checkpoint(place, iteration)
    except InputError:
        return None  # to open the model tells what is wrong with it
