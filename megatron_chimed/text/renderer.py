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
from megatron_chimed.text.slots import Field, Piece, Segment, Slots, fill, segments
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import Tokenizer

THINKING = ("train", "mask", "drop")
"""What training does with thinking: learns it, has it in the row without learning it, or leaves it out."""


SYSTEM, QUESTION, THOUGHT, ANSWER = range(4)
"""Numbers of the texts of an exchange."""


class _Layout(NamedTuple):
    """How the texts of an exchange stand among ids.

    prompt: what precedes the answer; whole: both, or the answer alone where it is encoded apart; masked: what is not
    learnt of the whole, from its start, [] for nothing; past: the exchange as history, [] where it is the whole;
    answer: the answer alone.
    """

    prompt: list[Segment]
    whole: list[Segment]
    masked: list[Segment]
    past: list[Segment]
    answer: list[Segment]


class _Plan(NamedTuple):
    """An exchange before it is encoded: its layout and texts, and whether it is learnt, and is history of another."""

    layout: _Layout
    texts: tuple[str, str, str, str]
    learn: bool
    is_past: bool


NOTHING = np.zeros(0, np.int32)


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
        self._layouts: dict[tuple, _Layout] = {}
        for marker in sorted(markers):
            self._encode([marker], f"the template's token {marker!r}")
        self.end_id = int(self._pieces(template.assistant[-1:])[0])
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

    def _pieces(self, some: Slots, number: int = 0) -> list[Piece]:
        """Put ids, texts and the place of the text `number` in the place of slots; `generation` has done its part."""
        pieces: list[Piece] = []
        for kind, value in some:
            if kind == "content":
                pieces.append(Field(number, value))
            elif kind != "generation":
                pieces.append(value if kind == "text" else self._ids[value or kind])
        return pieces

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
        before, behind = self._question(self._told(system), is_first=True, is_past=False)
        tail = [*behind, *self._pieces(self.template.lead)]
        layouts = [before, tail, [*tail, *self._no_thinking()]]
        head_ids, *tail_ids = self._encode_chains([fill(segments(one), (system, "", "", "")) for one in layouts])
        head = common(prompt, head_ids)
        tail = max(common(prompt[head:][::-1], ids[::-1]) for ids in tail_ids)
        if head + tail > limit:
            return None
        return np.concatenate([prompt[:head], prompt[len(prompt) - (limit - head) :]])

    def after_answer(self) -> np.ndarray:
        """The ids, int32 [n], between an answer and the next question, where they are no part of that one's text."""
        return self._encode_chains([fill(segments(self._pieces(self.template.after_answer)), ())])[0]

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

    def _told(self, system: str) -> bool:
        """Whether a dialogue with this system text has a system turn."""
        return bool(system) or self.template.default_system is not None

    def _exchanges(
        self, dialogues: list[tuple[str, Sequence[Turn]]], think: bool | None = None
    ) -> list[list[Exchange]]:
        """The exchanges of (system text, turns of user and assistant); a last question may have no answer."""
        template, plans = self.template, []
        for system, turns in dialogues:
            plans += [self._plan(system, turns, place, think) for place in range(0, len(turns), 2)]
        made, found = iter(self._finish(plans)), []
        for system, turns in dialogues:
            exchanges = [next(made) for _ in range(0, len(turns), 2)]
            told = self._told(system) and template.system_in != "last_question"
            if template.start or template.after_answer or told:
                for number, one in enumerate(exchanges):
                    one.system = system
                    one.first = self._remake(system, turns, 2 * number, think) if number else None
            found.append(exchanges)
        return found

    def _remake(self, system: str, turns: Sequence[Turn], place: int, think: bool | None) -> Callable[[], Exchange]:
        """Make a function that renders one exchange as the first of its dialogue."""

        def remake() -> Exchange:
            (exchange,) = self._finish([self._plan(system, turns, place, think, is_first=True)])
            exchange.system = system
            return exchange

        return remake

    def _plan(
        self, system: str, turns: Sequence[Turn], place: int, think: bool | None, is_first: bool = False
    ) -> _Plan:
        """Plan the exchange whose question is turns[place]. Raises InputError for thinking that has no place."""
        question, answer = turns[place], turns[place + 1] if place + 1 < len(turns) else None
        thought, text, learn = ("", "", True) if answer is None else (answer.thinking, answer.text, answer.learn)
        if thought and self.thinking == "drop":
            thought = ""
        elif thought and not self.template.thinking:
            raise InputError(
                f"template {self.template.name!r} has no place for an answer's thinking; drop it (--thinking drop), or "
                "give a template that has slots `thinking`"
            )
        is_open = bool(thought) if answer is not None else self.template.think if think is None else think
        is_past = place + 2 < len(turns)
        key = self._told(system), is_first or not place, bool(thought), is_open, answer is not None, is_past
        if key not in self._layouts:
            self._layouts[key] = self._layout(*key)
        return _Plan(self._layouts[key], (system, question.text, thought, text), learn, is_past)

    def _layout(
        self, told: bool, is_first: bool, has_thought: bool, is_open: bool, has_answer: bool, is_past: bool
    ) -> _Layout:
        """Lay an exchange out. is_open: its prompt leaves the thinking to the model."""
        template, past = self.template, []
        before, behind = self._question(told, is_first=is_first, is_past=False)
        prompt = [*before, *behind, *self._pieces(template.lead), *(() if is_open else self._no_thinking())]
        thinking = self._pieces(template.thinking, THOUGHT) if has_thought else []
        answer = [*thinking, *self._pieces(template.answer, ANSWER)] if has_answer else []
        if is_past and (template.thinking or template.history or template.system_in == "last_question"):
            before, behind = self._question(told, is_first=is_first, is_past=True)
            past = [*before, *behind, *self._pieces(template.history or template.assistant, ANSWER)]
        in_front = [] if template.apart else prompt
        masked = [*in_front, *thinking] if thinking and self.thinking == "mask" else []
        return _Layout(*map(segments, (prompt, [*in_front, *answer], masked, past, answer)))

    def _no_thinking(self) -> list[Piece]:
        """Pieces of the empty block of a prompt that leaves no thinking to the model."""
        return self._pieces(self.template.thinking, THOUGHT) if self.template.empty_thinking else []

    def _question(self, told: bool, *, is_first: bool, is_past: bool) -> tuple[list[Piece], list[Piece]]:
        """Pieces of a question: what stands in front of its own text, and that with what follows."""
        template = self.template
        user, behind = (self._pieces(some, QUESTION) for some in slots.split_at(template.user, "content"))
        system = self._pieces(template.system, SYSTEM) if told else []
        head = self._pieces(template.start if is_first else template.after_answer)
        if template.system_in == "turn":
            return [*head, *(system if is_first else []), *user], behind
        is_told = is_first if template.system_in == "first_question" else not is_past
        return [*head, *user, *(system if is_told else [])], behind

    def _finish(self, plans: list[_Plan]) -> list[Exchange]:
        """Encode the texts of all plans at once."""
        chains = [fill(some, plan.texts) for plan in plans for some in plan.layout[:-1] if some]
        encoded, exchanges = iter(self._encode_chains(chains)), []
        for layout, texts, learn, is_past in plans:
            if self.template.apart and learn and layout.whole and not layout.masked and not layout.past:
                exchanges.append(Exchange(next(encoded), next(encoded)))  # as below, in half of the time
                continue
            prompt, response, masked, past = (next(encoded) if some else NOTHING for some in layout[:-1])
            if not self.template.apart:
                whole, response = response, response[len(prompt) :]
                if not np.array_equal(whole[: len(prompt)], prompt):
                    (response,) = self._encode_chains([fill(layout.answer, texts)])
                    past = whole if is_past and not layout.past else past
            learnt = None if learn else np.zeros(len(response), np.uint8)
            if learn and layout.masked:
                learnt = np.ones(len(response), np.uint8)
                learnt[: common(masked[0 if self.template.apart else len(prompt) :], response)] = 0
            differs = len(past) and not np.array_equal(past, np.concatenate([prompt, response]))
            exchanges.append(Exchange(prompt, response, learnt, past if differs else None))
        return exchanges

    def _encode_chains(self, chains: Sequence[list[Piece]]) -> list[np.ndarray]:
        """int32 ids, [n], of each chain of ids and texts, no two texts beside each other. Raises InputError."""
        texts = list(dict.fromkeys([piece for chain in chains for piece in chain if type(piece) is str]))
        pieces = dict(zip(texts, self._encode(texts), strict=True)) | self._arrays
        found = []
        for chain in chains:
            parts = [pieces[piece] for piece in chain]
            found.append(np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else NOTHING)
        return found

    def _encode(self, texts: list[str], what: str = "plain text") -> list[np.ndarray]:
        """int32 ids, [n], of each text, among which is no boundary id. Raises InputError."""
        flat, lengths = self._plain.encode_flat(texts)
        for number in self._boundaries:
            if (flat == number).any():
                own = "its own BOS or EOS" if number in (self.tokenizer.bos_id, self.tokenizer.eos_id) else "a marker"
                raise InputError(f"the tokenizer makes id {number}, {own}, of {what}; choose another")
        return np.split(flat, np.cumsum(lengths)[:-1]) if texts else []
