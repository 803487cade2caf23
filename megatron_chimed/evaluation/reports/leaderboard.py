"""Any number of results on one HTML page that needs nothing else: a table to sort and search, the paper's rows too."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.evaluation.catalog import TASKS
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.reports.paper import MODELS, published
from megatron_chimed.jsonl import atomic_output

TEMPLATE = Path(__file__).with_suffix(".html")


def write_leaderboard(results: Sequence[dict], path: Path) -> Path:
    """Write the page over the contents of several results.json; returns its path."""
    content = json.dumps(leaderboard(results), ensure_ascii=False, allow_nan=False)
    content = content.replace("<", "\\u003c")  # no name can end the script element that holds it
    before, after = TEMPLATE.read_text(encoding="utf-8").split("CONTENT")
    with atomic_output(path) as file:
        file.write(before + content + after)
    return path


def leaderboard(results: Sequence[dict]) -> dict[str, Any]:
    """What the page shows: {"columns": [{"key", "task", "metric", "main", "higher_is_better"}], "rows": [{"name",
    "paper", "cells": {key: {"mean", "low", "high", "n"}}}]}. A figure without a value has no cell; the paper's have no
    interval."""
    columns = list(_columns(results))
    keys = [(column["key"], *column["key"].split("/")) for column in columns]
    rows = [{"name": one["model"]["name"], "paper": False, "cells": _cells(one["tasks"], keys)} for one in results]
    for place, name in enumerate(MODELS):
        figures = {key: published(TASKS[task].source, metric) for key, task, metric in keys}
        cells = {key: {"mean": found[place]} for key, found in figures.items() if found}
        if cells:
            rows.append({"name": f"{name} (paper)", "paper": True, "cells": cells})
    return {"columns": columns, "rows": rows}


def _columns(results: Sequence[dict]) -> Iterator[dict[str, Any]]:
    """A column for each metric of each task that one of the models has."""
    for name, task in TASKS.items():
        present = [one["tasks"][name]["metrics"] for one in results if name in one["tasks"]]
        for metric in dict.fromkeys(metric for figures in present for metric in figures):
            better = KINDS[task.kind].metrics[metric].higher_is_better
            about = {"task": name, "metric": metric, "main": metric == task.main_metric, "higher_is_better": better}
            yield {"key": f"{name}/{metric}", **about}


def _cells(tasks: dict[str, dict], keys: list[tuple[str, str, str]]) -> dict[str, dict]:
    """The figures of a model by column."""
    cells = {}
    for key, task, metric in keys:
        figure = tasks.get(task, {"metrics": {}})["metrics"].get(metric)
        if figure and figure["mean"] is not None:
            cells[key] = {name: figure[name] for name in ("mean", "low", "high")} | {"n": tasks[task]["n"]}
    return cells
