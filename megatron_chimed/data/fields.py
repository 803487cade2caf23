"""Fields of a row: read by name, and remembered, so that what a reader leaves unread is counted by name."""

from collections import Counter
from typing import Any

from megatron_chimed.data.rejected import writable
from megatron_chimed.errors import InputError

NAME_CHARACTERS = 60
"""Of a field's name, what is shown in a report."""


class Fields(dict):
    """A row that remembers which of its fields were read; what is read of it remembers that too.

    `in`, `len` and iteration read nothing.
    """

    def __init__(self, row: dict):
        super().__init__(row)
        self.read: set[str] = set()
        self.left: Counter = Counter()

    def __getitem__(self, name: str) -> Any:
        """Read a field."""
        value = super().__getitem__(name)
        if name not in self.read:
            self.read.add(name)
            value = watch(value)
            super().__setitem__(name, value)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Read a field, the default where there is none."""
        if name not in self:
            return default
        return self[name]


class Block(str):
    """A text that holds a whole dialogue, with what its reader has left out of it."""

    def __init__(self, _: str):
        self.left: Counter = Counter()


def watch(value: Any) -> Any:
    """Make a row, or the value of one of its fields, remember what is read of it."""
    if isinstance(value, dict):
        return Fields(value)
    if isinstance(value, list):
        return [Fields(item) if isinstance(item, dict) else item for item in value]
    return value


def watch_row(row: Any) -> Any:
    """`watch` a row, which may also be a text."""
    return Block(row) if isinstance(row, str) else watch(row)


def leave_out(row: Any, name: str, number: int = 1) -> None:
    """Count what a reader leaves out of a row though it has looked at it; a row that is not watched stays as it is."""
    if isinstance(row, Fields | Block) and number:
        row.left[_shown(name)] += number


def unread_fields(row: Any) -> Counter:
    """Count, by name, the fields of a watched row that hold something and were not read, and what was left out.

    A field inside of another is named with it: ``conversations[].id``.

    >>> row = watch_row({"id": 7, "input": "", "output": "b", "turns": [{"text": "a", "label": 0}]})
    >>> row["output"], row["turns"][0]["text"], dict(unread_fields(row))
    ('b', 'a', {'id': 1, 'turns[].label': 1})
    """
    found: Counter = Counter()
    todo = [("", row)]  # no recursion: rows are as deep as their files say
    while todo:
        prefix, value = todo.pop()
        if isinstance(value, list):
            todo += [(f"{prefix}[]", item) for item in reversed(value) if isinstance(item, Fields)]
        elif isinstance(value, Fields | Block):
            found.update(value.left)
            for name, item in value.items() if isinstance(value, Fields) else ():
                path = f"{prefix}.{name}" if prefix else str(name)
                if name in value.read:
                    todo.append((path, item))
                elif _is_something(item):
                    found[_shown(path)] += 1
    return found


def _shown(name: str) -> str:
    """A name as a report can hold it: cut, and without halves of characters."""
    return writable(name[:NAME_CHARACTERS])


def _is_something(value: Any) -> bool:
    return value is not None and value not in ([], {}) and not (isinstance(value, str) and not value.strip())


def holds(row: Any, *names: str) -> bool:
    """Whether all of these fields hold something, an empty text or list too; looking is not reading."""
    return isinstance(row, dict) and all(dict.get(row, name) is not None for name in names)


def type_of(value: Any) -> str:
    """Name the type of a value in a message."""
    return "dict" if isinstance(value, dict) else type(value).__name__


def text_of(row: Any, field: str, *, required: bool = True) -> str:
    """Read a text field of a row, stripped; "" where it is null, or missing and not required. Raises InputError."""
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, found {type_of(row)}")
    if field not in row and required:
        raise InputError(f"missing key: {field!r}")
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"not a string: field {field!r} holds {type_of(value)}")
    return value.strip()


def list_of(row: dict, field: str) -> list:
    """Read a field that is a list. Raises InputError."""
    if field not in row:
        raise InputError(f"missing key: {field!r}")
    if not isinstance(row[field], list):
        raise InputError(f"not a list: field {field!r} holds {type_of(row[field])}")
    return row[field]
