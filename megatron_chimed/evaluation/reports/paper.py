"""The published figures that a report shows beside ours. Source: paper, tables of the evaluation section."""

MODELS = ("ChiMed-GPT", "Ziya-v2")

FIGURES: dict[str, dict[str, tuple[float, float]]] = {
    "ccks2019": {"f1_strict": (40.82, 27.84)},
    "chimst": {"f1_strict": (41.04, 25.76)},
    "ceval": {"acc": (68.29, 39.02)},
    "cmmlu": {"acc": (52.92, 49.06)},
    "mcmle": {"acc": (44.50, 13.00)},
    "chimed": dict(
        zip(
            ("bleu1", "bleu2", "rouge1", "rouge2", "rougeL"),
            zip((44.58, 37.22, 27.11, 8.89, 19.86), (38.41, 31.90, 26.91, 7.90, 18.67), strict=True),
            strict=True,
        )
    ),
    "mc": dict(
        zip(
            ("bleu1", "bleu2", "rouge1", "rouge2", "rougeL"),
            zip((33.14, 30.86, 43.43, 34.91, 42.16), (14.21, 10.99, 12.20, 4.45, 10.61), strict=True),
            strict=True,
        )
    ),
}
"""{source: {metric: (ChiMed-GPT, Ziya-v2)}}, in percent. Whether F1 is strict, accuracy by letter or by likelihood, and
BLEU and ROUGE by characters or by words, is not stated; so a figure stands beside each of ours of that name."""


def published(source: str, metric: str) -> tuple[float, float] | None:
    """The paper's figures for a metric of ours (its part in front of "_" names it), or None.

    >>> published("mc", "bleu1_words"), published("ceval", "unparsed")
    ((33.14, 14.21), None)
    """
    figures = FIGURES.get(source, {})
    name = metric.rpartition("_")[0] if metric.endswith(("_chars", "_words")) else metric
    return figures.get("f1_strict" if name == "f1_relaxed" else name)
