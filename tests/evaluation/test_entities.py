"""Named entities: what an answer is understood as, and F1 against other ways to count."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from megatron_chimed.evaluation.entities import Entity, Mention, count_entities, parse_answer, write_answer
from megatron_chimed.evaluation.kinds.entities import METRICS

TYPES = ["疾病", "症状", "药物"]
SENTENCE = "患者头痛、恶心三天，诊断为胃、十二指肠溃疡（活动期），予奥美拉唑。既往胃炎。"


def mention(kind: str, text: str, start: int | None = None) -> Mention:
    """A gold entity where its text stands in SENTENCE first."""
    start = SENTENCE.index(text) if start is None else start
    return Mention(kind, text, start, start + len(text))


GOLD = [
    mention("症状", "头痛"),
    mention("症状", "恶心"),
    mention("疾病", "胃、十二指肠溃疡（活动期）"),
    mention("药物", "奥美拉唑"),
    mention("疾病", "胃炎"),
]
EXPECTED = {Entity(one.type, one.text) for one in GOLD}


@pytest.mark.parametrize(
    "answer",
    [
        write_answer(GOLD),
        "1. 症状：头痛\n2、症状: 恶心\n- 疾病：胃、十二指肠溃疡（活动期）\n* **疾病**：胃炎。\n药物：“奥美拉唑”\n",
        "症状：恶心；头痛\n疾病：胃炎，胃、十二指肠溃疡（活动期）\n药物：奥美拉唑".replace("胃炎，", "胃炎\n疾病："),
        '```json\n{"症状": ["头痛", "恶心"], "疾病": ["胃、十二指肠溃疡（活动期）", "胃炎"], "药物": "奥美拉唑"}\n```',
        '以下是实体：[["症状", "头痛"], ["恶心", "症状"], {"type": "疾病", "text": "胃、十二指肠溃疡（活动期）"}, '
        '{"label": "疾病", "entity": "胃炎"}, {"类型": "药物", "实体": "奥美拉唑"}] 希望有帮助',
        "头痛（症状）\n恶心(症状)\n胃、十二指肠溃疡（活动期）（疾病）\n胃炎（疾病）\n奥美拉唑（药物）",
    ],
    ids=["gold", "list", "several", "json by type", "json list", "type behind"],
)
def test_one_set_of_entities_is_understood_in_many_forms(answer):
    assert parse_answer(answer, TYPES, SENTENCE) == EXPECTED


@pytest.mark.parametrize("answer", ["无", "无。", " 没有实体 ", "[]", "症状：无\n疾病：无"])
def test_an_answer_that_names_nothing_is_understood(answer):
    assert parse_answer(answer, TYPES, SENTENCE) == set()


@pytest.mark.parametrize("answer", ["", "您好，请到医院就诊。", "手术：切除", "[1] 见上文", '{"症状'])
def test_an_answer_of_another_kind_is_not_understood(answer):
    assert parse_answer(answer, TYPES, SENTENCE) is None


@given(st.text(alphabet="症状疾病：、；（）{}[]\"',头痛\n 1.", max_size=60))
def test_no_answer_is_too_strange(answer):
    found = parse_answer(answer, TYPES, SENTENCE)
    assert found is None or all(entity.type in TYPES and entity.text for entity in found)


def micro(rows: list[tuple[set, list]], relaxed: bool) -> float:
    """Our micro-F1 over (answered, gold) of sentences that are all SENTENCE."""
    metric = METRICS["f1_relaxed" if relaxed else "f1_strict"]
    counts = [count_entities(answered, gold, SENTENCE, TYPES, relaxed=relaxed) for answered, gold in rows]
    return float(metric.ratio(np.array([metric.row(one) for one in counts]).sum(axis=0)))


def random_rows(seed: int) -> list[tuple[set, list]]:
    """Answers and gold of some sentences: random spans of SENTENCE."""
    draw = np.random.default_rng(seed)

    def span() -> Mention:
        start = int(draw.integers(len(SENTENCE) - 4))
        text = SENTENCE[start : start + int(draw.integers(1, 4))]
        return mention(TYPES[draw.integers(3)], text, start)

    rows = []
    for _ in range(12):
        gold = [span() for _ in range(draw.integers(0, 6))]
        answered = {Entity(one.type, one.text) for one in gold if draw.random() < 0.5}
        rows.append((answered | {Entity(*span()[:2]) for _ in range(draw.integers(0, 4))}, gold))
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_strict_f1_equals_sklearn(seed):
    rows = random_rows(seed)
    gold, answered = [{(m.type, m.text) for m in g} for _, g in rows], [{tuple(e) for e in a} for a, _ in rows]
    binarizer = MultiLabelBinarizer().fit(gold + answered)
    expected = f1_score(binarizer.transform(gold), binarizer.transform(answered), average="micro")
    assert micro(rows, relaxed=False) == pytest.approx(expected, abs=1e-9)


def most_pairs(answered: set, gold: list[Mention]) -> int:
    """The largest number of pairs, by trying all assignments."""
    texts = [e.text for e in answered]
    spans: dict[str, list[Mention]] = {}
    for one in gold:
        spans.setdefault(one.text, []).append(one)

    def fits(text: str, mentions: list[Mention]) -> bool:
        places = [i for i in range(len(SENTENCE)) if SENTENCE.startswith(text, i)]
        return any(set(range(p, p + len(text))) & set(range(m.start, m.end)) for p in places for m in mentions)

    golds = [*spans.values(), *[None] * len(texts)]
    return max(
        sum(one is not None and fits(text, one) for text, one in zip(texts, order, strict=False))
        for order in itertools.permutations(golds, len(texts))
    )


@pytest.mark.parametrize("seed", range(4))
def test_relaxed_counts_equal_the_best_of_all_assignments(seed):
    for answered, gold in random_rows(seed):
        counts = count_entities(answered, gold, SENTENCE, TYPES, relaxed=True)
        for kind in TYPES:
            part = {e for e in answered if e.type == kind}
            expected = most_pairs(part, [m for m in gold if m.type == kind]) if part else 0
            assert counts[kind].right == expected if kind in counts else expected == 0


def test_a_part_of_an_entity_is_right_only_when_relaxed():
    answered = {Entity("疾病", "十二指肠溃疡"), Entity("症状", "奥美拉唑"), Entity("症状", "头晕")}
    strict = count_entities(answered, GOLD, SENTENCE, TYPES, relaxed=False)
    relaxed = count_entities(answered, GOLD, SENTENCE, TYPES, relaxed=True)
    assert [strict[kind].right for kind in TYPES] == [0, 0, 0]
    assert [relaxed[kind].right for kind in TYPES] == [1, 0, 0]
    assert relaxed["症状"] == (0, 2, 2) and relaxed["疾病"] == (1, 1, 2) and relaxed["药物"] == (0, 0, 1)


def test_the_same_mention_twice_is_one_entity():
    twice = [mention("症状", "头痛"), mention("症状", "头痛", 30)]
    assert count_entities({Entity("症状", "头痛")}, twice, SENTENCE, TYPES, relaxed=False)["症状"] == (1, 1, 1)
    assert write_answer(twice) == "症状：头痛" and write_answer([]) == "无"


def test_pairs_are_made_so_that_most_entities_have_one():
    answered = {Entity("症状", "头痛、恶"), Entity("症状", "痛")}  # the first fits both, the second only 头痛
    assert count_entities(answered, GOLD, SENTENCE, TYPES, relaxed=True)["症状"] == (2, 2, 2)
