"""Frozen records that cross a step as JSON lines. Every reader and writer of a step goes through them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from megatron_chimed.errors import InputError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """One speaker's turn: the patient ("user"), the doctor ("assistant"), or what the model is told before all else
    ("system"). The text is never empty.

    As a row: ``{"role": "assistant", "text": "...", "thinking": "...", "learn": false}``, the last two only where they
    are not the default.
    """

    role: Literal["system", "user", "assistant"]
    text: str

    thinking: str = ""
    """What an assistant thought before it wrote the text; empty for nothing."""

    learn: bool = True
    """False for an assistant's turn that is context alone, never a target of training."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation that ends with an answer: a system turn or none, then turns alternate between user and assistant,
    from a user's turn on.

    id: unique in its file, ``SOURCE:FILE:LINE``; source: the name given to the source, by which metrics are kept apart.

    As a row: ``{"id": "toyhom:a.csv:2", "source": "toyhom", "turns": [{"role": "user", "text": "..."}, ...]}``.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]

    def to_row(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {"id": self.id, "source": self.source, "turns": turns_to_row(self.turns)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Dialogue":
        """Read the record of a JSON object; other fields are left out.

        Raises InputError with the reason alone (the caller knows file and line).
        """
        turns = turns_from_row(row.get("turns"))
        if turns[-1].role == "user":
            raise InputError("the last turn is the user's; expected an answer")
        return cls(_text(row, "id"), _text(row, "source"), turns)


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with a question, to be answered: a system turn or none, then turns alternate, from a
    user's to a user's.

    As a row: ``{"id": "toyhom:a.csv:2", "source": "toyhom", "turns": [{"role": "user", "text": "..."}]}``.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]

    def to_row(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {"id": self.id, "source": self.source, "turns": turns_to_row(self.turns)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Prompt":
        """Read the record of a JSON object; other fields are left out. Raises InputError as `Dialogue.from_row`."""
        turns = turns_from_row(row.get("turns"))
        if turns[-1].role != "user":
            raise InputError("the last turn is the assistant's; expected a question")
        return cls(_text(row, "id"), _text(row, "source"), turns)


ABSENT = -1
"""Preference rank of an answer that is not there."""


@dataclass(frozen=True)
class RankedGroup:
    """Ranked answers to one prompt: two or more places of which some may be empty.

    responses: None where there is no answer; preference_ranks: 0 is best, equal ranks are ties, -1 where there is no
    answer. A place means the same in each group of a file (the doctor's answer, GPT-4's, ...), and so does a rank: a
    group whose second-best answer is absent has the ranks 0, -1, 2, 3.

    As a row: ``{"id": ..., "source": ..., "turns": [...], "responses": ["...", null, "..."], "ranks": [0, -1, 2]}``.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    responses: tuple[str | None, ...]
    preference_ranks: tuple[int, ...]

    def to_row(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        row = {"id": self.id, "source": self.source, "turns": turns_to_row(self.turns)}
        return row | {"responses": list(self.responses), "ranks": list(self.preference_ranks)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "RankedGroup":
        """Read the record of a JSON object; other fields are left out. Raises InputError as `Dialogue.from_row`."""
        prompt = Prompt.from_row(row)
        responses, ranks = row.get("responses"), row.get("ranks")
        if not isinstance(responses, list) or len(responses) < 2:
            raise InputError(f"field 'responses' holds {_shown(responses)}; expected a list of two texts or more")
        if not isinstance(ranks, list) or len(ranks) != len(responses):
            raise InputError(f"field 'ranks' holds {_shown(ranks)}; expected one number for each of the responses")
        for place, (response, rank) in enumerate(zip(responses, ranks, strict=True)):
            if type(rank) is not int or rank < ABSENT:
                raise InputError(f"rank {place} is {_shown(rank)}; expected a whole number from 0, or -1 for no answer")
            if response is not None and (not isinstance(response, str) or not response.strip()):
                raise InputError(f"response {place} is {_shown(response)}; expected a non-empty string, or null")
            if (response is None) != (rank == ABSENT):
                raise InputError(
                    f"response {place} is {_shown(response)} with rank {rank}; rank -1 and null go together"
                )
        return cls(prompt.id, prompt.source, prompt.turns, tuple(responses), tuple(ranks))


@dataclass(frozen=True)
class Candidate:
    """A sampled answer of rejection sampling. (round, prompt, sample) is its key.

    round: from 1; prompt: id of the `Prompt`; sample: from 0; response: its text, empty if the model said nothing;
    num_tokens: tokens drawn, EOS included; finished: whether EOS ended it, not the limit; reward: None until scored;
    thinking: what the model thought before the response, a field of rows that have some.

    As a row: ``{"round": 1, "prompt": "toyhom:a.csv:2", "sample": 0, "response": "...", "num_tokens": 31,
    "finished": true, "reward": null}``.
    """

    round: int
    prompt: str
    sample: int
    response: str
    num_tokens: int
    finished: bool
    reward: float | None = None
    thinking: str = ""

    @property
    def key(self) -> tuple[int, str, int]:
        """(round, prompt, sample)."""
        return self.round, self.prompt, self.sample

    def to_row(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {name: value for name, value in asdict(self).items() if name != "thinking" or value}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Candidate":
        """Read the record of a JSON object; other fields are left out. Raises InputError as `Dialogue.from_row`."""
        for name in ("round", "sample", "num_tokens"):
            if type(row.get(name)) is not int or row[name] < 0:
                raise InputError(f"field {name!r} holds {_shown(row.get(name))}; expected a whole number from 0")
        if not isinstance(row.get("response"), str):
            raise InputError(f"field 'response' holds {_shown(row.get('response'))}; expected a string")
        if not isinstance(row.get("finished"), bool):
            raise InputError(f"field 'finished' holds {_shown(row.get('finished'))}; expected true or false")
        reward = row.get("reward")
        if reward is not None and (type(reward) not in (int, float) or not math.isfinite(reward)):
            raise InputError(f"field 'reward' holds {_shown(reward)}; expected a number, or null")
        if not isinstance(thinking := row.get("thinking", ""), str):
            raise InputError(f"field 'thinking' holds {_shown(thinking)}; expected a string")
        names = ("round", "sample", "response", "num_tokens", "finished", "reward")
        return cls(prompt=_text(row, "prompt"), **{name: row.get(name) for name in names}, thinking=thinking)


def split_system(turns: Sequence[Turn]) -> tuple[Turn | None, tuple[Turn, ...]]:
    """Split turns into the system turn, None where there is none, and those of user and assistant."""
    has_system = bool(turns) and turns[0].role == "system"
    return (turns[0], tuple(turns[1:])) if has_system else (None, tuple(turns))


def turns_to_row(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Write turns as JSON objects."""
    return [
        {"role": turn.role, "text": turn.text}
        | ({"thinking": turn.thinking} if turn.thinking else {})
        | ({} if turn.learn else {"learn": False})
        for turn in turns
    ]


def turns_from_row(turns: Any) -> tuple[Turn, ...]:
    """Read turns from a JSON list: a system turn or none, then user's and assistant's by turns, one at least.

    Raises InputError.
    """
    if not isinstance(turns, list) or not turns:
        raise InputError(f"field 'turns' holds {_shown(turns)}; expected a list of {{role, text}}")
    parsed = tuple(_turn(number, turn) for number, turn in enumerate(turns))
    first = int(parsed[0].role == "system")
    if first == len(parsed):
        raise InputError("turn 0 is the system's, and no other turn is there; expected the user's behind it")
    for number, turn in enumerate(parsed[first:]):
        expected = ROLES[1 + number % 2]
        if turn.role != expected:
            raise InputError(
                f"turn {first + number} is the {turn.role}'s; expected the {expected}'s (turns alternate, "
                "and a system's is the first)"
            )
    return parsed


def _text(row: dict[str, Any], name: str) -> str:
    """Read a field that is a text. Raises InputError."""
    if not isinstance(row.get(name), str) or not row[name]:
        raise InputError(f"field {name!r} holds {_shown(row.get(name))}; expected a non-empty string")
    return row[name]


def _turn(number: int, turn: Any) -> Turn:
    """Read a turn from a JSON object. Raises InputError."""
    if not isinstance(turn, dict):
        raise InputError(f"turn {number} is {_shown(turn)}; expected an object with role and text")
    if turn.get("role") not in ROLES:
        raise InputError(f"turn {number} has role {_shown(turn.get('role'))}; expected one of {', '.join(ROLES)}")
    if not isinstance(turn.get("text"), str) or not turn["text"].strip():
        raise InputError(f"turn {number} has text {_shown(turn.get('text'))}; expected a non-empty string")
    if "thinking" not in turn and "learn" not in turn:
        return Turn(turn["role"], turn["text"])
    thinking, learn = turn.get("thinking", ""), turn.get("learn", True)
    if not isinstance(thinking, str) or type(learn) is not bool:
        raise InputError(
            f"turn {number} has thinking {_shown(thinking)} and learn {learn!r}; expected a string, and true or false"
        )
    if turn["role"] != "assistant" and (thinking or not learn):
        raise InputError(f"turn {number} is the {turn['role']}'s, with thinking or learn; only an assistant's has them")
    return Turn(turn["role"], turn["text"], thinking, learn)


def _shown(value: Any) -> str:
    """Show a value in a message, cut to 60 characters."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
