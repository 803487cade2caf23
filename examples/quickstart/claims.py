"""What the quickstart claims, each checked against its figure: the 95% interval must lie above a bound."""

from typing import NamedTuple

from demo_figures import FACTS, RECALL, Figure

LOOP = "rejection_dpo/round 1"


class Claim(NamedTuple):
    """figure: its name; value, low, high, n: of it; bound: what low must exceed."""

    text: str
    figure: str
    value: float
    low: float
    high: float
    n: int
    bound: float
    holds: bool


CLAIMS = (  # text, figure, bound
    (
        "pre-training and SFT are ahead of SFT alone, in facts stated (percent)",
        f"difference/SFT - SFT alone/{FACTS}",
        0.0,
    ),
    (
        "pre-training and SFT are ahead of SFT alone, in multiple choice (percent)",
        "difference/SFT - SFT alone/multiple choice by text",
        0.0,
    ),
    (
        "the full context is ahead of half of it, in facts that stand beyond half (percent; chance 25)",
        f"difference/SFT - half context/{RECALL}",
        0.0,
    ),
    ("SFT raises answers to questions (BLEU-1)", "difference/SFT - base/questions, BLEU-1", 0.0),
    ("SFT raises answers in dialogues (BLEU-1)", "difference/SFT - base/dialogues, BLEU-1", 0.0),
    ("SFT raises named entities (F1)", "difference/SFT - base/named entities, strict F1", 0.0),
    ("SFT raises multiple choice by text (percent)", "difference/SFT - base/multiple choice by text", 0.0),
    ("the reward model orders pairs of four ranks (percent; chance 50)", "reward/four/pair accuracy", 50.0),
    ("the reward model finds the order of four (percent; chance 4.2)", "reward/four/exact order", 100 / 24),
    (
        "two rounds of rejection sampling raise the reward of fresh answers",
        "rejection/round 2/reward/after - start",
        0.0,
    ),
    ("by more than a random control does", "rejection/round 2/reward/after - random control", 0.0),
    (
        "while their facts do not fall by 0.05 or more (of 1)",
        "rejection/round 2/facts/after - start",
        -0.05,
    ),
)

DPO_CLAIMS = (  # of DPO=1
    ("preference optimization orders pairs of four ranks (percent; chance 50)", "dpo/run/pair accuracy", 50.0),
    ("and raises the facts stated (percent)", f"difference/DPO - SFT/{FACTS}", 0.0),
    ("by more than with shuffled ranks", f"difference/DPO - DPO, shuffled/{FACTS}", 0.0),
    ("a round of it on the model's own answers raises their reward", f"{LOOP}/reward/after - start", 0.0),
    ("by more than a random control does", f"{LOOP}/reward/after - random control", 0.0),
    ("and by more than a round of rejection sampling", f"{LOOP}/reward/after - rejection sampling", 0.0),
    ("it raises the facts stated (of 1)", f"{LOOP}/facts/after - start", 0.0),
    ("by more than a round of rejection sampling", f"{LOOP}/facts/after - rejection sampling", 0.0),
)


FORGET_CLAIMS = (  # of FORGET=1
    ("a later fine-tuning on exercises alone raises the loss of dialogues", "forgetting/without replay/rise", 0.0),
    ("by more than with replay", "forgetting/difference", 0.0),
)


def check_claims(found: dict[str, Figure]) -> list[Claim]:
    """All claims with what became of them."""
    checked = []
    more = [*(DPO_CLAIMS if "dpo/run/pair accuracy" in found else ())]
    more += FORGET_CLAIMS if "forgetting/difference" in found else ()
    for text, name, bound in (*CLAIMS, *more):
        one = found[name]
        low = one.get("low", one["value"] - 1.96 * one["error"])
        high = one.get("high", one["value"] + 1.96 * one["error"])
        checked.append(Claim(text, name, one["value"], low, high, one["n"], bound, low > bound))
    return checked
