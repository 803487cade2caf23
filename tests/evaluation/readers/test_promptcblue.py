"""PromptCBLUE's rows: sixteen kinds of them in one file, damaged ones with their places, formulas of its templates."""

import pytest
from support.exam_files import write_lines
from support.published_sets import CLASSES, EXTRACTED, promptcblue_row, write_promptcblue

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.contamination import FORMULA, contaminated
from megatron_chimed.evaluation.readers.promptcblue import DATASETS, read_promptcblue


def test_all_sixteen_are_told_apart_and_a_part_holds_one(tmp_path):
    paths = write_promptcblue(tmp_path, without="MedDG")
    assert len(DATASETS) == 16 == len(CLASSES) + len(EXTRACTED) + 2
    whole = read_promptcblue(paths)
    assert len(whole["test"].items) == 15 * 6 and not whole["test"].faults
    for name in DATASETS:
        part = read_promptcblue(paths, name)
        wanted = [item for item in whole["test"].items if item["dataset"] == name]
        assert part["test"].items == wanted and len(wanted) == (0 if name == "MedDG" else 6)
    labels = read_promptcblue(paths, "CHIP-CTC")["test"].items[0]["labels"]
    assert labels == sorted([*CLASSES["CHIP-CTC"], "非上述类型"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_dataset": "CMedQA"}, "task_dataset 'CMedQA'; expected one of CMeEE-V2"),
        ({"input": ""}, "no input"),
        ({"target": ""}, "no target (a test split without answers?)"),
        ({"answer_choices": None}, "answer_choices None; expected a list of texts"),
        ({"answer_choices": [1]}, "answer_choices [1]; expected a list of texts"),
    ],
)
def test_a_damaged_row_is_a_fault_with_its_place(tmp_path, change, reason):
    row = promptcblue_row("KUAKE-IR", 1)
    path = write_lines(tmp_path / "dev.json", [row, row | change, "{broken", row])
    loaded = read_promptcblue(f"{path},{path}")["test"]
    assert (loaded.rows, len(loaded.items), len(loaded.faults)) == (4, 2, 2)
    assert loaded.faults[0].startswith(f"{path}:2: {reason}") and loaded.faults[1].startswith(f"{path}:3: invalid JSON")
    with pytest.raises(InputError, match="TEST,EXAMPLES"):
        read_promptcblue(str(path))


def test_what_the_templates_say_is_no_contamination_and_what_a_row_says_is(tmp_path):
    own = "患者三天前开始反复发热咳嗽咽痛乏力"
    rows = [promptcblue_row("KUAKE-IR", number) for number in range(FORMULA + 2)]
    rows[2]["input"] = rows[2]["input"].replace("第2段", own)
    path = write_lines(tmp_path / "dev.json", rows)
    items = read_promptcblue(f"{path},{path}")["test"].items
    other = promptcblue_row("KUAKE-IR", 999)["input"]  # another row of the same template
    training = write_lines(tmp_path / "train.jsonl", [{"text": other}, {"text": f"问：{own}怎么办"}])
    assert contaminated(items, [str(training)], progress=False) == [number == 2 for number in range(FORMULA + 2)]
    few = [item for item in items if item is not items[2]][:FORMULA]  # too few to be sure that it is a formula
    assert all(contaminated(few, [str(training)], progress=False))
