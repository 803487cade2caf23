"""Pack dialogues into rows, for supervised fine-tuning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.packing import builder
from megatron_chimed.packing.builder import Kind, RowOptions
from megatron_chimed.packing.dialogue_worker import DialogueMaker
from megatron_chimed.packing.examples import MODES
from megatron_chimed.text.renderer import Renderer


@dataclass(frozen=True)
class DialogueRowOptions(RowOptions):
    """mode: one of MODES, how a dialogue becomes examples."""

    mode: str = "whole"

    def __post_init__(self):
        super().__post_init__()
        if self.mode not in MODES:
            raise InputError(f"--mode {self.mode}: expected one of {', '.join(MODES)}")


def pack_dialogues(
    inputs: list[str], output: Path, renderer: Renderer, options: DialogueRowOptions, tokenizer_path: str = ""
) -> dict[str, Any]:
    """Pack JSON lines of `Dialogue` into the folder `output`; returns its manifest. See `pack_records`."""
    maker = DialogueMaker(renderer, options.sequence_length, options.mode)
    settings = {"mode": options.mode} | ({"thinking": renderer.thinking} if renderer.template.thinking else {})
    kind = Kind("tools/pack_sft.py", "dialogues", settings, maker)
    return builder.pack_records(inputs, output, renderer, kind, options, tokenizer_path)


def format_dialogue_rows(content: dict[str, Any]) -> str:
    """Format the report of a manifest as lines for people."""
    report = content["report"]
    first = f"dialogues      {report['dialogues']:,}, as {report['in']['instances']:,} instances ({content['mode']})"
    return first + "\n" + builder.format_pack_report(content, "tokens to be learnt")
