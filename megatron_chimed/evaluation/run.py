"""A model x tasks -> results.json, per-sample records and a report, in a folder that survives a kill.

    OUTPUT/results.json         figures, counts, versions, hashes
    OUTPUT/samples/TASK.N.jsonl  prompt, answer, parsed answer, gold and scores of each item in run N
    OUTPUT/TASK.verdicts.jsonl  every verdict of a judge, likewise
    OUTPUT/answers.jsonl        every answer as soon as it is there: what a run that goes on starts from
    OUTPUT/report.md, .html     tables beside the paper's figures, plots
    OUTPUT/leaderboard.html     all figures in a table to sort

Protocol (paper, section on evaluation): each experiment is run with several seeds, and the mean is reported. A seed
chooses the examples of few-shot prompts (seed 0 the first ones) and draws samples, where the temperature is above 0. A
zero-shot task that is decoded greedily is the same in every run, and is run once.
"""

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_chimed import __version__
from megatron_chimed.backend.quiet import fast_imports
from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.backends.answers_log import AnswersLog
from megatron_chimed.evaluation.backends.models import EvaluatedModel
from megatron_chimed.evaluation.catalog import SOURCES, TASKS, Task, parse_tasks, read_source
from megatron_chimed.evaluation.contamination import contaminated
from megatron_chimed.evaluation.judged import is_judged, judge_records, require_judge, say_verdicts
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.reports.summary import summarize
from megatron_chimed.inference.request import FLAGS, SamplingParams
from megatron_chimed.jsonl import expand, sha256_file, sha256_json, write_json, write_json_lines
from megatron_chimed.judging.options import JudgeOptions
from megatron_chimed.text.template import Template

PACKAGES = ("lm_eval", "transformers", "torch", "nltk", "rouge_score", "jieba", "numpy", "datasets")
SCHEMA = 1
SHOTS = 5


@dataclass(frozen=True)
class Settings:
    """How tasks are run. limit: the first items of each data set only, for a trial; max_new_tokens: of an answer, in
    place of each task's own; think_tokens: room on top of it, for models that think before they answer."""

    runs: int = 5
    temperature: float = 0.0
    top_p: float = 1.0
    limit: int | None = None
    max_new_tokens: int | None = None
    think_tokens: int = 0

    def __post_init__(self):
        """Raises InputError for a value out of its range."""
        if self.runs < 1:
            raise InputError(f"--runs is {self.runs}; expected 1 or more")
        if self.think_tokens < 0:
            raise InputError(f"--think-tokens is {self.think_tokens}; expected 0 or more")
        SamplingParams(self.max_new_tokens or 1, self.temperature, self.top_p).check(names=FLAGS)


