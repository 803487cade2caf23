"""Ranked answers to packed rows, for the reward model: each answer once, all answers of a question in one row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.packing import builder
from megatron_chimed.packing.builder import Kind, RowOptions
from megatron_chimed.packing.ranking_worker import PAIRINGS, GroupMaker
from megatron_chimed.text.template import Renderer


@dataclass(frozen=True)
class RankingOptions:
    """pairing: one of PAIRINGS; one_question_per_row: a batch of rows then is one of as many questions, as the paper
    counts it; shuffle_ranks: a control; seed: of the order of groups of one length, and of the shuffling.

    workers: processes beside this one, 0 for none; progress: show a bar on stderr. These two change no byte.
    """

    sequence_length: int = 4096
    pairing: str = "adjacent"
    one_question_per_row: bool = False
    shuffle_ranks: bool = False
    seed: int = 1234
    workers: int = 0
    progress: bool = True

    def __post_init__(self):
        self.rows()
        if self.pairing not in PAIRINGS:
            raise InputError(f"--pairing {self.pairing}: expected one of {', '.join(PAIRINGS)}")

    def rows(self) -> RowOptions:
        """What rows of every kind take. Raises InputError."""
        return RowOptions(self.sequence_length, self.seed, self.one_question_per_row, self.workers, self.progress)


def pack_rankings(
    inputs: list[str], output: Path, renderer: Renderer, options: RankingOptions, tokenizer_path: str = ""
) -> dict[str, Any]:
    """Pack JSON lines of `RankedGroup` into the folder `output`; returns its manifest. See `pack_records`.

    The arrays of a segment, which is one answer: group, the number of its question; rank; answer, its tokens with EOS.
    """
    settings = {
        "pairing": options.pairing,
        "one_question_per_row": options.one_question_per_row,
        "shuffle_ranks": options.shuffle_ranks,
    }
    shuffle_seed = options.seed if options.shuffle_ranks else None
    maker = GroupMaker(renderer, options.sequence_length, options.pairing, shuffle_seed)
    kind = Kind("tools/pack_rewards.py", "questions", settings, maker)
    return builder.pack_records(inputs, output, renderer, kind, options.rows(), tokenizer_path)


def describe(content: dict[str, Any]) -> str:
    """The report of a manifest as lines for people."""
    questions, kept = content["report"]["questions"], content["report"]["kept"]
    pairing = content["pairing"] + (", ranks shuffled" if content["shuffle_ranks"] else "")
    lines = [f"questions      {questions:,}, {kept['instances']:,} of them kept (pairing: {pairing})"]
    return "\n".join([*lines, builder.describe(content, "answers")])
