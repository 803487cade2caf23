"""Make dialogues of rows of a source: turns, cleaning, redaction, merging, signatures. It runs in worker processes."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.decontamination import OverlapIndex
from megatron_chimed.data.dedup import EXACT, make_deduplicators
from megatron_chimed.data.dialogue_readers import READERS, Unanswered
from megatron_chimed.data.fields import watch_row
from megatron_chimed.data.preprocess import PreparedRow, Preprocessor
from megatron_chimed.data.sources import Fault
from megatron_chimed.data.turns import RawTurn, Turns, merge_turns, preprocess_turns, spoken, texts_of
from megatron_chimed.errors import InputError
from megatron_chimed.text.normalise import normalise
from megatron_chimed.text.tokenizer import Tokenizer

OVERLAP = "overlaps evaluation set"


@dataclass(frozen=True)
class DialogueOptions:
    """Options of dialogues. dedup: "none", "exact" or "near" (which finds exact ones too)."""

    clean: bool = True
    redact: bool = True
    dedup: str = "near"


@dataclass
class Prepared(PreparedRow):
    """Result of one row: `turns` from a system's or a user's to an assistant's, or the reason why none.

    changes: how many turns were empty, merged, cut or left out, and what cleaning has changed, by rule. tokens: ids of
    all turns' texts and thinking.
    """

    turns: list[RawTurn] = ()
    tokens: int = 0


def arrange(turns: list[RawTurn]) -> tuple[list[RawTurn], Counter]:
    """Arrange turns to alternate from a user's to an assistant's, and count what was changed for it.

    A system turn may stand in front. Beyond what `merge_turns` does, assistant turns before the first question and user
    turns after the last answer are cut. Raises Unanswered when nothing is left, or nothing of it is to be learnt.

    >>> said = [("user", "头痛"), ("user", "怎么办"), ("assistant", "休息"), ("user", "谢谢")]
    >>> arranged, changes = arrange([RawTurn(*turn) for turn in said])
    >>> [turn.text for turn in arranged], dict(changes)
    (['头痛\\n怎么办', '休息'], {'turns merged': 1, 'trailing questions cut': 1})
    """
    merged, changes = merge_turns(turns)
    system, arranged = [turn for turn in merged if turn.role == "system"], spoken(merged)
    roles = {turn.role for turn in arranged}
    if len(roles) == 1:
        raise Unanswered("no doctor's answer" if "user" in roles else "no patient's turn")
    if arranged and arranged[0].role == "assistant":
        changes["leading answers cut"] += 1
        del arranged[0]
    if arranged and arranged[-1].role == "user":
        changes["trailing questions cut"] += 1
        del arranged[-1]
    if not arranged:
        raise Unanswered("no doctor's answer (the patient has the last word)" if roles else "empty dialogue")
    if not any(turn.learn for turn in arranged[1::2]):
        raise Unanswered("nothing to learn: every answer is marked as context alone")
    return [*system, *arranged], changes


class DialogueWorker:
    """Makes dialogues of rows. tokenizer: None leaves tokens uncounted; excluded: None keeps all."""

    def __init__(
        self, options: DialogueOptions, tokenizer: Tokenizer | None = None, excluded: OverlapIndex | None = None
    ):
        self.preprocessor = Preprocessor(options.clean, options.redact)
        self.options, self.tokenizer, self.excluded = options, tokenizer, excluded
        self.deduplicators = make_deduplicators(options.dedup)

    def prepare(self, reader: str, rows: list[tuple[int, Any]]) -> list[Prepared]:
        """Prepare each (line, row) that the reader of this name has yielded."""
        prepared = [self._prepare(reader, line, row) for line, row in rows]
        if self.tokenizer:
            texts = [text for one in prepared for text in texts_of(one.turns)]
            lengths = iter(self.tokenizer.encode_flat(texts)[1].tolist())
            for one in prepared:
                one.tokens = sum(next(lengths) for _ in texts_of(one.turns))
        return prepared

    def _prepare(self, reader: str, line: int, row: Any) -> Prepared:
        try:
            if isinstance(row, Fault):
                raise InputError(row.reason)
            redacted, cleaned, watched = Counter(), Counter(), watch_row(row)
            raw = READERS[reader].turns(watched)
            tidied, found = preprocess_turns(raw, lambda text: self.preprocessor.preprocess(text, redacted, cleaned))
            turns, changes = arrange(tidied)
            if self.excluded and self._is_excluded(raw):
                return Prepared(line, reason=OVERLAP, excerpt=self.preprocessor.excerpt(row))
        except InputError as error:
            return Prepared(line, **self.preprocessor.fault(error, row))
        signatures = self._signatures(turns)
        changes, unread = found + changes + cleaned, self.preprocessor.unread(watched)
        return Prepared(line, turns=turns, signatures=signatures, changes=changes, redacted=redacted, unread=unread)

    def _signatures(self, turns: list[RawTurn]) -> tuple:
        """Compute what duplicates are found by. For near ones a system turn does not count: where it is long and the
        same in all dialogues of a source, those would be alike."""
        text = normalise("\n".join(texts_of(spoken(turns))))  # once; on its result the signatures' own is cheap
        whole = normalise(turns[0].text) + text if turns[0].role == "system" else text
        return tuple(one.signature(whole if name == EXACT else text) for name, one in self.deduplicators.items())

    def _is_excluded(self, raw: Turns) -> bool:
        """Whether the dialogue stands in an evaluation set; its texts are compared as they were."""
        turns = [RawTurn(*turn) for turn in raw]
        first = next(number for number, turn in enumerate(turns) if turn.role == "user" and turn.text.strip())
        return self.excluded.overlaps_dialogue(turns[first].text, texts_of([*turns[:first], *turns[first + 1 :]]))
