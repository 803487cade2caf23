"""Test items as they come out of a data set's files, and what was wrong with the rows that are none."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from megatron_chimed.data.sources import Fault
from megatron_chimed.errors import InputError


@dataclass
class Loaded:
    """items: dicts with "id" (where the row stands), "group" (subject, department, subscale) and what the task needs;
    rows: how many were read; faults: ``file:line: reason`` of each row that is no item."""

    items: list[dict] = field(default_factory=list)
    rows: int = 0
    faults: list[str] = field(default_factory=list)


def load(rows: Iterable[tuple[str, Any]], read: Callable[[Any], dict | list[dict]], subject: str = "") -> Loaded:
    """Read rows, given as (where, row or Fault).

    read: makes an item of a row, or several, and raises InputError with the reason why it cannot. subject: the group of
    items that have none of their own. Raises InputError if no item is left.
    """
    loaded, where = Loaded(), "no rows"
    for where, row in rows:
        loaded.rows += 1
        try:
            if isinstance(row, Fault):
                raise InputError(str(row))
            items = read(row)
        except InputError as error:
            loaded.faults.append(f"{where}: {error}")
            continue
        items = items if isinstance(items, list) else [items]
        for number, item in enumerate(items, start=1):
            place = where.rsplit("/", 1)[-1] + (f".{number}" if len(items) > 1 else "")
            loaded.items.append({"id": place, "group": subject, **item})
    if not loaded.items:
        first = loaded.faults[0] if loaded.faults else where
        raise InputError(f"no test item in {loaded.rows} rows; the first: {first}")
    return loaded
