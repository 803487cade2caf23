"""Every figure of the quickstart's report, read from what its steps have written.

A figure has a name such as "reward/four/pair accuracy", a value, its standard error (None where there is one run and
nothing to estimate it from) and n, what the error is taken over; figures that have one also have "low" and "high", the
bounds of the 95% interval.
"""

import csv
import math
import re
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from grading import Grader
from world import load_world

from megatron_chimed.corpus.manifest import find_corpus_manifest
from megatron_chimed.evaluation.reports.compare import bootstrap_difference, paired_difference, read_samples
from megatron_chimed.evaluation.statistics import mean_ratio
from megatron_chimed.jsonl import read_json, read_json_lines, read_records
from megatron_chimed.records import Candidate
from megatron_chimed.rejection.heldout import by_prompt, difference
from megatron_chimed.training.curves import figures_of
from megatron_chimed.training.runlog import read_log

Figure = dict[str, Any]
TRAININGS = {
    "pretrain": "pre-training", "sft/run": "SFT", "sft/alone": "SFT alone", "sft/half": "half context",
}  # fmt: skip
MODELS = ("base", "pre-training", "SFT", "rejection sampling", "random control", "SFT alone", "half context")
LORA = "LoRA"
"""What LORA=1 adds: the same fine-tuning and the same reward model, with adapters in the place of all weights."""
DPO = ("DPO", "DPO, shuffled")
"""What DPO=1 adds: preference optimization on the reward model's ranks, and on the same ranks shuffled, its control."""
FORGET = {"later": "without replay", "later_replay": "with replay"}
"""What FORGET=1 adds: a later fine-tuning on exercises alone, which watches the loss of dialogues, and its remedy."""
REWARDS = {"four": "four ranks (adjacent pairs)", "two": "the best and the worst alone"}
ORDERS = ("pair accuracy", "best over worst", "exact order")
MEASURES = {  # figure -> task, metric
    "multiple choice by text": ("ceval_cloze", "acc_norm"),
    "multiple choice by letter": ("ceval", "acc"),
    "multiple choice, letter written": ("ceval_letter", "acc"),
    "named entities, strict F1": ("ccks2019", "f1_strict"),
    "questions, BLEU-1": ("chimed", "bleu1_chars"),
    "dialogues, BLEU-1": ("mc", "bleu1_chars"),
    "bias, 1 to 5": ("scale", "points"),
}
FACTS = "questions, facts stated"
RECALL = "facts beyond half of the context"
RECALLING = ("SFT", "half context")
"""The models that are asked for them."""
PAIRS = (
    ("SFT", "base"), ("SFT", "pre-training"), ("SFT", "SFT alone"), ("SFT", "half context"),
    ("rejection sampling", "SFT"), ("rejection sampling", "random control"),
)  # fmt: skip


def trainings(folder: Path) -> dict[str, str]:
    """{folder: title} of the trainings that are there."""
    return TRAININGS | ({"sft/lora": LORA} if _has_lora(folder) else {})


def models(folder: Path) -> tuple[str, ...]:
    """The models that were evaluated."""
    return (*MODELS, *((LORA,) if _has_lora(folder) else ()), *(DPO if has_dpo(folder) else ()))


def rewards(folder: Path) -> dict[str, str]:
    """{folder: title} of the reward models that are there."""
    return REWARDS | ({"lora": "four ranks, LoRA"} if _has_lora(folder) else {})


def rounds(folder: Path) -> dict[str, tuple[int, str]]:
    """{folder: (rounds, what its training is)} of the loops that are there."""
    found = {"rejection": (2, "fine-tuning")}
    return found | ({"rejection_dpo": (1, "preference optimization")} if has_dpo(folder) else {})


def pairs(folder: Path) -> tuple[tuple[str, str], ...]:
    """The models that are compared item by item."""
    lora = ((LORA, "SFT"),) if _has_lora(folder) else ()
    return (*PAIRS, *lora, *(((DPO[0], "SFT"), DPO) if has_dpo(folder) else ()))


def _has_lora(folder: Path) -> bool:
    return (folder / "evaluation" / LORA / "results.json").is_file()


def has_dpo(folder: Path) -> bool:
    """Whether it was run with DPO=1."""
    return (folder / "evaluation" / DPO[0] / "results.json").is_file()


def has_forgetting(folder: Path) -> bool:
    """Whether it was run with FORGET=1."""
    return all((folder / "sft" / name / "forgetting.json").is_file() for name in FORGET)


def figure(value: float | None, error: float | None = None, n: int | None = None, **more: float) -> Figure:
    """A figure; "low" and "high" may follow. What is no number, such as the mean of a scale that was not answered, is
    None."""
    numbers = {"value": value, "error": error, **more}
    known = {name: None if one is None or math.isnan(one) else one for name, one in numbers.items()}
    return {"value": known.pop("value"), "error": known.pop("error"), "n": n, **known}


