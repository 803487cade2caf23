"""The only renderer: turns of a dialogue to token ids, for training and for generation alike.

What is guaranteed: ids of slots are put in by position and never come out of text, so that a user's ``</s>`` or
``<|im_end|>`` stays characters; only tokens of assistant's turns and the id that ends them are trained, by position,
whatever their ids are; and a prompt has the same ids at generation as in training. What is not: a marker that is plain
text in the family's format, such as chimed's ``[human]:``, can be written by a user; but within one user's turn there
are no ids around it, as there are around each real answer, and nothing of it is trained.

A template with `apart` (chimed) encodes each prompt of an exchange as one text and each answer as another. Any other
encodes as transformers does: what stands between two ids is one text. The ids of an answer are then what follows the
prompt's. Where a tokenizer joins the end of a prompt with the start of an answer, the answer to be learnt is encoded on
its own, as it is generated behind the prompt, and only where it is history it stands as transformers renders it.

An answer may stand otherwise in the history of a later question than where it is learnt (`Exchange.past`): Qwen3's
history is without thinking and without the empty block of an answer that has none.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.records import Dialogue, Turn, split_system
from megatron_chimed.text import slots
from megatron_chimed.text.exchange import Exchange, Rendered, common, is_chain, join
from megatron_chimed.text.slots import Piece, Slot, Slots, fill, merge
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import Tokenizer

THINKING = ("train", "mask", "drop")
"""What training does with thinking: learns it, has it in the row without learning it, or leaves it out."""


class _Plan(NamedTuple):
    """An exchange before its texts are encoded.

    Pieces of the prompt; of the answer; of both as one, None where they are encoded apart; of what is masked, behind
    the prompt unless apart, None for nothing; of the exchange as history, None where that is the whole; whether another
    exchange follows; whether it is learnt.
    """

    prompt: list[Piece]
    answer: list[Piece]
    whole: list[Piece] | None
    masked: list[Piece] | None
    past: list[Piece] | None
    is_past: bool
    learn: bool


class Renderer:
    """A template together with a tokenizer. Instances can be pickled, and so be sent to worker processes.

    stop_ids: ids that end an answer at generation: end_id, which ends each in training, and EOS.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, thinking: str = "train"):
        """thinking: one of THINKING. Raises InputError if the tokenizer lacks an id of the template, or finds one in
        plain text."""
        if thinking not in THINKING:
            raise InputError(f"thinking {thinking!r}: expected one of {', '.join(THINKING)}")
        self.template, self.tokenizer, self.thinking = template, tokenizer, thinking
        used = set(template.all_slots)
        if slots.EOS in used and tokenizer.eos_id is None:
            raise InputError("the tokenizer has no EOS, which must end every answer; choose one that has")
        if slots.BOS in used and tokenizer.bos_id is None:
            raise InputError(
                f"template {template.name!r} starts exchanges with BOS, and the tokenizer has none; "
                "give a template with bos: false, or one without bos"
            )
        markers = {slot.value for slot in used if slot.kind == "token"}
        self._ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id} | {one: self._token(one) for one in markers}
        self._plain = tokenizer if template.apart and not markers else tokenizer.between(markers)
        self._boundaries = set(self._ids.values()) - {None}
        self._arrays = {number: np.array([number], np.int32) for number in self._boundaries}
        self._start, self._after = self._compile(template.start), self._compile(template.after_answer)
        self._system, self._thinking = self._compile(template.system), self._compile(template.thinking)
        self._before, self._behind = map(self._compile, slots.split_at(template.user, "content"))
        self._lead, self._answer = self._compile(template.lead), self._compile(template.answer)
        self._history = self._compile(template.history or template.assistant)
        self._empty = fill(self._thinking) if template.empty_thinking else []
        for marker in sorted(markers):
            self._encode([marker], f"the template's token {marker!r}")
        self.end_id = int(self._compile(template.assistant)[-1])
        self.stop_ids = tuple(dict.fromkeys(one for one in (self.end_id, tokenizer.eos_id) if one is not None))

    def _token(self, name: str) -> int:
        """Find the id of a template's token. Raises InputError."""
        number = self.tokenizer.token_to_id(name)
        if number is None:
            raise InputError(
                f"template {self.template.name!r} needs the token {name!r}, and the tokenizer has none of that name; "
                "choose the tokenizer or the template that belongs to the model"
            )
        return number

    def _compile(self, some: Slots) -> list[Slot | Piece]:
        """Put ids and texts in the place of all slots but contents; `generation` has done its part."""
        compiled: list[Slot | Piece] = []
        for slot in some:
            if slot.kind == "content":
                compiled.append(slot)
            elif slot.kind != "generation":
                compiled.append(slot.value if slot.kind == "text" else self._ids[slot.value or slot.kind])
        return compiled

    def encode_exchanges(self, dialogues: Sequence[Sequence[Turn]]) -> list[list[Exchange]]:
        """The exchanges of each dialogue; its turns end with an assistant's. One call of the tokenizer, nearly.

        Raises InputError if a text holds an unpaired surrogate, if the tokenizer makes a boundary id of text, and for
        a system turn or thinking for which the template has no place.
        """
        split = [split_system(turns) for turns in dialogues]
        return self._exchanges([(self._system_text(system), turns) for system, turns in split])

    def render(self, dialogue: Dialogue) -> Rendered:
        """A whole dialogue, every answer of it to be learnt, or the last one behind its history where the history is
        other than what is learnt. Raises InputError as `encode_exchanges`."""
        exchanges = self.encode_exchanges([dialogue.turns])[0]
        return join(exchanges, 0 if is_chain(exchanges) else len(exchanges) - 1)

    def render_prompt(self, turns: Sequence[Turn], think: bool | None = None) -> np.ndarray:
        """The ids, int32 [n], after which the answer to the last turn is generated; it is a user's.

        think: leave the thinking to the model, where the template knows an empty block; None for the template's way.
        They are what stands before that answer in `render` of the longer dialogue. Raises InputError as there.
        """
        if not turns or turns[-1].role != "user":
            raise InputError(f"a prompt of {len(turns)} turns; expected one that ends with the user's turn")
        system, turns = split_system(turns)
        (exchanges,) = self._exchanges([(self._system_text(system), turns)], think)
        return np.concatenate([*(ids for one in exchanges[:-1] for ids in one.history), exchanges[-1].prompt])

    def cut_prompt(self, prompt: np.ndarray, limit: int, system: str = "") -> np.ndarray | None:
        """Cut the prompt, int32 [n], of a dialogue's first exchange to `limit` tokens, by leaving out the oldest tokens
        of the user's text. system: as `Exchange` has it.

        All ids and texts of the template and the system turn stay whole. None if these alone are more than the limit.
        """
        before, behind = self._question(system, is_first=True, is_last=True)
        tails = [[*behind, *self._lead], [*behind, *self._lead, *self._empty]]
        head_ids, *tail_ids = self._encode_chains([merge(before), *map(merge, map(fill, tails))])
        head = common(prompt, head_ids)
        tail = max(common(prompt[head:][::-1], ids[::-1]) for ids in tail_ids)
        if head + tail > limit:
            return None
        return np.concatenate([prompt[:head], prompt[len(prompt) - (limit - head) :]])

    def after_answer(self) -> np.ndarray:
        """The ids, int32 [n], between an answer and the next question, where they are no part of that one's text."""
        return self._encode_chains([merge(fill(self._after))])[0]

    def _system_text(self, system: Turn | None) -> str:
        """The text of the system turn. Raises InputError where the template has no place for one."""
        if system is None:
            return self.template.default_system or ""
        if not self.template.system:
            raise InputError(
                f"template {self.template.name!r} has no place for a system turn; leave it out, or give a template "
                "that has slots `system`"
            )
        return system.text

    def _exchanges(
        self, dialogues: list[tuple[str, Sequence[Turn]]], think: bool | None = None
    ) -> list[list[Exchange]]:
        """The exchanges of (system text, turns of user and assistant); a last question may have no answer."""
        plans = [
            [self._plan(system, turns, place, think) for place in range(0, len(turns), 2)]
            for system, turns in dialogues
        ]
        made = iter(self._finish([plan for some in plans for plan in some]))
        found = []
        for (system, turns), some in zip(dialogues, plans, strict=True):
            exchanges = [next(made) for _ in some]
            told = self.template.system_in != "last_question" and self._told(system)
            if self._start or self._after or told:
                for number, one in enumerate(exchanges):
                    one.system = system
                    one._first = self._remake(system, turns, 2 * number, think) if number else None
            found.append(exchanges)
        return found

    def _remake(self, system: str, turns: Sequence[Turn], place: int, think: bool | None) -> Callable[[], Exchange]:
        """Make a function that renders one exchange as the first of its dialogue."""

        def remake() -> Exchange:
            plan = self._plan(system, turns, place, think, is_first=True)
            (exchange,) = self._finish([plan])
            exchange.system = system
            return exchange

        return remake

    def _plan(
        self, system: str, turns: Sequence[Turn], place: int, think: bool | None, is_first: bool | None = None
    ) -> _Plan:
        """Plan the exchange whose question is turns[place]."""
        question, answer = turns[place].text, turns[place + 1] if place + 1 < len(turns) else None
        first, template = place == 0 if is_first is None else is_first, self.template
        is_past = place + 2 < len(turns)
        before, behind = self._question(system, is_first=first, is_last=True, question=question)
        prompt = [*before, *behind, *self._lead]
        thinking = self._thinking_of(answer)
        leaves_thinking = (template.think if think is None else think) if answer is None else bool(thinking)
        if not leaves_thinking:
            prompt += self._empty
        written = [] if answer is None else [*thinking, *fill(self._answer, answer.text)]
        past = None
        if is_past and (self._thinking or template.history or template.system_in == "last_question"):
            before, behind = self._question(system, is_first=first, is_last=False, question=question)
            past = merge([*before, *behind, *fill(self._history, answer.text)])
        masked = merge([*([] if template.apart else prompt), *thinking]) if self.thinking == "mask" else None
        whole = None if template.apart else merge([*prompt, *written])
        learn = answer is None or answer.learn
        return _Plan(merge(prompt), merge(written), whole, masked if thinking else None, past, is_past, learn)

    def _question(
        self, system: str, *, is_first: bool, is_last: bool, question: str = ""
    ) -> tuple[list[Piece], list[Piece]]:
        """Pieces of a question: what stands in front of its own text, and that with what follows."""
        pieces = [*(self._start if is_first else self._after)]
        told = self._told(system)
        place = self.template.system_in
        if place == "turn" and is_first:
            pieces += told
        pieces += self._before
        if (place == "first_question" and is_first) or (place == "last_question" and is_last):
            pieces += told
        return pieces, fill(self._behind, question)

    def _told(self, system: str) -> list[Piece]:
        """Pieces of the system turn; none where there is none."""
        return fill(self._system, system) if system or self.template.default_system is not None else []

    def _thinking_of(self, answer: Turn | None) -> list[Piece]:
        """Pieces of the thinking in front of an answer. Raises InputError where the template has no place for it."""
        if answer is None or not answer.thinking or self.thinking == "drop":
            return []
        if not self._thinking:
            raise InputError(
                f"template {self.template.name!r} has no place for an answer's thinking; drop it (--thinking drop), or "
                "give a template that has slots `thinking`"
            )
        return fill(self._thinking, answer.thinking)

    def _finish(self, plans: list[_Plan]) -> list[Exchange]:
        """Encode the texts of all plans at once."""
        chains = [[one.prompt, one.answer if one.whole is None else one.whole, one.masked, one.past] for one in plans]
        encoded = iter(self._encode_chains([chain for some in chains for chain in some if chain is not None]))
        exchanges = []
        for plan, some in zip(plans, chains, strict=True):
            prompt, response, masked, past = (None if chain is None else next(encoded) for chain in some)
            if plan.whole is not None:
                whole, response = response, response[len(prompt) :]
                if not np.array_equal(whole[: len(prompt)], prompt):
                    (response,) = self._encode_chains([plan.answer])
                    past = whole if past is None and plan.is_past else past
            if past is not None and np.array_equal(past, np.concatenate([prompt, response])):
                past = None
            learnt = None if plan.learn else np.zeros(len(response), np.uint8)
            if plan.learn and masked is not None:
                skipped = 0 if plan.whole is None else len(prompt)
                learnt = np.ones(len(response), np.uint8)
                learnt[: common(masked[skipped:], response)] = 0
            exchanges.append(Exchange(prompt, response, learnt, past))
        return exchanges

    def _encode_chains(self, chains: Sequence[list[Piece]]) -> list[np.ndarray]:
        """int32 ids, [n], of each chain of ids and texts, no two texts beside each other. Raises InputError."""
        texts = list(dict.fromkeys(piece for chain in chains for piece in chain if isinstance(piece, str)))
        pieces = dict(zip(texts, self._encode(texts), strict=True)) | self._arrays
        found = []
        for chain in chains:
            parts = [pieces[piece] for piece in chain]
            found.append(parts[0] if len(parts) == 1 else np.concatenate(parts or [np.zeros(0, np.int32)]))
        return found

    def _encode(self, texts: list[str], what: str = "plain text") -> list[np.ndarray]:
        """int32 ids, [n], of each text, among which is no boundary id. Raises InputError."""
        pieces = [np.asarray(ids, dtype=np.int32) for ids in self._plain.encode_batch(texts)] if texts else []
        flat = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        for number in self._boundaries:
            if (flat == number).any():
                own = "its own BOS or EOS" if number in (self.tokenizer.bos_id, self.tokenizer.eos_id) else "a marker"
                raise InputError(f"the tokenizer makes id {number}, {own}, of {what}; choose another")
        return pieces
