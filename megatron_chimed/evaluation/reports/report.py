"""results.json of one model or several -> a report as Markdown and as one HTML file that needs nothing else."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.catalog import TASKS
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.reports.differences import (
    ABOUT,
    Comparison,
    as_json,
    compare_results,
    table_rows,
)
from megatron_chimed.evaluation.reports.leaderboard import write_leaderboard
from megatron_chimed.evaluation.reports.page import Block, write_page
from megatron_chimed.evaluation.reports.paper import MODELS, published
from megatron_chimed.evaluation.reports.plots import bar_chart
from megatron_chimed.jsonl import read_json, write_json

PROBLEMS = {
    "unparsed": "not understood",
    "empty": "empty",
    "unjudged": "without a score, as a verdict is missing",
    "refused": "without a level (refused or unclear)",
}


def load_results(folders: Iterable[str | Path]) -> list[dict]:
    """The results of evaluated models. Raises InputError for a folder without, or two models of one name."""
    results = []
    for folder in folders:
        path = Path(folder) / "results.json"
        content = read_json(path)
        if not isinstance(content, dict) or not {"model", "tasks", "settings"} <= content.keys():
            raise InputError(f"{path}: not the results of chimed evaluate")
        results.append(content)
    names = [one["model"]["name"] for one in results]
    if len(set(names)) < len(names):
        raise InputError(f"two results have one name ({', '.join(names)}); evaluate one of them again with --name")
    return results


def write_report(folders: Iterable[str | Path], output: str | Path, points: float = 2.0) -> list[Path]:
    """Write report.md, report.html, the plots' PNG files and leaderboard.html into a folder; of several models also
    comparison.json.

    points: the difference for which the comparison says how many items it takes. Returns the paths. Raises InputError.
    """
    folders, output = [Path(folder) for folder in folders], Path(output)
    results = load_results(folders)
    compared = compare_results(results, folders, points) if len(results) > 1 else []
    written = write_page(list(report_blocks(results, compared, points)), output, "Evaluation")
    written.append(write_leaderboard(results, output / "leaderboard.html"))
    if compared:
        write_json(output / "comparison.json", as_json(compared, points))
        written.append(output / "comparison.json")
    return written


def report_blocks(results: list[dict], compared: Sequence[Comparison] = (), points: float = 2.0) -> Iterator[Block]:
    """The report, piece by piece. compared: its models in pairs."""
    yield Block("h1", "Evaluation")
    yield Block(
        "p",
        "A figure is the mean over runs ± its standard error, with the 95% bootstrap interval over items in brackets. "
        "The paper's figures were measured by its authors, on their data; they are no result of this run.",
    )
    yield Block("table", list(_model_rows(results)))
    if compared:
        yield Block("h2", "Do they differ?")
        yield Block("p", ABOUT)
        yield Block("table", table_rows(compared, points))
    for name in TASKS:
        if any(name in one["tasks"] for one in results):
            yield from _task_blocks(name, results)
    yield from _plots(results)
    signatures = {
        f"{metric}: {figure['signature']}"
        for one in results
        for task in one["tasks"].values()
        for metric, figure in task["metrics"].items()
    }
    yield Block("h2", "Signatures")
    yield Block("code", sorted(signatures))


def _model_rows(results: list[dict]) -> Iterator[list[str]]:
    """What was evaluated, and how."""
    yield ["model", "weights", "runs", "decoding", "versions"]
    for one in results:
        settings, versions = one["settings"], one["versions"]
        decoding = f"temperature {settings['temperature']:g}" if settings["temperature"] else "greedy"
        shown = ", ".join(f"{name} {versions[name]}" for name in ("lm_eval", "transformers") if name in versions)
        weights = one["model"].get("weights", "not known")[:12]
        yield [one["model"]["name"], weights, str(settings["runs"]), decoding, shown]


def _task_blocks(name: str, results: list[dict]) -> Iterator[Block]:
    """Tables and counts of one task."""
    present = {one["model"]["name"]: one["tasks"][name] for one in results if name in one["tasks"]}
    first = next(iter(present.values()))
    yield Block("h2", first["title"])
    metrics = list(first["metrics"])
    ours = list(present)
    with_paper = any(published(first["source"], metric) for metric in metrics)
    rows = [["metric", *ours, *(f"{model} (paper)" for model in MODELS if with_paper)]]
    for metric in metrics:
        paper = published(first["source"], metric) or ("", "")
        cells = [_cell(task["metrics"].get(metric)) for task in present.values()]
        rows.append([metric, *cells, *(_number(value) for value in paper if with_paper)])
    yield Block("table", rows)
    for model, task in present.items():
        yield Block("p", f"{model}: {_counts(task, TASKS[name].main_metric)}")
    groups = sorted({group for task in present.values() for group in task["groups"]})
    if groups:
        metric = TASKS[name].main_metric
        yield Block("h3", f"{metric} by part")
        rows = [["part", "n", *ours]]
        for group in groups:
            parts = [task["groups"].get(group) for task in present.values()]
            size = next(part["n"] for part in parts if part)
            rows.append([group or "(none)", str(size), *(_cell(part and part["metrics"][metric]) for part in parts)])
        yield Block("table", rows)


def _counts(task: dict, main: str) -> str:
    """One sentence with all that was counted beside the figures."""
    runs = f"{task['runs']} runs" if task["runs"] > 1 else "one run"
    parts = [f"n = {task['n']}" + (" (limited for a trial)" if task["limited"] else ""), runs]
    if task["runs"] == 1 and KINDS[task["kind"]].zero_shot:
        parts.append("nothing in a greedy zero-shot run is random")
    for name, count in task["problems"].items():
        parts.append(f"{count} of {task['n'] * task['runs']} answers {PROBLEMS[name]}")
    parts.append(f"{task['cut_prompts']} prompts cut to fit the model")
    if "thinking" in task:
        parts.append(f"{task['thinking']} answers with thinking, which is not scored" + _length(task))
    parts += _judged(task.get("judging", []))
    if task["malformed"]:
        parts.append(f"{task['malformed']} rows are no items, the first: {task['first_faults'][0]}")
    if "contamination" in task:
        found = task["contamination"]
        parts.append(f"{found['items']} items share 13 tokens with the training data")
        if without := found.get("metrics_without"):
            parts.append(f"{main} without them {_cell(without[main])}")
    return "; ".join(parts) + "."


def _length(task: dict) -> str:
    """How long the thinking was; results of older versions do not say."""
    if not (found := task.get("thinking_length")):
        return ""
    mean = f"{found['mean']:.0f} [{found['low']:.0f}, {found['high']:.0f}]"
    return f": {mean} characters, {found['longest']} at most, {found['unended']} without an end"


def _judged(runs: list[dict]) -> Iterator[str]:
    """What the judges have to tell, of the first run."""
    for figures in filter(None, runs[:1]):
        for judge, account in figures["judges"].items():
            yield f"judged by {judge} ({', '.join(f'{count} {what}' for what, count in account['verdicts'].items())})"
        if agreement := figures.get("agreement"):
            kappa = "undefined" if agreement["kappa"] is None else f"{agreement['kappa']:.2f}"
            yield f"the judges' kappa {kappa} over {agreement['verdicts']} verdicts"
        if by_tag := figures["clipped mean by tag"]:
            yield "by tag " + ", ".join(
                f"{tag} {100 * value:.1f}" for tag, value in by_tag.items() if value is not None
            )


def _plots(results: list[dict]) -> Iterator[Block]:
    """The bias scales of all models (Figure 2 of the paper), and the main figure of each other task."""
    for name, title, wanted, label in (
        ("scores", "Main figure of each task", lambda kind: kind != "scale", "percent"),
        ("bias", "Bias by scale and model (lower is less biased)", lambda kind: kind == "scale", "mean score"),
    ):
        bars = {
            one["model"]["name"]: {
                task: figure["metrics"][TASKS[task].main_metric]
                for task, figure in one["tasks"].items()
                if wanted(figure["kind"]) and figure["metrics"][TASKS[task].main_metric]["mean"] is not None
            }
            for one in results
        }
        if any(bars.values()):
            yield Block("h2", title)
            yield Block("plot", (name, *bar_chart(bars, label), f"{title}: bars of {', '.join(bars)}, in {label}"))


def _cell(figure: dict | None) -> str:
    """A figure with error and interval."""
    if figure is None:
        return ""
    if figure["mean"] is None:
        return "no level chosen" if "answered" in figure else "no such item"
    return f"{figure['mean']:.2f} ± {figure['error']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