def read_figures(folder: Path) -> dict[str, Figure]:
    """All figures by name. Raises InputError where a step's output is missing."""
    ranks = {**_rewards(folder), **_preferences(folder)}
    loops = {**_rejection(folder), **_loops(folder)}
    evaluated = {**_evaluation(folder), **_differences(folder), **_recall(folder)}
    return {**_losses(folder), **_forgetting(folder), **ranks, **loops, **evaluated}


def unigram_entropy(prefix: Path) -> float:
    """Entropy of the corpus's token frequencies in nats per token: the loss of a model that only knows them."""
    dtype = find_corpus_manifest(prefix)[1]["dtype"]
    counts = np.bincount(np.fromfile(f"{prefix}.bin", dtype=dtype))
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def _losses(folder: Path) -> dict[str, Figure]:
    """First and last losses of each training."""
    found = {"loss/unigram entropy": figure(unigram_entropy(folder / "corpus" / "train_text_document"))}
    for place, title in trainings(folder).items():
        train, valid = (figures_of(folder / place, f"{split}/loss") for split in ("train", "valid"))
        last = [loss for _, loss in train[-10:]]
        found[f"loss/{title}/train, first"] = figure(train[0][1])
        found[f"loss/{title}/train, last 10"] = figure(statistics.mean(last), n=len(last))
        found[f"loss/{title}/held out, first"] = figure(valid[0][1])
        found[f"loss/{title}/held out, last"] = figure(valid[-1][1])
    return found


def _forgetting(folder: Path) -> dict[str, Figure]:
    """The loss of dialogues before and after a later fine-tuning, and how much more is forgotten without replay."""
    found, sides = {}, []
    for name, title in FORGET.items() if has_forgetting(folder) else ():
        one = read_json(folder / "sft" / name / "forgetting.json")["sets"]["dialogues"]
        found |= {f"loss/{title}/{at}": figure(one[at], n=one["rows"]) for at in ("before", "after")}
        bounds, error = {"low": one["low"], "high": one["high"]}, (one["high"] - one["low"]) / 3.92
        found[f"forgetting/{title}/rise"] = figure(one["difference"], error, one["rows"], **bounds)
        sides.append(np.stack([one["sums_after"], one["counts"]], axis=1))
    if sides:
        found["forgetting/difference"] = _of(bootstrap_difference(np.stack(sides), mean_ratio))
    return found


def _rewards(folder: Path) -> dict[str, Figure]:
    """How well the reward models order answers to test questions; the questions are what is independent."""
    return {
        f"reward/{name}/{order}": one
        for name in rewards(folder)
        for order, one in _orders(folder, folder / "reward" / name).items()
    }


def _preferences(folder: Path) -> dict[str, Figure]:
    """How well what preference optimization has learnt orders answers to test questions, and how far it went."""
    found = {}
    for name in ("run", "shuffled") if has_dpo(folder) else ():
        place = f"dpo/{name}"
        found |= {f"{place}/{order}": one for order, one in _orders(folder, folder / place).items()}
        test = _test_of(folder / place)
        for moved in ("KL estimate", "log p of better", "log p of worse", "reward-length correlation"):
            found[f"{place}/{moved}"] = figure(test[moved])
    return found


def _orders(folder: Path, run: Path) -> dict[str, Figure]:
    """The shares of ORDERS at the end of a run, in percent."""
    questions, test = sum(1 for _ in read_json_lines(folder / "reward" / "test.jsonl")), _test_of(run)
    errors = {order: math.sqrt(test[order] * (1 - test[order]) / questions) for order in ORDERS}
    return {order: figure(100 * test[order], 100 * error, questions) for order, error in errors.items()}


def _test_of(run: Path) -> dict[str, float]:
    """The figures of a run's last evaluation of the test set."""
    return {row["name"]: float(row["value"]) for row in read_log(run / "loss.csv") if row["split"] == "test"}


def _rejection(folder: Path) -> dict[str, Figure]:
    """Rewards, and facts stated, of fresh answers to held-out questions, after each round of each loop."""
    found = {}
    for loop, (count, _) in rounds(folder).items():
        for number in range(1, count + 1):
            report = read_json(folder / loop / f"round-{number:02d}" / "report.json")
            for measure, title in (("heldout", "reward"), ("yardstick", "facts")):
                for group in ("models", "differences"):
                    for name, one in report[measure][group].items():
                        key = f"{loop}/round {number}/{title}/{name}"
                        found[key] = figure(one["mean"], one["error"], one["prompts"])
    return found


