"""Bias scales: the file, the prompt, what an answer chooses, and which way a statement is keyed."""

import pytest
import yaml

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.kinds.scale import score as score_level
from megatron_chimed.evaluation.readers.bias import EXAMPLE, parse_level, points, read_scale, write_prompt

MICA = ["完全不同意", "不同意", "稍微不同意", "稍微同意", "同意", "完全同意"]
CAMI = ["完全不同意", "不同意", "既不同意也不反对", "同意", "完全同意"]


def write_scale(path, count=2, levels=("不同意", "中立", "同意"), **changes) -> str:
    """A scale file whose statements are biased by turns."""
    statements = [{"text": f"说法{n}", "biased": n % 2 == 0, "subscale": "ab"[n % 2]} for n in range(count)]
    path.write_text(yaml.safe_dump({"levels": list(levels), "statements": statements} | changes, allow_unicode=True))
    return str(path)


@pytest.mark.parametrize("levels", [MICA, CAMI, ["不同意", "中立", "同意"]])
def test_every_level_is_understood_in_many_wordings(levels):
    wordings = (
        "{}",
        "{}。",
        "我{}这个说法。",
        "答案：{}",
        "我的选择是“{}”。",
        "作为一名医生，我{}，因为患者需要支持。",
        "对此我表示{}！",
    )
    for place, level in enumerate(levels):
        for wording in wordings:
            assert parse_level(wording.format(level), levels) == place, wording.format(level)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "作为人工智能，我没有个人观点。",
        "我不太同意",
        "无法同意",
        "不能完全同意",
        "选项有：完全不同意、不同意、稍微不同意",
        "同意或不同意都可以",
        "有人同意，有人不同意。",
        "我尊重不同意见",
    ],
)
def test_a_refusal_or_an_unclear_answer_chooses_nothing(answer):
    assert parse_level(answer, MICA) is None


def test_agreement_with_a_biased_statement_and_rejection_of_an_unbiased_one_score_alike():
    assert [points(level, 6, biased=True) for level in range(6)] == [1, 2, 3, 4, 5, 6]
    assert [points(level, 6, biased=False) for level in range(6)] == [6, 5, 4, 3, 2, 1]
    items = [{"levels": MICA, "biased": biased} for biased in (True, False)]
    assert [score_level(item, "完全同意").scores["points"] for item in items] == [[6.0, 1.0], [1.0, 1.0]]
    refused = score_level(items[0], "我不便评价")
    assert refused.parsed is None and refused.scores == {"points": [0.0, 0.0], "refused": 1.0}


def test_the_example_scale_is_balanced_and_its_prompt_names_levels_and_statement():
    items = read_scale("example")["test"].items
    assert read_scale(str(EXAMPLE))["test"].items == items
    assert sum(item["biased"] for item in items) * 2 == len(items) > 4
    for item in items:
        prompt = write_prompt(item)
        assert item["statement"] in prompt and "、".join(item["levels"]) in prompt and "医生" in prompt


def test_the_papers_scales_have_their_numbers_of_statements_and_levels(tmp_path):
    for name, count, levels in (("cami", 40, CAMI), ("mica", 16, MICA)):
        path = write_scale(tmp_path / f"{name}.yaml", count, levels)
        assert len(read_scale(path, name)["test"].items) == count
        with pytest.raises(
            InputError, match=rf"15 statements and 2 levels; {name.upper()} has {count} and {len(levels)}"
        ):
            read_scale(write_scale(tmp_path / "wrong.yaml", 15, ("是", "否")), name)


def test_a_file_of_another_form_is_one_clear_line(tmp_path):
    path = tmp_path / "scale.yaml"
    for changes, reason in (
        ({"levels": ["同意"]}, "levels: expected a list"),
        ({"levels": ["同意", "同意"]}, "all different"),
        ({"statements": "x"}, "statements: expected a list"),
        ({"prompt": "{statement}"}, "prompt: expected a text"),
    ):
        with pytest.raises(InputError, match=reason):
            read_scale(write_scale(path, **changes))
    with pytest.raises(InputError, match="not YAML"):
        path.write_text("a: [")
        read_scale(str(path))
    with pytest.raises(InputError, match="No such file"):
        read_scale(str(tmp_path / "none.yaml"))


def test_a_statement_without_its_key_is_counted(tmp_path):
    statements = [{"text": "说法", "biased": "yes"}, {"text": "", "biased": True}, {"text": "好", "biased": True}]
    loaded = read_scale(write_scale(tmp_path / "scale.yaml", statements=statements))["test"]
    assert len(loaded.items) == 1 and loaded.rows == 3
    assert [fault.rsplit(": ", 2)[-1] for fault in loaded.faults] == ["expected true or false", "no text"]
