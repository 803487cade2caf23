"""Deduplication: the first occurrence stays, near means what brute force says, unrelated texts are never merged."""

import csv
import functools
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import SHARED

from megatron_chimed.data.dedup import ExactDeduplicator, NearDeduplicator, _index_shape, shingle_hashes
from megatron_chimed.text.normalise import normalise

BOTH = [ExactDeduplicator, NearDeduplicator]
CHARACTERS = "慢性胃炎患者应当规律饮食避免辛辣刺激头痛发热咳嗽血压检查建议服药复查休息住院手术医生门诊"
LONG = "高血压患者应当低盐饮食，每天摄入的食盐不超过五克，规律服药，定期测量血压，避免情绪激动和过度劳累。"


def random_text(generator: random.Random, length: int) -> str:
    return "".join(generator.choices(CHARACTERS, k=length))


def edited(generator: random.Random, text: str, edits: int) -> str:
    characters = list(text)
    for place in generator.sample(range(len(text)), edits):
        characters[place] = generator.choice("甲乙丙丁")
    return "".join(characters)


@functools.cache
def grams(text: str) -> frozenset[str]:
    plain = normalise(text)
    return frozenset(plain[i : i + 5] for i in range(len(plain) - 4))


def jaccard(first: str, second: str) -> float:
    """Similarity of the sets of character 5-grams, by the definition."""
    a, b = grams(first), grams(second)
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def family() -> list[str]:
    """300 texts: 30 unrelated originals, each with nine copies of 0 to 40 changed characters out of 300."""
    generator = random.Random(7)
    texts = []
    for _ in range(30):
        original = random_text(generator, 300)
        texts += [original, *(edited(generator, original, edits) for edits in (0, 1, 2, 4, 6, 9, 14, 24, 40))]
    generator.shuffle(texts)
    return texts


def decisions_by_brute_force(texts: list[str], decided: list[bool]) -> list[float]:
    """For each text, its greatest true similarity to the texts before it that were kept."""
    greatest = []
    for number, text in enumerate(texts):
        before = [texts[i] for i in range(number) if not decided[i]]
        greatest.append(max((jaccard(text, other) for other in before), default=0.0))
    return greatest


def test_near_duplicates_are_those_that_brute_force_finds(family):
    deduplicator = NearDeduplicator()
    decided = [deduplicator.is_duplicate(text) for text in family]
    greatest = decisions_by_brute_force(family, decided)
    # 0.1 is three standard errors of the estimate; between the bounds either answer is right.
    assert all(duplicate for duplicate, similarity in zip(decided, greatest, strict=True) if similarity > 0.9)
    assert not any(duplicate for duplicate, similarity in zip(decided, greatest, strict=True) if similarity < 0.7)
    assert sum(similarity > 0.9 for similarity in greatest) > 50, "the test must have seen duplicates"
    assert sum(0.3 < similarity < 0.7 for similarity in greatest) > 20, "and texts that only look alike"
    close = [duplicate == (similarity >= 0.8) for duplicate, similarity in zip(decided, greatest, strict=True)]
    assert sum(close) > 0.93 * len(close)


def test_the_estimated_similarity_is_close_to_the_true_one(family):
    deduplicator = NearDeduplicator()
    signatures = [deduplicator.signature(text) for text in family]
    pairs = [(i, j) for i in range(0, 300, 7) for j in range(i)]
    errors = [np.mean(signatures[i] == signatures[j]) - jaccard(family[i], family[j]) for i, j in pairs]
    assert abs(np.mean(errors)) < 0.005 and np.max(np.abs(errors)) < 0.2


def test_unrelated_texts_are_not_merged():
    generator = random.Random(3)
    deduplicator = NearDeduplicator()
    assert not any(deduplicator.is_duplicate(random_text(generator, 200)) for _ in range(2000))


def test_a_shared_beginning_does_not_make_a_duplicate():
    generator = random.Random(4)
    deduplicator = NearDeduplicator()
    texts = [LONG + random_text(generator, len(LONG)) for _ in range(50)]
    assert not any(deduplicator.is_duplicate(text) for text in texts)


@pytest.mark.parametrize("make", BOTH)
def test_the_first_occurrence_is_kept(make):
    deduplicator = make()
    texts = ["头痛应当休息，必要时就诊", "发热三天建议查血常规", "头痛应当休息，必要时就诊"]
    assert [deduplicator.is_duplicate(text) for text in texts] == [False, False, True]
    assert deduplicator.is_duplicate(texts[1])


@pytest.mark.parametrize("make", BOTH)
def test_case_width_and_white_space_do_not_matter(make):
    deduplicator = make()
    assert not deduplicator.is_duplicate("服用ABC片 12 粒，一日三次。")
    assert deduplicator.is_duplicate("  服用ａｂｃ片\n１２粒，一日三次。\n")


def test_one_changed_character_is_no_exact_duplicate_but_a_near_one():
    changed = LONG * 3 + "。"
    exact, near = ExactDeduplicator(), NearDeduplicator()
    assert [one.is_duplicate(LONG * 3) for one in (exact, near)] == [False, False]
    assert [one.is_duplicate(changed) for one in (exact, near)] == [False, True]


def test_a_higher_threshold_keeps_more(family):
    kept = []
    for threshold in (0.5, 0.8, 0.95):
        deduplicator = NearDeduplicator(threshold)
        kept.append(sum(not deduplicator.is_duplicate(text) for text in family))
    assert 30 <= kept[0] < kept[1] < kept[2] < len(family)


