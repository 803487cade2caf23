"""The only renderer: turns of a dialogue to token ids, for training and for generation alike.

A dialogue is a chain of exchanges, each a user's turn and its answer. With the default template, ``chimed``, the form
of the released model, an exchange is

    BOS [human]:QUESTION\\n[bot]: ANSWER EOS        (BOS and EOS are ids; the rest is text)

and a dialogue of several turns repeats it. What is encoded on its own is the prompt text of an exchange, prefix,
question and suffix as one string, and the answer as another. So the ids of a prompt are those of its plain text,
whatever comes after it, and at generation the model sees exactly the prompts that it was trained on; a SentencePiece
model with a dummy prefix begins each answer with its space piece.

What is guaranteed: BOS and EOS are put in by position and never come out of text, a user's ``</s>`` stays five
characters, and only tokens of assistant's turns and the EOS behind them are trained, by position, whatever their ids
are. What is not: the role markers ``[human]:`` and ``[bot]:`` are plain text in the released format, so a user can
write them; but within one user's turn there is no EOS and BOS around them, as there is around each real answer, and
nothing of it is trained.

Source: arXiv 2311.06025, section on supervised fine-tuning ("boundaries of different pairs are marked by special
tokens"); the prompt format of the released model.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_chimed.config import parse_dataclass, read_mapping
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import sha256_json
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Template:
    """What stands around the turns. A YAML file gives any of the fields, each of them chimed's where it is left out."""

    name: str = "chimed"
    """For people; part of the hash all the same."""

    user_prefix: str = "[human]:"
    """Text in front of a user's turn."""

    user_suffix: str = "\n[bot]:"
    """Text between a user's turn and the answer."""

    bos: bool = True
    """Put the tokenizer's BOS in front of each exchange. EOS always ends it."""

    def __post_init__(self):
        if not (self.user_prefix + self.user_suffix).strip():
            raise InputError(f"template {self.name!r}: user_prefix and user_suffix are blank; give at least one text")

    @staticmethod
    def load(path: str | Path | None = None) -> "Template":
        """The template of a YAML file, or chimed without one; see `load_template`.

        >>> import megatron_chimed as mc
        >>> mc.Template.load().user_prefix
        '[human]:'
        """
        return load_template(path)

    def plain(self, texts: Sequence[str]) -> str:
        """A dialogue that ends with a question as plain text, a line for each turn, for models without a chat template.

        >>> Template().plain(["头痛怎么办？"])
        '[human]:头痛怎么办？\\n[bot]:'
        """
        marks = (self.user_prefix, f"{self.user_suffix.strip()} ")
        turns = "".join(f"{marks[number % 2]}{text}\n" for number, text in enumerate(texts))
        return turns + self.user_suffix.strip()

    def jinja(self, user_space: str = "", answer_space: str = "") -> str:
        """The template as a chat template of transformers. A system message is a line in front of the next question.

        The spaces stand for the dummy prefix of SentencePiece, which some tokenizers put only in front of a whole text.
        """
        prefix, suffix = (json.dumps(text, ensure_ascii=False) for text in (self.user_prefix, self.user_suffix))
        bos = "bos_token + " if self.bos else ""
        return (
            "{%- set seen = namespace(system='') -%}"
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'system' -%}{%- set seen.system = message['content'] + '\\n' -%}"
            "{%- elif message['role'] == 'user' -%}"
            f"{{{{- {bos}'{user_space}' + {prefix} + seen.system + message['content'] + {suffix} -}}}}"
            "{%- set seen.system = '' -%}"
            f"{{%- else -%}}{{{{- '{answer_space}' + message['content'] + eos_token -}}}}"
            "{%- endif -%}{%- endfor -%}"
        )

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over all that decides the ids."""
        return sha256_json(asdict(self))


def load_template(path: str | Path | None = None) -> Template:
    """The template of a YAML file, or chimed without one.

    Raises InputError with file and line: an unknown key, a key given twice, a wrong type, blank texts.
    """
    if path is None:
        return Template()
    settings = read_mapping(path)
    try:
        fields = {str(key): value for key, value in settings.items()}
        return parse_dataclass(fields, Template, block=" in a template")[0]
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


class Exchange(NamedTuple):
    """A user's turn and its answer as int32 ids: prompt [P] with BOS in front, response [R] with EOS at its end."""

    prompt: np.ndarray
    response: np.ndarray


