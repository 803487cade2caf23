"""Make ranked groups of rows of a source: cleaning, redaction, answers that count. It runs in worker processes."""

import functools
import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.dedup import EXACT, make_deduplicators, normalise
from megatron_chimed.data.fields import watch_row
from megatron_chimed.data.preprocess import PreparedRow, Preprocessor, Unusable
from megatron_chimed.data.ranking_readers import READERS
from megatron_chimed.data.sources import Fault
from megatron_chimed.data.turns import CUT, RawTurn, merge_turns, preprocess_turns, split_thinking, spoken, texts_of
from megatron_chimed.errors import InputError
from megatron_chimed.records import ABSENT


@dataclass(frozen=True)
class RankingOptions:
    """Options of groups. dedup: "none", "exact" (a question once) or "near" (also no group whose question with
    answers is nearly another's; the question alone would not do, as short ones may differ by a disease's name only)."""

    clean: bool = True
    redact: bool = True
    dedup: str = "near"


@dataclass
class PreparedGroup(PreparedRow):
    """Result of one row: a group as in `RankedGroup`, or the reason why none.

    question: digest of the prompt's normalised text, without a system turn: another one makes no other question.
    changes: how many turns, answers and thoughts were left out, and what cleaning has changed, by rule.
    """

    turns: list[RawTurn] = ()
    responses: tuple[str | None, ...] = ()
    preference_ranks: tuple[int, ...] = ()
    question: bytes = b""


def arrange_prompt(turns: list[RawTurn]) -> tuple[list[RawTurn], Counter]:
    """Arrange turns to alternate from a user's to a user's, and count what was changed for it. Raises Unusable.

    A system turn may stand in front. Thinking is left out: the history of a question is without.

    >>> arrange_prompt([RawTurn("assistant", "您好"), RawTurn("user", "头痛"), RawTurn("user", "怎么办")])[0]
    [RawTurn(role='user', text='头痛\\n怎么办', thinking='', learn=True)]
    """
    merged, changes = merge_turns(turns)
    if CUT in changes:
        raise Unusable("a system turn behind an answer")  # the answers are to what follows it
    system, arranged = [turn for turn in merged if turn.role == "system"], spoken(merged)
    if arranged and arranged[0].role == "assistant":
        changes["leading answers cut"] += 1
        del arranged[0]
    if not arranged:
        raise Unusable("no question")
    if arranged[-1].role == "assistant":
        raise Unusable("no question (the last turn is an answer)")
    changes["thoughts of the history left out"] += sum(turn.thinking != "" for turn in arranged)
    return [turn._replace(thinking="", learn=True) for turn in (*system, *arranged)], +changes


def strip_thinking(responses: list[str | None]) -> tuple[list[str | None], int]:
    """Return answers without their think blocks, and how many had one: what is compared is what a patient reads.

    Raises InputError as `split_thinking`.
    """
    found = [(None, None) if text is None else split_thinking(text) for text in responses]
    return [text for _, text in found], sum(thinking is not None for thinking, _ in found)


def settle_answers(responses: list[str | None], ranks: list[int]) -> tuple[list[str | None], list[int], Counter]:
    """Keep the answers that can be compared, the others absent in their places; and count those.

    An empty answer is absent, and of answers that are equal (but for width, case and white space) all but the best.
    Raises Unusable when no two answers of different rank are left.

    >>> settle_answers(["休息", "", "休息。", "休息"], [0, 1, 2, 3])
    (['休息', None, '休息。', None], [0, -1, 2, -1], Counter({'empty answers': 1, 'equal answers': 1}))
    """
    changes: Counter = Counter()
    kept: list[str | None] = [None] * len(responses)
    seen: set[str] = set()
    for place in sorted(range(len(responses)), key=lambda place: ranks[place]):
        if ranks[place] == ABSENT:
            continue
        text = responses[place]
        if not text:
            changes["empty answers"] += 1
        elif normalise(text) in seen:
            changes["equal answers"] += 1
        else:
            seen.add(normalise(text))
            kept[place] = text
    present = [rank for rank, text in zip(ranks, kept, strict=True) if text is not None]
    if len(present) < 2:
        raise Unusable("answers are equal" if changes["equal answers"] else "less than two answers")
    if len(set(present)) == 1:
        raise Unusable("all answers tied")
    return kept, [ABSENT if text is None else rank for rank, text in zip(ranks, kept, strict=True)], changes


class RankingWorker:
    """Makes groups of rows."""

    def __init__(self, options: RankingOptions):
        self.preprocessor = Preprocessor(options.clean, options.redact)
        self.deduplicators = make_deduplicators(options.dedup)

    def prepare(self, reader: str, rows: list[tuple[int, Any]]) -> list[PreparedGroup]:
        """Prepare each (line, row) that the reader of this name has yielded."""
        return [self._prepare(reader, line, row) for line, row in rows]

    def _prepare(self, reader: str, line: int, row: Any) -> PreparedGroup:
        try:
            if isinstance(row, Fault):
                raise InputError(row.reason)
            redacted, cleaned, watched = Counter(), Counter(), watch_row(row)
            raw = READERS[reader].group(watched)
            preprocess = functools.partial(self.preprocessor.preprocess, redacted=redacted, cleaned=cleaned)
            tidied, found = preprocess_turns(raw.turns, preprocess)
            turns, changes = arrange_prompt(tidied)
            answers, found["thoughts of answers left out"] = strip_thinking(raw.responses)
            texts = [None if text is None else preprocess(text) for text in answers]
            responses, ranks, more = settle_answers(texts, raw.preference_ranks)
        except InputError as error:
            return PreparedGroup(line, **self.preprocessor.fault(error, row))
        question = normalise("\n".join(texts_of(spoken(turns))))
        system = normalise(turns[0].text) if turns[0].role == "system" else ""
        compared = {True: system + question, False: question + normalise("\n".join(filter(None, responses)))}
        return PreparedGroup(
            line,
            turns=turns,
            responses=tuple(responses),
            preference_ranks=tuple(ranks),
            question=hashlib.sha256(question.encode(errors="surrogatepass")).digest(),
            signatures=tuple(one.signature(compared[name == EXACT]) for name, one in self.deduplicators.items()),
            changes=found + changes + more + cleaned,
            redacted=redacted,
            unread=self.preprocessor.unread(watched),
        )