@pytest.mark.parametrize("make", BOTH)
def test_short_and_empty_texts_are_told_apart(make):
    deduplicator = make()
    texts = ["", "药", "病", "病人", "头痛", "头痛呢", "头痛了吗"]
    assert not any(deduplicator.is_duplicate(text) for text in texts)
    assert all(deduplicator.is_duplicate(text) for text in texts)


@pytest.mark.parametrize("make", BOTH)
def test_signatures_from_a_pickled_copy_give_the_same_decisions(make, family):
    whole, split = make(), make()
    whole.is_duplicate(LONG)
    split.is_duplicate(LONG)
    worker = pickle.loads(pickle.dumps(split))
    signatures = [pickle.loads(pickle.dumps(worker.signature(text))) for text in [LONG, *family]]
    assert [split.is_duplicate_signature(one) for one in signatures] == [whole.is_duplicate(t) for t in [LONG, *family]]


def test_a_near_signature_is_an_array_of_the_stated_type_and_size():
    signature = NearDeduplicator(num_perm=64).signature("慢性胃炎")
    assert signature.dtype == np.uint32 and signature.shape == (64,)


def test_exact_signatures_of_many_are_those_of_each():
    same = [("", " \n"), ("Ａ b", "ab"), ("e\u0301", "\u00e9")]
    texts = [
        *(text for pair in same for text in pair),
        "\ud800x",
        "头痛\U0001f600",
        "\ufb01",
        LONG,
        "\u1112\u1161\u11ab",
    ]
    exact = ExactDeduplicator()
    found = exact.signatures(texts)
    assert found == [*map(exact.signature, texts)] == exact.signatures(texts[:5]) + exact.signatures(texts[5:])
    assert len(set(found)) == len(texts) - len(same)


def test_an_exact_signature_is_sixteen_bytes_for_any_text():
    assert {len(ExactDeduplicator().signature(text)) for text in ("", "药", LONG * 1000, "\ud83d")} == {16}


def test_signatures_are_the_same_in_another_process():
    command = (
        "from megatron_chimed.data.dedup import *; text = '慢性胃炎患者';"
        "print(ExactDeduplicator().signature(text).hex(), NearDeduplicator().signature(text).tolist())"
    )
    runs = [subprocess.run([sys.executable, "-c", command], capture_output=True, text=True).stdout for _ in range(2)]
    assert runs[0] == runs[1] != ""


@given(st.lists(st.text(st.characters(), max_size=12), max_size=5))
def test_equal_grams_have_equal_hashes_and_different_ones_differ(texts):
    grams = [[text[i : i + 5] for i in range(len(text) - 4)] or ([text] if text else []) for text in texts]
    codes = np.array([ord(character) for text in texts for character in text], np.uint32)
    hashes, bounds = shingle_hashes(codes, np.cumsum([0, *map(len, texts)]))
    assert np.diff(bounds).tolist() == [len(some) for some in grams] and bounds[-1] == len(hashes)
    pairs = {(gram.ljust(5, "\0"), one) for gram, one in zip(sum(grams, []), hashes.tolist(), strict=True)}
    assert len({gram for gram, _ in pairs}) == len({one for _, one in pairs}) == len(pairs)


@given(st.lists(st.text(st.sampled_from("胃炎 Ａ℃é"), max_size=9), max_size=6))
def test_the_signatures_of_many_texts_are_those_of_each(texts):
    near = NearDeduplicator()
    assert [one.tolist() for one in near.signatures(texts)] == [near.signature(text).tolist() for text in texts]


def test_a_signature_is_that_of_the_set_of_grams_however_often_each_occurs():
    near, period = NearDeduplicator(), "高血压患者应当低盐饮食"
    whole = near.signature(period * 3)
    assert np.array_equal(near.signature(period * 10_000), whole)
    assert not np.array_equal(near.signature(period[:-1] * 3), whole)


def test_the_shape_of_the_index_is_that_of_another_implementation():
    """Of datasketch 2.0.0: MinHashLSH(threshold, num_perm=128, weights=(0.1, 0.9)), (b, r)."""
    expected = {0.5: (32, 4), 0.6: (25, 5), 0.7: (20, 6), 0.8: (14, 9), 0.9: (8, 16), 0.95: (5, 25)}
    assert {threshold: _index_shape(threshold, 128) for threshold in expected} == expected


@pytest.mark.skipif(not SHARED.exists(), reason="the shared sample data is not beside the project")
def test_real_answers_that_are_called_near_duplicates_are_alike():
    with open(SHARED / "toyhom_internal_medicine.csv", encoding="gb18030", errors="replace", newline="") as file:
        texts = [row["answer"] for row in csv.DictReader(file)][:600]
    texts += [text[:-2] + "的" for text in texts[:50] if len(text) > 60]
    deduplicator = NearDeduplicator()
    decided = [deduplicator.is_duplicate(text) for text in texts]
    kept = [text for text, duplicate in zip(texts, decided, strict=True) if not duplicate]
    found = [text for text, duplicate in zip(texts, decided, strict=True) if duplicate]
    assert len(found) >= 45
    assert all(max(jaccard(text, other) for other in kept) > 0.65 for text in found[:60])
