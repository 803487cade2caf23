"""Dialogues to packed rows, for supervised fine-tuning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.packing import builder
from megatron_chimed.packing.builder import Kind, RowOptions
from megatron_chimed.packing.dialogue_worker import DialogueMaker
from megatron_chimed.packing.instances import MODES
from megatron_chimed.text.template import Renderer


@dataclass(frozen=True)
class PackOptions:
    """sequence_length: tokens of a row; mode: one of MODES; seed: of the order of samples of one length.

    workers: processes beside this one, 0 for none; progress: show a bar on stderr. These two change no byte.
    """

    sequence_length: int = 4096
    mode: str = "whole"
    seed: int = 1234
    workers: int = 0
    progress: bool = True

    def __post_init__(self):
        self.rows()
        if self.mode not in MODES:
            raise InputError(f"--mode {self.mode}: expected one of {', '.join(MODES)}")

    def rows(self) -> RowOptions:
        """What rows of every kind take. Raises InputError."""
        return RowOptions(self.sequence_length, self.seed, workers=self.workers, progress=self.progress)


def pack_dialogues(
    inputs: list[str], output: Path, renderer: Renderer, options: PackOptions, tokenizer_path: str = ""
) -> dict[str, Any]:
    """Pack JSON lines of `Dialogue` into the folder `output`; returns its manifest. See `pack_records`."""
    maker = DialogueMaker(renderer, options.sequence_length, options.mode)
    kind = Kind("tools/pack_sft.py", "dialogues", {"mode": options.mode}, maker)
    return builder.pack_records(inputs, output, renderer, kind, options.rows(), tokenizer_path)


def describe(content: dict[str, Any]) -> str:
    """The report of a manifest as lines for people."""
    report = content["report"]
    first = f"dialogues      {report['dialogues']:,}, as {report['in']['instances']:,} instances ({content['mode']})"
    return first + "\n" + builder.describe(content, "tokens to be learnt")
