"""Free answers to a question or within a dialogue, by BLEU and ROUGE."""

from megatron_chimed.evaluation import text_metrics
from megatron_chimed.evaluation.kinds.kind import Kind, Scored, mean, problem, results_of
from megatron_chimed.text.template import Template


def text(item: dict) -> str:
    """History and last question in the plain form of the released model, for models without a chat template."""
    return Template().plain(item["history"])


def target(item: dict) -> str:
    """The reference."""
    return item["reference"]


def score(item: dict, answer: str) -> Scored:
    """BLEU and ROUGE against the reference; empty: 1 for an answer of white space."""
    stripped = answer.strip()
    return Scored(
        stripped or None, {**text_metrics.text_scores(stripped, item["reference"]), "empty": float(not stripped)}
    )


process_results = results_of(score)
KIND = Kind(
    "answers",
    "Free answers to a question or within a dialogue, by BLEU and ROUGE.",
    {**{name: mean(text_metrics.signature(name)) for name in text_metrics.NAMES}, "empty": problem()},
    target,
    {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["[human]:"], "max_gen_toks": 256, "do_sample": False},
    },
    main="rougeL_chars",
    turns=True,
    zero_shot=True,
)
