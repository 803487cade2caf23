"""The report of a round: report.json with all figures, report.md for people, report.png.

It answers what peers leave open: did the reward do anything? The strategies stand side by side, also those that were
not chosen; fresh samples on held-out prompts are compared before and after, and with the random control; and a reward
that grows with the length of the answers is warned of.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_chimed.jsonl import atomic_output, read_json, write_json
from megatron_chimed.records import Candidate, Prompt
from megatron_chimed.rejection import select as selection
from megatron_chimed.rejection.config import LoopConfig
from megatron_chimed.rejection.graders import Graded
from megatron_chimed.rejection.heldout import by_prompt, difference, mean_over_prompts
from megatron_chimed.rejection.prompts import question_of
from megatron_chimed.rejection.store import read_candidates
from megatron_chimed.text.normalise import normalise

LENGTH_CORRELATION = 0.3
"""Pearson correlation of reward and length from which the report warns."""

NOT_SCORED = 0.05
"""Share of answers without a score above which it warns."""

EXAMPLES = 3


def write_report(
    config: LoopConfig,
    folder: Path,
    number: int,
    prompts: Mapping[str, Prompt],
    heldout: Mapping[str, Sequence[Candidate]],
    likelihoods: Mapping[str, Path],
    graded: Graded,
) -> int:
    """Write report.json, report.md and report.png of a round; returns the number of candidates.

    heldout: scored answers to held-out prompts by the model's part: start, before (from round 2 on), after, random
    control; likelihoods: files with the likelihood of reference answers, likewise; graded: what graders say.
    """
    scored = read_candidates(folder / "scored.jsonl")
    sets = {"all": scored, "selected": read_candidates(folder / "selected.jsonl")}
    if config.paths.control:
        sets["random control"] = read_candidates(folder / "control.jsonl")
    figures = {
        "round": number,
        "settings": config.to_json(),
        "steps": {
            name: {key: read_json(folder / f"{name}.manifest.json")[key] for key in ("rows", "dropped")}
            for name in ("prompts", "generate", "score", "select")
        },
        "sets": {name: describe(answers) for name, answers in sets.items()},
        "duplicate_rate": duplicate_rate(scored),
        "strategies": compare_strategies(config, scored, prompts),
        "heldout": compare_heldout({name: by_prompt(answers) for name, answers in heldout.items()}, heldout),
        "yardstick": None if graded.grades is None else compare_heldout(graded.grades, heldout),
        "scorers": {"the round's answers": read_json(folder / "score.manifest.json").get("scorers", [])},
        "graders": {f"held out, {name}": told for name, told in graded.figures.items()},
        "drift": {name: read_json(path) for name, path in likelihoods.items()},
        "examples": examples(sets["selected"], scored, prompts),
    }
    figures["warnings"] = warnings(figures)
    write_json(folder / "report.json", figures)
    from megatron_chimed.rejection.report_page import page, plot

    with atomic_output(folder / "report.md") as file:
        file.write(page(figures))
    plot(sets, heldout, folder / "report.png")
    return len(scored)


def describe(answers: Sequence[Candidate]) -> dict[str, Any]:
    """Count, rewards (mean, deviation, quartiles) and lengths in tokens of answers; None where there is nothing."""
    rewards = [one.reward for one in answers if one.reward is not None]
    lengths = [one.num_tokens for one in answers]
    return {
        "answers": len(answers),
        "prompts": len({one.prompt for one in answers}),
        "mean_reward": _mean(rewards),
        "reward_deviation": statistics.stdev(rewards) if len(rewards) > 1 else None,
        "reward_quartiles": statistics.quantiles(rewards, n=4) if len(rewards) > 1 else None,
        "mean_tokens": _mean(lengths),
        "finished": sum(one.finished for one in answers) / len(answers) if answers else None,
        "reward_length_correlation": correlation(answers),
    }


def _mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return statistics.fmean(values) if values else None


def correlation(answers: Sequence[Candidate]) -> float | None:
    """Pearson correlation of reward and length in tokens; None where one of them does not vary."""
    pairs = [(one.reward, one.num_tokens) for one in answers if one.reward is not None]
    if len({reward for reward, _ in pairs}) < 2 or len({length for _, length in pairs}) < 2:
        return None
    return statistics.correlation(*zip(*pairs, strict=True))


def duplicate_rate(answers: Sequence[Candidate]) -> float:
    """Share of answers whose text an earlier answer to the same prompt has: 0 for none, near 1 if all are the same."""
    different = {(one.prompt, normalise(one.response)) for one in answers}
    return 1 - len(different) / len(answers) if answers else 0.0


def compare_strategies(
    config: LoopConfig, scored: Sequence[Candidate], prompts: Mapping[str, Prompt]
) -> dict[str, dict[str, Any]]:
    """{strategy: what it takes of the same pool, and whether it is the one chosen}, also those that were not."""
    questions = {name: question_of(prompt) for name, prompt in prompts.items()}
    pool, _ = selection.filter_candidates(scored, questions, config.filters)
    found = {}
    for name in selection.STRATEGIES:
        taken = selection.select(pool, replace(config.selection, strategy=name))
        figures = describe(taken)
        keep = ("answers", "prompts", "mean_reward", "mean_tokens")
        found[name] = {"chosen": name == config.selection.strategy} | {key: figures[key] for key in keep}
    return found


def compare_heldout(
    values: Mapping[str, Mapping[str, Sequence[float]]], heldout: Mapping[str, Sequence[Candidate]]
) -> dict[str, Any]:
    """Mean with its standard error of each model on the held-out prompts, and paired differences.

    values: {model: {prompt: rewards or grades of its answers}}; heldout: the answers themselves.
    """
    models = {
        name: mean_over_prompts(values[name])._asdict()
        | {"mean_tokens": _mean([one.num_tokens for one in answers]), "duplicate_rate": duplicate_rate(answers)}
        | {"finished": sum(one.finished for one in answers) / len(answers)}
        for name, answers in heldout.items()
    }
    pairs = [("after", "start"), ("after", "before"), ("after", "random control")]
    differences = {
        f"{one} - {other}": difference(values[one], values[other])._asdict() for one, other in pairs if other in values
    }
    return {"models": models, "differences": differences}


def warnings(figures: Mapping[str, Any]) -> list[str]:
    """What somebody should look at, in sentences."""
    found = []
    models, drift = figures["heldout"]["models"], figures["drift"]
    found_correlation = figures["sets"]["all"]["reward_length_correlation"]
    if found_correlation is not None and found_correlation > LENGTH_CORRELATION:
        found.append(
            f"The reward grows with the length of the answers (correlation {found_correlation:.2f}): part of what is "
            "selected is length. Look at the lengths below, and at a yardstick other than the reward."
        )
    before, after = models["start"]["mean_tokens"], models["after"]["mean_tokens"]
    if after > 1.1 * before and models["after"]["mean"] > models["start"]["mean"]:
        found.append(f"Fresh answers got longer with the reward: {before:.0f} -> {after:.0f} tokens in the mean.")
    for name, change in figures["heldout"]["differences"].items():
        if change["mean"] < 2 * change["error"]:
            found.append(f"{name}: {_plus_minus(change)} is less than two standard errors above 0; nothing is shown.")
    for name, change in figures["yardstick"]["differences"].items() if figures["yardstick"] else ():
        if change["mean"] < -2 * change["error"]:
            found.append(f"By the yardstick answers have become worse, {name}: {_plus_minus(change)}.")
    for of, told in (figures["scorers"] | figures["graders"]).items():
        for one in told:
            if one["not scored"] > NOT_SCORED * one["answers"]:
                found.append(
                    f"{one['not scored']} of {one['answers']} answers have no score by {one['engine']} ({of}); what is "
                    "selected and compared is what is left."
                )
    moved = drift["after"]["nll"], drift["start"]["nll"]
    if None not in moved and moved[0] > moved[1] + 0.1:
        found.append(f"Fixed answers have become less likely: {moved[1]:.3f} -> {moved[0]:.3f} nats per token.")
    return found


def _plus_minus(mean: Mapping[str, float]) -> str:
    return f"{mean['mean']:+.3f} ± {mean['error']:.3f}"


def examples(
    selected: Sequence[Candidate], scored: Sequence[Candidate], prompts: Mapping[str, Prompt]
) -> list[dict[str, Any]]:
    """For some prompts, spread over the selected ones, the question with the best and the worst answer."""
    answers: dict[str, list[Candidate]] = {}
    for one in scored:
        if one.reward is not None:
            answers.setdefault(one.prompt, []).append(one)
    names = sorted({one.prompt for one in selected})
    step = max(1, math.ceil(len(names) / EXAMPLES))
    chosen = []
    for name in names[::step]:
        ranked = sorted(answers[name], key=lambda one: (-one.reward, one.key))
        chosen.append({"question": question_of(prompts[name])})
        for part, one in (("best", ranked[0]), ("worst", ranked[-1])):
            chosen[-1][part] = {"response": one.response, "reward": one.reward, "tokens": one.num_tokens}
    return chosen
