"""Render a batch of lines with dialogues as the tokens of its segments. It runs in worker processes."""

from collections import Counter

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import located
from megatron_chimed.packing.chunks import RecordBatch, SegmentChunk, gather, parse, token_type
from megatron_chimed.packing.examples import fit_example, make_examples
from megatron_chimed.records import Dialogue
from megatron_chimed.text.exchange import Exchange, is_chain
from megatron_chimed.text.renderer import Renderer

PER_TURN = "per_turn"
"""What dialogues are counted under that the mode whole cuts into an example for each answer."""


class DialogueMaker:
    """Renders batches. It is sent to the worker processes."""

    def __init__(self, renderer: Renderer, sequence_length: int, mode: str):
        self.renderer, self.sequence_length, self.mode = renderer, sequence_length, mode

    def __call__(self, batch: RecordBatch) -> SegmentChunk:
        """Render a batch, each segment a unit. Raises InputError as ``file:line: reason``."""
        dialogues = [parse(Dialogue, batch.path, number, line) for number, line in batch.located]
        rendered, owners, counts = [], [], Counter()
        for owner, exchanges in enumerate(self._encode(batch, dialogues)):
            if self.mode == "whole" and not is_chain(exchanges):
                counts[PER_TURN, "dialogues"] += 1
            for example in make_examples(exchanges, self.mode):
                one = fit_example(example, self.sequence_length, self.renderer, counts)
                if one is not None:
                    rendered.append(one)
                    owners.append(owner)
        names = list(dict.fromkeys(dialogue.source for dialogue in dialogues))
        source_of = np.array([names.index(dialogue.source) for dialogue in dialogues], np.int32)
        owners = np.array(owners, np.int64)
        return SegmentChunk(
            *gather(rendered, token_type(self.renderer.tokenizer.vocab_size)),
            np.ones(len(rendered), np.int64),
            {"dialogue": owners + batch.first_record, "source": source_of[owners]},
            names,
            counts,
            len(dialogues),
            sum(map(len, batch.lines)),
        )

    def _encode(self, batch: RecordBatch, dialogues: list[Dialogue]) -> list[list[Exchange]]:
        """Encode the exchanges of all dialogues; when one cannot be encoded, its line is found."""
        try:
            return self.renderer.encode_exchanges([dialogue.turns for dialogue in dialogues])
        except InputError:
            for (number, _), dialogue in zip(batch.located, dialogues, strict=True):
                with located(batch.path, number):
                    self.renderer.encode_exchanges([dialogue.turns])
            raise
