"""The figures of a report as a page in Markdown and as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.jsonl import atomic_output
from megatron_chimed.records import Candidate

SHOWN = 300  # characters of a text in the examples


def page(figures: Mapping[str, Any]) -> str:
    """The report in Markdown; every number of it is in the figures."""
    settings = figures["settings"]
    parts = [f"# Rejection sampling, round {figures['round']}"]
    if figures["warnings"]:
        parts.append("## Warnings\n\n" + "\n".join(f"- {line}" for line in figures["warnings"]))
    parts += ["## Held-out prompts\n\nFresh answers, the same prompts and seeds for every model; a mean is over "
              "prompts, ± is its standard error, differences are taken prompt by prompt."]  # fmt: skip
    parts.append(_heldout(figures["heldout"], figures["yardstick"], figures["drift"]))
    measures = {"reward": figures["heldout"], "yardstick": figures["yardstick"]}
    measures = {name: one["differences"] for name, one in measures.items() if one}
    rows = ([name, *(_plus_minus(one[name], "+") for one in measures.values())] for name in measures["reward"])
    parts.append(_table(["difference", *measures], rows))
    parts.append("![rewards and lengths](report.png)")
    parts.append("## Answers of the round")
    parts.append(_steps(figures["steps"]))
    parts.append(_sets(figures["sets"]))
    parts += _judges(figures["scorers"] | figures["graders"])
    parts.append(f"Answers that an earlier one to the same prompt equals: {figures['duplicate_rate']:.1%}.")
    parts.append(f"## Strategies\n\nWhat each takes of the same pool; k = {settings['selection']['k']}, threshold = "
                 f"{settings['selection']['threshold']}.")  # fmt: skip
    rows = (
        [f"{name}{' (chosen)' if one['chosen'] else ''}", one["answers"], one["prompts"], _number(one["mean_reward"]),
         _number(one["mean_tokens"], 1)]
        for name, one in figures["strategies"].items()
    )  # fmt: skip
    parts.append(_table(["strategy", "answers", "prompts", "mean reward", "mean tokens"], rows))
    parts.append("## Examples\n\n" + "\n\n".join(map(_example, figures["examples"])))
    return "\n\n".join(parts) + "\n"


def _heldout(heldout: Mapping[str, Any], graded: Mapping[str, Any] | None, drift: Mapping[str, Any]) -> str:
    """A line for each model."""
    rows = (
        [name, one["prompts"], _plus_minus(one),
         _plus_minus(graded["models"][name]) if graded else "not measured",
         _number(one["mean_tokens"], 1), f"{one['finished']:.1%}",
         f"{one['duplicate_rate']:.1%}", _number(drift[name]["nll"])]
        for name, one in heldout["models"].items()
    )  # fmt: skip
    columns = [
        "model",
        "prompts",
        "reward",
        "yardstick",
        "mean tokens",
        "ended by EOS",
        "duplicates",
        "NLL of fixed answers",
    ]
    return _table(columns, rows)


def _steps(steps: Mapping[str, Any]) -> str:
    """Rows and what was dropped, step by step."""
    rows = (
        [name, one["rows"], ", ".join(f"{count} {reason}" for reason, count in one["dropped"].items())]
        for name, one in steps.items()
    )
    return _table(["step", "rows", "dropped"], rows)


def _sets(sets: Mapping[str, Any]) -> str:
    """Rewards and lengths of all, the selected and the random answers."""
    rows = (
        [name, one["answers"], one["prompts"], _number(one["mean_reward"]), _number(one["reward_deviation"]),
         " ".join(map(_number, one["reward_quartiles"] or [])), _number(one["mean_tokens"], 1),
         _number(one["reward_length_correlation"], 2)]
        for name, one in sets.items()
    )  # fmt: skip
    columns = ["set", "answers", "prompts", "mean reward", "deviation", "quartiles", "mean tokens"]
    return _table([*columns, "correlation of reward and length"], rows)


def _judges(told: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What judges have said of which answers, and how far two of them agree; nothing without a judge."""
    judged = [(of, one) for of, each in told.items() for one in each if "judges" in one]
    if not judged:
        return []
    rows = (
        [of, _shortened(name), ", ".join(f"{count} {what}" for what, count in judge["verdicts"].items()),
         f"{one['not scored']} of {one['answers']}", _number(one["clipped mean"])]
        for of, one in judged for name, judge in one["judges"].items()
    )  # fmt: skip
    parts = ["## Judges\n\nA verdict is on one criterion of one answer. An answer that lacks one has no score.",
             _table(["answers", "judge", "verdicts", "not scored", "mean score, from 0 to 1"], rows)]  # fmt: skip
    rows = (
        [of, one["agreement"]["verdicts"], _number(one["agreement"]["same"]), _number(one["agreement"]["kappa"])]
        for of, one in judged
        if "agreement" in one
    )
    if rows := list(rows):
        parts.append(_table(["answers", "criteria with two verdicts", "share of equal ones", "Cohen's kappa"], rows))
    return parts


def _example(one: Mapping[str, Any]) -> str:
    lines = [f"**{_shortened(one['question'])}**"]
    for part in ("best", "worst"):
        answer = one[part]
        lines.append(f"- {part}, reward {answer['reward']:.3f}: {_shortened(answer['response'])}")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    """One line of a text, in which nothing is taken for Markdown."""
    text = " ".join(text.split())
    text = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in text)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [columns, ["---"] * len(columns), *rows]]
    return "\n".join(lines)


def _number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _plus_minus(mean: Mapping[str, float], sign: str = "") -> str:
    return f"{mean['mean']:{sign}.3f} ± {mean['error']:.3f}"


def plot(sets: Mapping[str, Sequence[Candidate]], heldout: Mapping[str, Sequence[Candidate]], path: Path) -> None:
    """Draw the rewards of all and of the selected answers, reward against length, and rewards on held-out prompts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
    try:
        for title, axes, each in (("answers of the round", panels[0], sets), ("held out", panels[2], heldout)):
            for name, answers in each.items():
                rewards = [one.reward for one in answers if one.reward is not None]
                axes.hist(rewards, bins=30, density=True, histtype="step", label=f"{name} ({len(rewards)})")
            axes.set(xlabel="reward", ylabel="density", title=title)
            axes.legend()
        for name, size in (("all", 4), ("selected", 8)):
            answers = [one for one in sets[name] if one.reward is not None]
            lengths, rewards = [one.num_tokens for one in answers], [one.reward for one in answers]
            panels[1].scatter(lengths, rewards, s=size, alpha=0.4, label=name)
        panels[1].set(xlabel="tokens", ylabel="reward", title="reward and length")
        panels[1].legend()
        for axes in panels:
            axes.grid(alpha=0.3)
        with atomic_output(path, "wb") as file:
            figure.savefig(file, dpi=110, format="png")
    finally:
        pyplot.close(figure)
