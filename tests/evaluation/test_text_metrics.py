"""BLEU and ROUGE against implementations of their own, by characters and by words."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from megatron_chimed.evaluation.segment import SEGMENTERS, characters, words
from megatron_chimed.evaluation.text_metrics import NAMES, signature, text_scores

ANSWER = "您好，建议去医院检查，多喝水，注意休息。"
REFERENCE = "您好，建议多喝水，注意休息，三天后复查血压120。"
TEXTS = st.text(alphabet="头痛胃炎发热，。ab1 \n", min_size=0, max_size=25)


def bleu(tokens: list[str], gold: list[str], order: int) -> float:
    """Sentence BLEU with 0.1 in place of no match, written out."""
    if not tokens:
        return 0.0
    logs = []
    for n in range(1, order + 1):
        counts, limits = (Counter(zip(*(side[i:] for i in range(n)), strict=False)) for side in (tokens, gold))
        right, size = sum(min(count, limits[gram]) for gram, count in counts.items()), max(1, len(tokens) - n + 1)
        if n == 1 and not right:
            return 0.0
        logs.append(math.log((right or 0.1) / size))
    brevity = 1.0 if len(tokens) > len(gold) else math.exp(1 - len(gold) / len(tokens))
    return brevity * math.exp(sum(logs) / order)


def rouge(tokens: list[str], gold: list[str], name: str) -> float:
    """rouge_score as it is, on Latin names of the tokens with spaces between them: its own tokenizer keeps those."""
    names = {token: f"token{number}" for number, token in enumerate(dict.fromkeys([*tokens, *gold]))}
    texts = (" ".join(names[token] for token in side) for side in (gold, tokens))
    return RougeScorer([name]).score(*texts)[name].fmeasure


@given(TEXTS, TEXTS.filter(lambda text: len(characters(text)) > 1 and len(words(text)) > 1))
def test_scores_equal_independent_implementations(answer, reference):
    scores = text_scores(answer, reference)
    for name, segment in SEGMENTERS.items():
        tokens, gold = segment(answer), segment(reference)
        for order in (1, 2):
            assert scores[f"bleu{order}_{name}"] == pytest.approx(bleu(tokens, gold, order), abs=1e-9)
        for metric in ("rouge1", "rouge2", "rougeL"):
            assert scores[f"{metric}_{name}"] == pytest.approx(rouge(tokens, gold, metric), abs=1e-9)


def test_scores_of_an_example_counted_by_hand():
    scores = text_scores("头痛三天", "头痛五天了")
    # 3 of 4 characters are right, 1 of 3 pairs; the answer is one character short; the longest common part is 头痛天.
    assert scores["bleu1_chars"] == pytest.approx(3 / 4 * math.exp(1 - 5 / 4), abs=1e-9)
    assert scores["bleu2_chars"] == pytest.approx(math.sqrt(3 / 4 * 1 / 3) * math.exp(1 - 5 / 4), abs=1e-9)
    assert scores["rouge1_chars"] == scores["rougeL_chars"] == pytest.approx(2 * 3 / (4 + 5), abs=1e-9)
    assert scores["rouge2_chars"] == pytest.approx(2 * 1 / (3 + 4), abs=1e-9)


def test_the_usual_rouge_sees_nothing_in_chinese_and_ours_does():
    assert RougeScorer(["rouge1"]).score(REFERENCE, REFERENCE.replace("120", ""))["rouge1"].fmeasure == 0
    assert text_scores(REFERENCE.replace("120", ""), REFERENCE)["rouge1_chars"] > 0.9


@pytest.mark.parametrize("reference", [REFERENCE, "好", "好的", "胃炎", "A b"])
def test_the_reference_itself_scores_one_and_an_empty_answer_zero(reference):
    assert text_scores(reference, reference) == pytest.approx(dict.fromkeys(NAMES, 1.0), abs=1e-12)
    assert text_scores(" \n", reference) == dict.fromkeys(NAMES, 0.0)


def test_characters_and_words_are_different_measures():
    scores = text_scores(ANSWER, REFERENCE)
    assert all(scores[f"{name}_chars"] != scores[f"{name}_words"] for name in ("bleu1", "rouge1", "rougeL"))
    assert set(scores) == set(NAMES) and len(NAMES) == 10


def test_a_reference_without_a_token_is_refused():
    with pytest.raises(ValueError, match="no token"):
        text_scores("好", " ")


def test_signatures_tell_all_figures_apart():
    signatures = {name: signature(name) for name in NAMES}
    assert len(set(signatures.values())) == len(NAMES)
    assert "smooth:method1(0.1)" in signatures["bleu2_words"] and "jieba:" in signatures["bleu2_words"]


def test_segmenting_says_nothing(capfd):
    words.__globals__["_jieba"].cache_clear()
    assert words(ANSWER)[:2] == ["您好", "，"]
    assert capfd.readouterr() == ("", "")
