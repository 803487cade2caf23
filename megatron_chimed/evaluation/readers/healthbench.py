"""HealthBench's conversations, each with criteria of its own by which a judge scores the answer.

Source: Arora et al., "HealthBench: Evaluating Large Language Models Towards Improved Human Health" (arXiv 2505.08775).
"""

from dataclasses import asdict
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.exams import located_rows
from megatron_chimed.evaluation.readers.items import Loaded, load
from megatron_chimed.judging.rubric import read_criteria

THEME = "theme:"


def read_healthbench(path: str) -> dict[str, Loaded]:
    """Rows {"prompt_id", "prompt": [{"role", "content"}], "rubrics": [{"criterion", "points", "tags"}],
    "example_tags"}.

    A group for each theme. An item has "history", from a user's turn to a user's, and "rubric". Raises InputError.
    """
    seen: set[str] = set()
    return {"test": load(located_rows(path), lambda row: _item(row, seen))}


def _item(row: dict, seen: set[str]) -> dict:
    """The item of a row; seen: ids of rows before it. Raises InputError with the reason."""
    name, tags = row.get("prompt_id"), row.get("example_tags") or []
    if not isinstance(name, str) or name in seen:
        raise InputError(f"prompt_id is {name!r}; expected a string that no other row has")
    rubric = read_criteria(row.get("rubrics"))
    history = _history(row.get("prompt"))
    seen.add(name)
    themes = [tag.removeprefix(THEME) for tag in tags if isinstance(tag, str) and tag.startswith(THEME)]
    criteria = [{**asdict(one), "tags": list(one.tags)} for one in rubric]
    return {"history": history, "rubric": criteria, "prompt_id": name, "group": themes[0] if themes else ""}


def _history(messages: Any) -> list[str]:
    """The texts of a conversation. Raises InputError unless user and assistant alternate, from a user's to a user's."""
    if not isinstance(messages, list) or len(messages) % 2 == 0:
        raise InputError("prompt: expected messages of user and assistant in turn, the user's first and last")
    texts = []
    for number, message in enumerate(messages):
        role, text = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        if role != ("user", "assistant")[number % 2] or not isinstance(text, str) or not text.strip():
            raise InputError(f"prompt: message {number + 1} is no text of the {('user', 'assistant')[number % 2]}")
        texts.append(text)
    return texts
