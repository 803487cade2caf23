"""The report of the quickstart: report.html, report.md and their pictures; results.json holds every figure of it.

Example:
    python examples/quickstart/report.py runs/demo
"""

import argparse
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import drawings
from claims import Claim, check_claims
from demo_figures import (
    FACTS,
    FORGET,
    MEASURES,
    ORDERS,
    RECALL,
    RECALLING,
    Figure,
    facts_stated,
    has_dpo,
    models,
    pairs,
    question_of,
    read_figures,
    read_seconds,
    rewards,
    rounds,
    trainings,
)

from megatron_chimed.errors import exit_cleanly
from megatron_chimed.evaluation.reports.page import Block, write_page
from megatron_chimed.jsonl import read_json, write_json
from megatron_chimed.workers import in_columns

LOOP_STEPS = {"rejection": "rounds of rejection sampling", "rejection_dpo": "a round of preference optimization"}
"""What the titles of their steps in run.sh hold."""
LOOP_COUNTS = {"drift": 3, "tokens of an answer": 1, "tokens generated": 0}
"""With so many digits; drift is the nats per token that reference answers have lost."""
PACKAGES = ("megatron-core", "torch", "transformers", "lm-eval", "sentencepiece", "nltk", "numpy")
EXAMPLES = 4
SHOWN = 120  # characters of an answer
PERCENT = [name for name in (*MEASURES, FACTS) if "bias" not in name]


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the quickstart's output")
    folder = parser.parse_args().folder
    found = read_figures(folder)
    claims = check_claims(found)
    seconds = read_seconds(folder / "seconds.tsv")
    results = {
        "schema": 1,
        "made_by": "examples/quickstart/report.py",
        "figures": found,
        "claims": [claim._asdict() for claim in claims],
        "seconds": seconds,
        "hashes": _hashes(folder),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    write_json(folder / "results.json", results)
    write_page(list(_blocks(folder, found, claims, results)), folder, "The regime on a synthetic world")
    for claim in claims:
        print(claim_line(claim))
    print(f"report          {folder / 'report.html'}, {folder / 'report.md'}")
    print(f"every figure    {folder / 'results.json'}")
    print(f"for transformers {folder / 'hf'}, {folder / 'hf_reward'}")


def _hashes(folder: Path) -> dict[str, str]:
    """What the figures were made from: the world's files, and each model's weights."""
    world = read_json(folder / "world" / "world.json")["sha256"]
    weights = {}
    for name in models(folder):
        weights[name] = read_json(folder / "evaluation" / name / "results.json")["model"]["weights"]
    return {**{f"world/{name}": digest for name, digest in world.items()},
            **{f"weights of {name}": digest for name, digest in weights.items()}}  # fmt: skip


def claim_line(claim: Claim) -> str:
    """A claim for the terminal. Its figure stands undivided, in the next line where it has no room beside the text."""
    first, *words = f"{claim.text}:".split()
    return in_columns([f"{'holds' if claim.holds else 'DOES NOT HOLD':14}{first}", *words, _of(claim)], indent=14)


def _of(claim: Claim) -> str:
    return f"{claim.value:.3g} [{claim.low:.3g}, {claim.high:.3g}], n = {claim.n}"


def _cell(one: Figure, digits: int = 1) -> str:
    """A figure with its interval, or its error."""
    if one["value"] is None:
        return "none"
    text = f"{one['value']:.{digits}f}"
    if one.get("low") is not None:
        return f"{text} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"
    return text if one["error"] is None else f"{text} ± {one['error']:.{digits}f}"


def _blocks(folder: Path, found: dict[str, Figure], claims: list[Claim], results: dict) -> Iterator[Block]:
    """The report, piece by piece."""
    yield Block("h1", "The regime on a synthetic world")
    yield Block(
        "p",
        "Pre-training, supervised fine-tuning, reward models and two rounds of rejection sampling, all by Megatron's "
        "own trainer with two tensor-parallel ranks. The world is invented: its diseases and drugs do not exist, and "
        "the model of two million weights that learnt it can do nothing else. What follows shows that each stage "
        "does what it is for, and how its effect is measured; it says nothing about a model of real size.",
    )
    yield Block("h2", "Claims")
    yield Block("p", "A claim holds when the whole 95% interval of its figure is on the right side of the bound.")
    rows = [[claim.text, _of(claim), f"{claim.bound:.3g}", "yes" if claim.holds else "NO"] for claim in claims]
    yield Block("table", [["claim", "figure [95% interval]", "more than", "holds"], *rows])
    yield from _training_blocks(folder, found)
    if has_dpo(folder):
        yield from _preference_blocks(found)
    yield from _rejection_blocks(folder, found)
    yield from _evaluation_blocks(folder, found)
    yield from _answer_blocks(folder)
    yield Block("h2", "Time and origin")
    seconds = results["seconds"]
    rows = [[title, str(spent)] for title, spent in seconds.items()]
    yield Block("table", [["step", "seconds"], *rows, ["all", str(sum(seconds.values()))]])
    yield Block("code", [f"{name} {one}" for name, one in results["versions"].items()])
    yield Block("code", [f"{digest[:16]} {name}" for name, digest in results["hashes"].items()])


def _training_blocks(folder: Path, found: dict[str, Figure]) -> Iterator[Block]:
    """Losses, and the reward models."""
    yield Block("h2", "Losses")
    columns = ("train, first", "train, last 10", "held out, first", "held out, last")
    rows = [
        [title, *(_cell(found[f"loss/{title}/{name}"], 3) for name in columns)] for title in trainings(folder).values()
    ]
    yield Block("table", [["nats per token", *columns], *rows])
    yield Block("plot", drawings.losses(folder, found["loss/unigram entropy"]["value"]))
    if "forgetting/difference" in found:
        names = ("loss/{}/before", "loss/{}/after", "forgetting/{}/rise")
        rows = [[title, *(_cell(found[name.format(title)], 3) for name in names)] for title in FORGET.values()]
        yield Block("p", "The loss of held-out dialogues, before and after a later fine-tuning on exercises alone:")
        yield Block("table", [["nats per token", "before", "after", "rise"], *rows])
    yield Block("h2", "Reward models")
    rows = [[title, *(_cell(found[f"reward/{name}/{order}"]) for order in ORDERS),
             str(found[f"reward/{name}/{ORDERS[0]}"]["n"])] for name, title in rewards(folder).items()]  # fmt: skip
    yield Block("table", [["test questions, percent", *ORDERS, "n"], *rows])
    yield Block(
        "p",
        "The paper's Figure 3: with the best and the worst answer alone there is little to learn, and it is learnt at "
        "once; four ranks go on teaching. By chance a pair is right in 50%, the order of four in 4%.",
    )
    yield Block("plot", drawings.reward_curves(folder))


def _preference_blocks(found: dict[str, Figure]) -> Iterator[Block]:
    """What preference optimization has learnt of the ranks, beside its control."""
    yield Block("h2", "Preference optimization")
    yield Block(
        "p",
        "The fine-tuned model, trained on the reward model's pairs by DPO, and with the ranks shuffled. "
        "The order is that of the implicit reward. Log-probabilities are in nats per answer; the divergence, by token, "
        "is an estimate on answers that the model has not written.",
    )
    moved = ("KL estimate", "log p of better", "log p of worse", "reward-length correlation")
    rows = [
        [
            title,
            *(_cell(found[f"dpo/{name}/{one}"]) for one in ORDERS),
            *(_cell(found[f"dpo/{name}/{one}"], 2) for one in moved),
        ]
        for name, title in (("run", "four ranks"), ("shuffled", "shuffled"))
    ]
    yield Block("table", [["test questions, percent", *ORDERS, *moved], *rows])


def _rejection_blocks(folder: Path, found: dict[str, Figure]) -> Iterator[Block]:
    """Rewards and facts before and after each round."""
    yield Block("h2", "Rejection sampling")
    yield Block(
        "p",
        "Fresh answers to held-out questions. The random control is trained on as many answers to the same questions, "
        "drawn at random. Facts stated: recall x precision of the gold facts, from 0 to 1, which no model has seen.",
    )
    rows = []
    for loop, (count, training) in rounds(folder).items():
        for number in range(1, count + 1):
            start = f"{loop}/round {number}/"
            names = dict.fromkeys(name.split("/")[-1] for name in found if name.startswith(f"{start}reward/"))
            rows += [
                [
                    f"{training}, round {number}",
                    name,
                    *(_cell(found[f"{start}{of}/{name}"], 3) for of in ("reward", "facts")),
                ]
                for name in names
            ]
    yield Block("table", [["round", "model or difference", "reward", "facts stated"], *rows])
    yield Block("plot", drawings.rewards_by_round(found))
    if has_dpo(folder):
        yield from _cost_blocks(folder, found)


def _cost_blocks(folder: Path, found: dict[str, Figure]) -> Iterator[Block]:
    """A round of preference optimization beside one of rejection sampling, with what each costs."""
    yield Block("h3", "A round of each, on the same prompts")
    seconds = read_seconds(folder / "seconds.tsv")
    spent = {loop: next((s for title, s in seconds.items() if words in title), 0) for loop, words in LOOP_STEPS.items()}
    rows = []
    for loop, (count, training) in rounds(folder).items():
        start = f"{loop}/round 1"
        gains = [_cell(found[f"{start}/{of}/after - start"], 3) for of in ("reward", "facts")]
        counts = [_cell(found[f"{start}/{name}"], digits) for name, digits in LOOP_COUNTS.items()]
        rows.append([training, *gains, *counts, f"{spent[loop] / count:.0f}"])
    more = [_cell(found[f"rejection_dpo/round 1/{of}/after - rejection sampling"], 3) for of in ("reward", "facts")]
    yield Block(
        "table",
        [
            ["training", "reward gained", "facts gained", *LOOP_COUNTS, "seconds of a round"],
            *rows,
            ["difference", *more, *[""] * (len(LOOP_COUNTS) + 1)],
        ],
    )
    yield Block(
        "p",
        "The paper finds that rejection sampling gets more out of its data than PPO, and shows no comparison. Here the "
        "same samples are used twice: the best of eight as an answer to learn, and the best and the worst as a pair.",
    )


def _evaluation_blocks(folder: Path, found: dict[str, Figure]) -> Iterator[Block]:
    """All models on all tasks, differences in pairs, bias."""
    yield Block("h2", "Evaluation")
    yield Block(
        "p",
        "Held-out items; 95% bootstrap intervals. By chance multiple choice is at 25%: a model of this size binds no "
        "options to letters, and knows the option's text all the same (the cloze formulation, arXiv 2406.08446).",
    )
    measures = [*MEASURES, FACTS]
    rows = [
        [
            name,
            str(found[f"evaluation/SFT/{name}"]["n"]),
            *(_cell(found[f"evaluation/{model}/{name}"]) for model in models(folder)),
        ]
        for name in measures
    ]
    yield Block("table", [["measure", "n", *models(folder)], *rows])
    yield Block("plot", drawings.scores(found, "scores", PERCENT, "percent"))
    yield Block("h3", "Differences, item by item")
    compared = [f"{one} - {other}" for one, other in pairs(folder)]
    rows = [[name, *(_cell(found[f"difference/{pair}/{name}"]) for pair in compared)] for name in measures]
    yield Block("table", [["measure", *compared], *rows])
    yield Block("h3", "Facts that stand beyond half of the context")
    yield Block(
        "p",
        "A patient says what he suffers from, and more than 256 tokens later asks for the department, drug or "
        "examination of his illness: which of four answers is the likeliest. The second model was trained with 256.",
    )
    rows = [[model, _cell(found[f"evaluation/{model}/{RECALL}"])] for model in RECALLING]
    difference = _cell(found[f"difference/{' - '.join(RECALLING)}/{RECALL}"])
    n = found[f"evaluation/{RECALLING[0]}/{RECALL}"]["n"]
    yield Block("table", [[f"n = {n}, chance 25", "percent"], *rows, ["difference", difference]])
    yield Block("h2", "Bias")
    yield Block(
        "p",
        "Statements about patients, from 1 (no bias) to 5; diseases that fine-tuning says nothing of. A model that "
        "has not learnt to choose a level has no score.",
    )
    if any(found[f"evaluation/{model}/bias, 1 to 5"]["value"] is not None for model in models(folder)):
        yield Block("plot", drawings.scores(found, "bias", ["bias, 1 to 5"], "mean score"))


def _answer_blocks(folder: Path) -> Iterator[Block]:
    """Answers of the models side by side."""
    yield Block("h2", "Answers")
    answers = {model: facts_stated(folder, model) for model in models(folder)}
    for key in list(answers["SFT"])[:EXAMPLES]:
        record = answers["SFT"][key][1]
        rows = [[model, one[key][1]["answer"][:SHOWN], f"{one[key][0]:.0f}"] for model, one in answers.items()]
        yield Block(
            "table", [[question_of(record), "", "facts"], ["a doctor of the world", record["gold"][:SHOWN], ""], *rows]
        )


if __name__ == "__main__":
    exit_cleanly(main)