class Rendered(NamedTuple):
    """tokens [n] int32; loss_mask [n] uint8: 1 for a token to be learnt, which are those of a response and its EOS."""

    tokens: np.ndarray
    loss_mask: np.ndarray


class Renderer:
    """A template together with a tokenizer. Instances can be pickled, and so be sent to worker processes."""

    def __init__(self, template: Template, tokenizer: Tokenizer):
        """Raises InputError if the tokenizer has no EOS, or no BOS where the template wants one."""
        if tokenizer.eos_id is None:
            raise InputError("the tokenizer has no EOS, which must end every answer; choose one that has")
        if template.bos and tokenizer.bos_id is None:
            raise InputError(
                f"template {template.name!r} starts exchanges with BOS, and the tokenizer has none; "
                "give a template with bos: false"
            )
        self.template, self.tokenizer = template, tokenizer
        self._bos = np.array([tokenizer.bos_id] if template.bos else [], np.int32)
        self._eos = np.array([tokenizer.eos_id], np.int32)
        self._boundaries = {tokenizer.eos_id} | ({tokenizer.bos_id} - {None})
        prefix, suffix = self._encode([template.user_prefix, template.user_suffix])
        self._head, self._tail = np.concatenate([self._bos, prefix]), suffix

    def encode_exchanges(self, dialogues: Sequence[Sequence[Turn]]) -> list[list[Exchange]]:
        """The exchanges of each dialogue; its turns alternate and end with an assistant's. One call of the tokenizer.

        Raises InputError if a text holds an unpaired surrogate, or if the tokenizer makes a boundary id of text.
        """
        texts = [self._text(turn) for turns in dialogues for turn in turns]
        pieces = iter(self._encode(texts))
        rendered = []
        for turns in dialogues:
            pairs = [(next(pieces), next(pieces)) for _ in range(len(turns) // 2)]
            rendered.append(
                [
                    Exchange(np.concatenate([self._bos, prompt]), np.concatenate([response, self._eos]))
                    for prompt, response in pairs
                ]
            )
        return rendered

    def render(self, dialogue: Dialogue) -> Rendered:
        """A whole dialogue, every answer of it to be learnt. Raises InputError as `encode_exchanges`."""
        return join(self.encode_exchanges([dialogue.turns])[0])

    def render_prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """The ids, int32 [n], after which the answer to the last turn is generated; it is a user's.

        They are what stands before that answer in `render` of the longer dialogue. Raises InputError as there.
        """
        if len(turns) % 2 != 1:
            raise InputError(f"a prompt of {len(turns)} turns; expected one that ends with the user's turn")
        history = self.encode_exchanges([turns[:-1]])[0]
        last = self._encode([self._text(turns[-1])])[0]
        return np.concatenate([*(ids for exchange in history for ids in exchange), self._bos, last])

    def cut_prompt(self, prompt: np.ndarray, limit: int) -> np.ndarray | None:
        """Cut an exchange's prompt, int32 [n], to `limit` tokens, by leaving out the oldest tokens of the user's text.

        BOS and the template's texts around the user's stay whole. None if these alone are more than the limit.
        """
        head = _common(prompt, self._head)
        tail = _common(prompt[head:][::-1], self._tail[::-1])
        if head + tail > limit:
            return None
        return np.concatenate([prompt[:head], prompt[len(prompt) - (limit - head) :]])

    def _text(self, turn: Turn) -> str:
        """What is encoded of a turn."""
        return (
            turn.text if turn.role == "assistant" else self.template.user_prefix + turn.text + self.template.user_suffix
        )

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """int32 ids, [n], of each text, among which is no boundary id. Raises InputError."""
        pieces = [np.asarray(ids, dtype=np.int32) for ids in self.tokenizer.encode_batch(texts)]
        flat = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
        for number in self._boundaries:
            if (flat == number).any():
                raise InputError(f"the tokenizer makes id {number}, its own BOS or EOS, of plain text; choose another")
        return pieces


def join(exchanges: Sequence[Exchange], first_trained: int = 0) -> Rendered:
    """Exchanges end to end; the responses from exchange `first_trained` on are to be learnt."""
    tokens = np.concatenate([ids for exchange in exchanges for ids in exchange])
    sizes = [len(ids) for exchange in exchanges for ids in exchange]
    learnt = [number % 2 == 1 and number // 2 >= first_trained for number in range(len(sizes))]
    return Rendered(tokens, np.repeat(np.array(learnt, np.uint8), sizes))


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many ids two arrays, [n] and [m], have in common at their start."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
