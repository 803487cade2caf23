"""BLEU and ROUGE of one answer against its reference, by characters and by words, each with a signature.

Source: paper, section on evaluation (BLEU-1, BLEU-2, ROUGE-1, ROUGE-2, ROUGE-L; the tokenization is not stated, so
both are given). Scores are from 0 to 1 here, and the mean over answers is what is reported.

- BLEU-n is nltk's sentence BLEU with uniform weights up to n and `SmoothingFunction().method1`, which counts 0.1 where
  no n-gram matches. rouge_score's default tokenizer keeps nothing of Chinese, so ROUGE gets ours; it is the F measure.
- An empty answer scores 0. It is never left out.
- A reference of fewer than n tokens has no n-gram, so n is at most its length: a right answer of one word scores 1.
"""

from functools import cache
from importlib.metadata import version

from megatron_chimed.evaluation.segment import SEGMENTERS

BLEU = {"bleu1": 1, "bleu2": 2}
ROUGE = {"rouge1": 1, "rouge2": 2, "rougeL": None}
NAMES = tuple(f"{metric}_{tokens}" for tokens in SEGMENTERS for metric in (*BLEU, *ROUGE))
"""bleu1_chars, ..., rougeL_words."""


def text_scores(answer: str, reference: str) -> dict[str, float]:
    """All of `NAMES` for one answer, each from 0 to 1. Raises ValueError for a reference without a token."""
    scores = {}
    for name, segment in SEGMENTERS.items():
        tokens, gold = segment(answer), segment(reference)
        if not gold:
            raise ValueError("the reference has no token; leave the item out and count it as malformed")
        for metric, order in BLEU.items():
            scores[f"{metric}_{name}"] = _bleu(tokens, gold, min(order, len(gold)))
        for metric, order in ROUGE.items():
            scores[f"{metric}_{name}"] = _rouge(tokens, gold, "L" if order is None else min(order, len(gold)))
    return scores


def signature(name: str) -> str:
    """What a figure by this name of `NAMES` is: all that another implementation needs to repeat it.

    >>> signature("rougeL_chars").split("|")[:2]
    ['rougeL', 'tok:chars']
    """
    metric, tokens = name.split("_")
    parts = [metric, f"tok:{tokens}", "refs:1", "case:mixed", "agg:mean", "empty:0"]
    if tokens == "words":
        parts.append(f"jieba:{version('jieba')}")
    if metric in BLEU:
        parts += ["level:sentence", "smooth:method1(0.1)", f"nltk:{version('nltk')}"]
    else:
        parts += ["f1", f"rouge_score:{version('rouge_score')}"]
    return "|".join([*parts, "order:min(n,ref)"] if metric[-1] != "L" else parts)


def _bleu(tokens: list[str], gold: list[str], order: int) -> float:
    """Sentence BLEU of this order."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if not tokens:
        return 0.0
    weights = (1 / order,) * order
    return float(sentence_bleu([gold], tokens, weights=weights, smoothing_function=SmoothingFunction().method1))


def _rouge(tokens: list[str], gold: list[str], order: int | str) -> float:
    """The F measure of ROUGE-1, -2 or -L."""
    name = f"rouge{order}"
    return float(_scorer(name).score(gold, tokens)[name].fmeasure)


class _Given:
    """Stands where rouge_score expects a tokenizer: texts are tokens already."""

    def tokenize(self, tokens: list[str]) -> list[str]:
        return tokens


@cache
def _scorer(name: str):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], tokenizer=_Given())