def evaluate_model(
    model: EvaluatedModel,
    flags: list[str],
    output: str | Path,
    settings: Settings,
    template: Template,
    *,
    training_data: list[str] = (),
    judge: JudgeOptions | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a model and write OUTPUT/results.json and its samples; returns the results.

    flags: ``NAME=PATH`` (`catalog.SOURCES`); training_data: files or globs that the model has learnt from, for the
    check on contamination; judge: for tasks that are scored by one. Raises InputError, naming what is wrong, before a
    model is loaded where that is possible.
    """
    output, paths = Path(output), parse_tasks(flags)
    data = {name: _read(name, path) for name, path in paths.items()}
    names = [name for name, task in TASKS.items() if _is_asked(task, paths, model)]
    files = expand(training_data, "--training-data ")
    _require_examples(names, paths)
    require_judge(names, judge)
    for name in filter(is_judged, names):
        say_verdicts(name, data[TASKS[name].source]["items"][: settings.limit], judge)
    runs = _run_all(model, names, paths, settings, template, output, progress)
    judgements = {name: _judge(name, runs, data, judge, output) for name in filter(is_judged, names)}
    tasks = {
        name: _describe(name, runs[name], _read(task.source, paths[task.source], task.part), settings)
        for name, task in TASKS.items()
        if name in runs
    }
    for name, figures in judgements.items():
        tasks[name]["judging"] = figures
    if files:
        _check_contamination(tasks, runs, data, files, progress)
    results = {
        "schema": SCHEMA,
        "made_by": "tools/evaluate.py",
        "model": {"name": model.name, **model.identity},
        "settings": asdict(settings),
        "versions": _versions(),
        "training_data": {file: sha256_file(file) for file in files},
        "tasks": tasks,
    }
    write_json(output / "results.json", results)
    return results


def _is_asked(task: Task, paths: dict[str, str], model: EvaluatedModel) -> bool:
    """Whether the files have items of a task, as they need not hold all parts of a set, and the model can do it."""
    if task.source not in paths or (task.likelihood and not model.likelihood):
        return False
    return not task.part or bool(read_source(task.source, paths[task.source], task.part)["test"].items)


def _require_examples(names: list[str], paths: dict[str, str]) -> None:
    """Raises InputError for a task whose prompts want more examples than its files have, before a model is loaded."""
    for name in names:
        task = TASKS[name]
        for subject in (SOURCES[task.source].subjects or [task.part]) if not KINDS[task.kind].zero_shot else ():
            found = len(read_source(task.source, paths[task.source], subject)["fewshot"].items)
            if found < SHOTS:
                where = f"{paths[task.source]}: {name}" + (f" ({subject})" if subject else "")
                raise InputError(f"{where} has {found} examples for its prompts; expected {SHOTS} or more")


def _read(name: str, path: str, part: str = "") -> dict[str, Any]:
    """{"items", "rows", "faults"} of a source, its subjects together, or of a part of it. Raises InputError."""
    items, rows, faults = [], 0, []
    for subject in SOURCES[name].subjects or [part]:
        for split, one in read_source(name, path, subject).items():
            items += one.items if split == "test" else []
            rows += one.rows if split == "test" else 0
            faults += one.faults
    return {"items": items, "rows": rows, "faults": faults, "path": path}


def _run_all(
    model: EvaluatedModel,
    names: list[str],
    paths: dict[str, str],
    settings: Settings,
    template: Template,
    output: Path,
    progress: bool,
) -> dict[str, list[list[dict]]]:
    """{task: records of each run}, written as they are made."""
    with fast_imports():  # lm-eval takes seconds to load; by now the flags are checked
        from megatron_chimed.evaluation.backends.recorded import RecordedLM
        from megatron_chimed.evaluation.harness import run_tasks

    decoding = {"temperature": settings.temperature, "top_p": settings.top_p}
    limits = {"max_new_tokens": settings.max_new_tokens, "think_tokens": settings.think_tokens}
    identity = {"model": model.identity, "max_new_tokens": settings.max_new_tokens, **decoding}
    identity |= {"think_tokens": settings.think_tokens} if settings.think_tokens else {}
    log = AnswersLog(output / "answers.jsonl", identity)
    lm = RecordedLM(model.make, log, template, model.name, **decoding, progress=progress)
    runs: dict[str, list[list[dict]]] = {name: [] for name in names}
    try:
        for seed in range(settings.runs):
            wanted = [name for name in names if seed == 0 or lm.sampling or not KINDS[TASKS[name].kind].zero_shot]
            made = run_tasks(lm, wanted, paths, seed=seed, limit=settings.limit, **limits)
            for name, records in made.items():
                write_json_lines(output / "samples" / f"{name}.{seed}.jsonl", records)
                runs[name].append(records)
    finally:
        lm.close()
    return runs


def _judge(
    name: str, runs: dict[str, list], data: dict[str, dict], judge: JudgeOptions, output: Path
) -> list[dict[str, Any]]:
    """Have the runs of a task judged, in their place and in the files of their records; the judges' figures of each."""
    told = []
    for number, records in enumerate(runs[name]):
        items = data[TASKS[name].source]["items"]
        runs[name][number], figures = judge_records(records, items, judge, output / f"{name}.verdicts.jsonl", number)
        write_json_lines(output / "samples" / f"{name}.{number}.jsonl", runs[name][number])
        told.append(figures)
    return told


def _describe(name: str, runs: list[list[dict]], data: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What results.json says of a task."""
    task = TASKS[name]
    return {
        "title": f"{SOURCES[task.source].title}: {task.title}",
        "source": task.source,
        "kind": task.kind,
        "path": data["path"],
        "items_sha256": sha256_json(data["items"]),
        "rows": data["rows"],
        "malformed": len(data["faults"]),
        "first_faults": data["faults"][:20],
        "runs": len(runs),
        "limited": settings.limit is not None and len(data["items"]) > len(runs[0]),
        **summarize(name, runs),
    }


def _check_contamination(
    tasks: dict[str, dict], runs: dict[str, list], data: dict[str, dict], files: list[str], progress: bool
) -> None:
    """Give each task "contamination": how many of its items stand in the training data, and its figures without."""
    owned = [(source, item) for source, one in data.items() for item in one["items"]]
    flags = contaminated([item for _, item in owned], files, progress)
    found = {(source, item["id"]) for (source, item), flag in zip(owned, flags, strict=True) if flag}
    for name, task in tasks.items():
        bad = {place for source, place in found if source == task["source"]}
        clean = [[record for record in run if record["id"] not in bad] for run in runs[name]]
        task["contamination"] = {"items": task["n"] - len(clean[0])}
        if clean[0] and task["contamination"]["items"]:
            task["contamination"]["metrics_without"] = summarize(name, clean)["metrics"]


def _versions() -> dict[str, str]:
    """Versions of all that figures depend on."""
    found = {"megatron_chimed": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
