"""Write the task files for lm-eval, ``tasks/*.yaml``, from the catalog and the kinds; nobody edits them.

python -m megatron_chimed.evaluation.task_files
"""

import json
import textwrap
from pathlib import Path
from typing import Any

from megatron_chimed.evaluation.catalog import SOURCES, TASKS, Task
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.kinds.kind import Kind

FOLDER = Path(__file__).parent / "tasks"
HARNESS = "megatron_chimed.evaluation.harness_tasks"


def task_files() -> dict[str, str]:
    """{name of a file: its text}, one for each kind, ``_KIND.yaml``, and one for each task, which includes it."""
    files = {f"_{kind.name}.yaml": _of_kind(kind) for kind in KINDS.values()}
    return files | {f"{task.file}.yaml": _of_task(task) for task in TASKS.values()}


def _of_kind(kind: Kind) -> str:
    """What all tasks of a kind have in common."""
    lines = [f"# {line}" for line in textwrap.wrap(kind.comment, 118)]
    if kind.turns:
        lines.append(f"class: !function {HARNESS}.DialogueTask")
    lines += [f"custom_dataset: !function {HARNESS}.read_dataset", "test_split: test"]
    if kind.zero_shot:
        lines.append("num_fewshot: 0")
    else:
        lines += ["fewshot_split: fewshot", "fewshot_config:", f"  sampler: !function {HARNESS}.SeededSampler"]
        lines.append("num_fewshot: 5")
    settings = {"doc_to_text": f"!function {kind.module}.text", "doc_to_target": f"!function {kind.module}.target"}
    settings |= {key: _value(kind, value) for key, value in kind.settings.items()}
    metrics = {name: (metric.aggregate, metric.higher_is_better) for name, metric in kind.metrics.items()}
    if not kind.likelihood:
        settings["process_results"] = f"!function {kind.module}.process_results"
        metrics["parsed"] = ("megatron_chimed.evaluation.kinds.kind.share_parsed", True)
    lines += [f"{key}: {value}" for key, value in settings.items()]
    lines.append("metric_list:")
    for name, (aggregate, better) in metrics.items():
        place = aggregate if "." in aggregate else f"{kind.module}.{aggregate}"
        how = aggregate if aggregate == "mean" else f"!function {place}"
        lines.append(f"  - {{metric: {name}, aggregation: {how}, higher_is_better: {json.dumps(better)}}}")
    return "\n".join([*lines, ""])


def _of_task(task: Task) -> str:
    """One task: its data and its description; of a source with subjects a group."""
    lines = [f"include: _{task.kind}.yaml"]
    subjects = SOURCES[task.source].subjects
    if subjects:
        lines += [f"group: {task.harness}", "task:"]
        for subject, title in subjects.items():
            lines.append(f"  - task: {subject}")
            lines.append(f"    dataset_kwargs: {{source: {task.source}, subject: {subject}}}")
            lines.append(f"    description: {_text(task.description.format(subject=title))}")
        lines.append("aggregate_metric_list:")
        shown = [name for name, metric in KINDS[task.kind].metrics.items() if not metric.problem]
        lines += [f"  - {{metric: {name}, weight_by_size: true}}" for name in shown]
    else:
        part = f", subject: {_text(task.part)}" if task.part else ""
        lines += [f"task: {task.harness}", f"dataset_kwargs: {{source: {task.source}{part}}}"]
        lines += [f"description: {_text(task.description)}"] if task.description else []
    return "\n".join([*lines, "metadata: {version: 1}", ""])


def _value(kind: Kind, value: Any) -> str:
    """A setting as YAML; a function of the kind's module by its name."""
    return f"!function {kind.module}.{value.__name__}" if callable(value) else _text(value)


def _text(value: Any) -> str:
    """JSON, which YAML reads."""
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    for name, text in task_files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