def _loops(folder: Path) -> dict[str, Figure]:
    """How much more a round of preference optimization gives than one of rejection sampling, on the same prompts, and
    what each has generated for it."""
    if not has_dpo(folder):
        return {}
    grader, found, values = Grader(load_world(folder / "world" / "facts.json")), {}, {}
    questions = {row["id"]: row["question"] for _, row in read_json_lines(folder / "world/questions_valid.jsonl")}
    for loop in rounds(folder):
        place = folder / loop / "round-01"
        answers = [one for _, one in read_records(place / "heldout.selected.jsonl", Candidate)]
        graded = [replace(one, reward=grader.grade(questions[one.prompt], one.response).quality) for one in answers]
        values[loop] = {"reward": by_prompt(answers), "facts": by_prompt(graded)}
        told = read_json(place / "report.json")
        drawn, drift = told["sets"]["all"], told["drift"]
        found[f"{loop}/round 1/tokens generated"] = figure(drawn["answers"] * drawn["mean_tokens"])
        found[f"{loop}/round 1/tokens of an answer"] = figure(told["heldout"]["models"]["after"]["mean_tokens"])
        found[f"{loop}/round 1/drift"] = figure(drift["after"]["nll"] - drift["start"]["nll"])
    for title in ("reward", "facts"):
        one = difference(*(values[loop][title] for loop in ("rejection_dpo", "rejection")))
        found[f"rejection_dpo/round 1/{title}/after - rejection sampling"] = figure(one.mean, one.error, one.prompts)
    return found


def _recall(folder: Path) -> dict[str, Figure]:
    """Shares of dialogues whose deciding fact is found, in percent, and the difference."""
    found, sides = {}, []
    for model in RECALLING:
        rows = read_json_lines(folder / "evaluation" / model / "recall.jsonl")
        sides.append(np.array([[100.0 * row["right"], 1.0] for _, row in rows]))
        share, error = sides[-1][:, 0].mean(), sides[-1][:, 0].std() / math.sqrt(len(sides[-1]))
        found[f"evaluation/{model}/{RECALL}"] = figure(float(share), float(error), len(sides[-1]))
    name = f"difference/{' - '.join(RECALLING)}/{RECALL}"
    return found | {name: _of(bootstrap_difference(np.stack(sides), mean_ratio))}


def _evaluation(folder: Path) -> dict[str, Figure]:
    """The main figure of each task, of each model; the error is a quarter of the 95% interval over items."""
    found = {}
    for model in models(folder):
        tasks = read_json(folder / "evaluation" / model / "results.json")["tasks"]
        for name, (task, metric) in MEASURES.items():
            one = tasks[task]["metrics"][metric]
            known = one["mean"] is not None  # else a model chose no level of the scale
            bounds = {"low": one["low"], "high": one["high"]} if known else {}
            error = (one["high"] - one["low"]) / 3.92 if known else None
            n = one.get("answered", tasks[task]["n"])
            found[f"evaluation/{model}/{name}"] = figure(one["mean"], error, n, **bounds)
        facts = [quality for quality, _ in facts_stated(folder, model).values()]
        error = statistics.stdev(facts) / math.sqrt(len(facts))
        mean = statistics.mean(facts)
        bounds = {"low": mean - 1.96 * error, "high": mean + 1.96 * error}
        found[f"evaluation/{model}/{FACTS}"] = figure(mean, error, len(facts), **bounds)
    return found


@cache
def facts_stated(folder: Path, model: str) -> dict[str, tuple[float, dict]]:
    """{item: (quality from 0 to 100, record)} of a model's answers to the held-out questions, by the world's facts."""
    grader = Grader(load_world(folder / "world" / "facts.json"))
    found = {}
    for key, record in read_samples(folder / "evaluation" / model, "chimed").items():
        found[key] = (100 * grader.grade(question_of(record), record["answer"]).quality, record)
    return found


def question_of(record: dict) -> str:
    """The patient's question in the prompt of a record, in either template, without the instruction above it."""
    turn = re.split(r"\n\[bot\]:|<\|im_end\|>", record["prompt"])[0]
    return turn.removeprefix("[human]:").split("\n")[-1]


def _differences(folder: Path) -> dict[str, Figure]:
    """Differences of two models on the same items."""
    found = {}
    for one, other in pairs(folder):
        for name, (task, metric) in MEASURES.items():
            first, second = (folder / "evaluation" / model for model in (one, other))
            found[f"difference/{one} - {other}/{name}"] = _of(paired_difference(first, second, task, metric))
        first, second = (facts_stated(folder, model) for model in (one, other))
        values = np.array([[[side[key][0], 1.0] for key in first] for side in (first, second)])
        found[f"difference/{one} - {other}/{FACTS}"] = _of(bootstrap_difference(values, mean_ratio))
    return found


def _of(difference) -> Figure:
    """A difference as a figure."""
    return figure(*difference[:2], difference.n, low=difference.low, high=difference.high)


def read_seconds(path: Path) -> dict[str, int]:
    """{step: seconds}, those of all attempts together."""
    seconds: dict[str, int] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for title, spent in csv.reader(file, delimiter="\t"):
            seconds[title] = seconds.get(title, 0) + int(spent)
    return seconds
