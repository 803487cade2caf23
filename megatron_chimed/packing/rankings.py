"""Pack ranked answers into rows, for the reward model: each answer once, all answers of a question in one row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.packing import builder
from megatron_chimed.packing.builder import Kind, RowOptions
from megatron_chimed.packing.ranking_worker import PAIRINGS, GroupMaker
from megatron_chimed.text.renderer import Renderer


@dataclass(frozen=True)
class RankingRowOptions(RowOptions):
    """pairing: one of PAIRINGS; shuffle_ranks: a control; shared_prompt: a question's prompt stands once, and its
    answers branch from it. With one_unit_per_row a batch of rows is one of as many questions, as the paper counts it.
    The seed is also that of the shuffling."""

    pairing: str = "adjacent"
    shuffle_ranks: bool = False
    shared_prompt: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.pairing not in PAIRINGS:
            raise InputError(f"--pairing {self.pairing}: expected one of {', '.join(PAIRINGS)}")


def pack_rankings(
    inputs: list[str], output: Path, renderer: Renderer, options: RankingRowOptions, tokenizer_path: str = ""
) -> dict[str, Any]:
    """Pack JSON lines of `RankedGroup` into the folder `output`; returns its manifest. See `pack_records`.

    The arrays of a segment, which is one answer: group, the number of its question; rank; answer, its tokens with EOS.
    With shared_prompt the first segment of a question is its prompt and an answer, and each other one the prompt's last
    token and an answer.
    """
    settings = {
        "pairing": options.pairing,
        "one_question_per_row": options.one_unit_per_row,
        "shuffle_ranks": options.shuffle_ranks,
        "shared_prompt": options.shared_prompt,
    }
    shuffle_seed = options.seed if options.shuffle_ranks else None
    maker = GroupMaker(renderer, options.sequence_length, options.pairing, shuffle_seed, options.shared_prompt)
    kind = Kind("tools/pack_rewards.py", "questions", settings, maker)
    return builder.pack_records(inputs, output, renderer, kind, options, tokenizer_path)


def format_ranking_rows(content: dict[str, Any]) -> str:
    """Format the report of a manifest as lines for people."""
    questions, kept = content["report"]["questions"], content["report"]["kept"]
    pairing = content["pairing"] + (", ranks shuffled" if content["shuffle_ranks"] else "")
    lines = [f"questions      {questions:,}, {kept['instances']:,} of them kept (pairing: {pairing})"]
    return "\n".join([*lines, builder.format_pack_report(content, "answers")])
