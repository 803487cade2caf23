"""Make dialogues of rows of a source: turns, cleaning, redaction, merging, signatures. It runs in worker processes."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.decontamination import OverlapIndex
from megatron_chimed.data.dedup import make_deduplicators
from megatron_chimed.data.dialogue_readers import READERS, Unanswered
from megatron_chimed.data.dialogue_texts import Turns
from megatron_chimed.data.preprocess import PreparedRow, Preprocessor
from megatron_chimed.data.sources import Fault
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
    """Result of one row: `turns` from a user's to an assistant's, or the reason why none.

    changes: how many turns were empty, merged, cut or left out. tokens: ids of all turns' texts.
    """

    turns: Turns = ()
    tokens: int = 0


def merge_turns(turns: Turns) -> tuple[Turns, Counter]:
    """Merge turns so that they alternate, and count what was changed for it.

    Empty turns and those of a system are left out, consecutive turns of one speaker are joined by a line break.
    """
    changes: Counter = Counter()
    merged: Turns = []
    for role, text in turns:
        if not text or role == "system":
            changes["system turns left out" if text else "empty turns left out"] += 1
        elif merged and merged[-1][0] == role:
            merged[-1] = (role, f"{merged[-1][1]}\n{text}")
            changes["turns merged"] += 1
        else:
            merged.append((role, text))
    return merged, changes


def arrange(turns: Turns) -> tuple[Turns, Counter]:
    """Arrange turns to alternate from a user's to an assistant's, and count what was changed for it.

    Beyond what `merge_turns` does, assistant turns before the first question and user turns after the last answer are
    cut. Raises Unanswered when nothing is left.

    >>> arrange([("user", "头痛"), ("user", "怎么办"), ("assistant", "休息"), ("user", "谢谢")])
    ([('user', '头痛\\n怎么办'), ('assistant', '休息')], Counter({'turns merged': 1, 'trailing questions cut': 1}))
    """
    arranged, changes = merge_turns(turns)
    roles = {role for role, _ in arranged}
    if len(roles) == 1:
        raise Unanswered("no doctor's answer" if "user" in roles else "no patient's turn")
    if arranged and arranged[0][0] == "assistant":
        changes["leading answers cut"] += 1
        del arranged[0]
    if arranged and arranged[-1][0] == "user":
        changes["trailing questions cut"] += 1
        del arranged[-1]
    if not arranged:
        raise Unanswered("no doctor's answer (the patient has the last word)" if roles else "empty dialogue")
    return arranged, changes


class DialogueWorker:
    """Makes dialogues of rows. tokenizer: None leaves tokens uncounted; excluded: None keeps all."""

    def __init__(
        self, options: DialogueOptions, tokenizer: Tokenizer | None = None, excluded: OverlapIndex | None = None
    ):
        self.preprocessor = Preprocessor(options.clean, options.redact)
        self.tokenizer, self.excluded = tokenizer, excluded
        self.deduplicators = list(make_deduplicators(options.dedup).values())

    def prepare(self, reader: str, rows: list[tuple[int, Any]]) -> list[Prepared]:
        """Prepare each (line, row) that the reader of this name has yielded."""
        prepared = [self._prepare(reader, line, row) for line, row in rows]
        if self.tokenizer:
            texts = [text for one in prepared for _, text in one.turns]
            lengths = map(len, self.tokenizer.encode_batch(texts) if texts else [])
            for one in prepared:
                one.tokens = sum(next(lengths) for _ in one.turns)
        return prepared

    def _prepare(self, reader: str, line: int, row: Any) -> Prepared:
        try:
            if isinstance(row, Fault):
                raise InputError(row.reason)
            raw = READERS[reader].turns(row)
            redacted: Counter = Counter()
            turns, changes = arrange([(role, self.preprocessor.preprocess(text, redacted)) for role, text in raw])
            if self.excluded and self._is_excluded(raw):
                return Prepared(line, reason=OVERLAP, excerpt=self.preprocessor.excerpt(row))
        except InputError as error:
            return Prepared(line, **self.preprocessor.fault(error, row))
        text = normalise("\n".join(text for _, text in turns))  # once; on its result the signatures' own is cheap
        signatures = tuple(one.signature(text) for one in self.deduplicators)
        return Prepared(line, turns=turns, signatures=signatures, changes=changes, redacted=redacted)

    def _is_excluded(self, raw: Turns) -> bool:
        """Whether the dialogue stands in an evaluation set; its texts are compared as they were."""
        first = next(number for number, (role, text) in enumerate(raw) if role == "user" and text.strip())
        others = (text for number, (_, text) in enumerate(raw) if number != first)
        return self.excluded.overlaps_dialogue(raw[first][1], others)
