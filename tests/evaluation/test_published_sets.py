"""Whole evaluations on the sets of 2023 to 2026: models without weights, and the likelihoods of one that has them."""

import math

import numpy as np
import pytest
import torch
from support.exam_files import write_lines
from support.exam_hf import write_answering_hf
from support.exam_models import Scripted, empty, guess, oracle, scripted
from support.published_sets import (
    promptcblue_row,
    write_cmb,
    write_cmexam,
    write_medxpertqa,
    write_promptcblue,
    write_published,
)

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.backends.models import EngineOptions, EvaluatedModel, open_model
from megatron_chimed.evaluation.catalog import TASKS
from megatron_chimed.evaluation.harness import FOLDER
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.jsonl import read_json_lines
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.cpu  # lm-eval loads torch


def evaluate(backend, flags, output, settings=None, **more) -> dict:
    """Evaluate a scripted model; its tasks."""
    model = scripted(backend) if isinstance(backend, Scripted) else backend
    settings = settings or Settings(runs=1)
    return evaluate_model(model, flags, output, settings, Template(), progress=False, **more)["tasks"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def perfect(flags, tmp_path_factory):
    output = tmp_path_factory.mktemp("oracle")
    return evaluate(oracle(), flags, output, Settings(runs=2)), output


def test_an_oracle_scores_100_and_a_silent_model_0_in_every_metric_of_every_task(perfect, flags, tmp_path):
    silent = evaluate(empty(), flags, tmp_path)
    assert set(silent) == set(perfect[0])
    for name, task in perfect[0].items():
        means = {metric: figure["mean"] for metric, figure in task["metrics"].items()}
        assert means == pytest.approx(dict.fromkeys(means, 100.0), abs=1e-9), name
        assert not any(task["problems"].values()) and not task["limited"] and not task["malformed"], name
        assert {figure["mean"] for figure in silent[name]["metrics"].values()} == {0.0}, name
        assert KINDS[task["kind"]].likelihood or list(silent[name]["problems"].values()) == [task["n"]], name


def test_an_exam_with_several_right_letters_is_taken_whole_by_letters_and_in_part_by_likelihood(perfect):
    tasks, output = perfect
    for exam in ("cmb", "cmexam"):
        assert (tasks[exam]["n"], tasks[f"{exam}_cloze"]["n"], tasks[f"{exam}_letters"]["n"]) == (5, 5, 8)
        assert len({tasks[name]["items_sha256"] for name in (exam, f"{exam}_letters")}) == 2
        rows = [row for _, row in read_json_lines(output / f"samples/{exam}_letters.0.jsonl")]
        assert {row["gold"] for row in rows} == {"A", "B", "C", "D", "AC", "ABD", "BCD"}
        assert all(len(row["prompt"].split("\n\n")) == 7 for row in rows)  # description, five examples, the question
        assert any("答案： BCD" in row["prompt"] for row in rows)
    assert len(tasks["cmb_letters"]["groups"]) == 2 and len(tasks["medxpertqa"]["groups"]) == 2
    prompt = next(read_json_lines(output / "samples/medxpertqa_letter.0.jsonl"))[1]["prompt"]
    assert "答案" not in prompt and prompt.count("Answer: ") == 5


def test_guessing_a_set_of_letters_is_at_chance_within_its_interval(tmp_path):
    sets = ["".join(letter for place, letter in enumerate("ABCD") if n >> place & 1) for n in range(1, 16)]

    def answer(item: dict, prompt: str) -> str:
        return guess(prompt).choice(sets)

    write_cmb(tmp_path / "cmb", count=600)
    task = evaluate(Scripted(answer), [f"cmb={tmp_path / 'cmb'}"], tmp_path / "out", Settings(runs=2))["cmb_letters"]
    for name in ("acc", "acc_one", "acc_several"):
        figure = task["metrics"][name]
        assert figure["low"] - 1e-9 <= 100 / 15 <= figure["high"] + 1e-9, (name, figure)
    deviation = 100 * math.sqrt(1 / 15 * 14 / 15 / (2 * task["n"]))
    assert 2 < (task["metrics"]["acc"]["high"] - task["metrics"]["acc"]["low"]) / deviation < 6


def test_lm_eval_itself_runs_the_tasks_and_agrees(flags):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False, metadata=dict(flag.split("=", 1) for flag in flags)
    )
    names = ["chimed_cmb", "chimed_cmb_letters", "chimed_cmexam_letters", "chimed_medxpertqa_letter", "chimed_cmbclin"]
    names += ["chimed_promptcblue_chip_ctc", "chimed_promptcblue_cmeee", "chimed_promptcblue_imcs_mrg"]
    found = simple_evaluate(oracle(), tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    assert found["chimed_cmb"]["acc,none"] == found["chimed_medxpertqa_letter"]["acc,none"] == 1
    for name in ("acc", "acc_one", "acc_several"):
        assert found["chimed_cmb_letters"][f"{name},none"] == found["chimed_cmexam_letters"][f"{name},none"] == 1
    assert found["chimed_cmbclin"]["rougeL_chars,none"] == pytest.approx(1)
    assert found["chimed_promptcblue_chip_ctc"]["f1_macro,none"] == found["chimed_promptcblue_cmeee"]["f1,none"] == 1
    assert found["chimed_promptcblue_imcs_mrg"]["rougeL_chars,none"] == pytest.approx(1)


def test_promptcblue_is_sixteen_tasks_each_with_its_own_metric_and_one_that_is_not_there_is_none(perfect, tmp_path):
    sixteen = {name: task for name, task in perfect[0].items() if name.startswith("promptcblue")}
    assert len(sixteen) == 16 and all(task["n"] == 6 for task in sixteen.values())
    main = {name: TASKS[name].main_metric for name in sixteen}
    assert main["promptcblue_chip_ctc"] == "f1_macro" and main["promptcblue_kuake_ir"] == "f1_weighted"
    assert main["promptcblue_cmeie"] == "f1" and main["promptcblue_meddg"] == "rougeL_chars"
    row = next(read_json_lines(perfect[1] / "samples/promptcblue_chip_cdn.0.jsonl"))[1]
    assert row["prompt"].count("答：\n孕") == 5 and row["parsed"] == [["孕0周"], ["贫血"]]
    fewer = evaluate(oracle(), [f"promptcblue={write_promptcblue(tmp_path, without='KUAKE-IR')}"], tmp_path / "out")
    assert set(fewer) == set(sixteen) - {"promptcblue_kuake_ir"}


def test_a_question_of_the_training_data_is_found_in_every_task_of_its_set(flags, tmp_path):
    write_cmexam(tmp_path / "cmexam")
    training = write_lines(tmp_path / "train.jsonl", [{"text": "第1题，下列正确的是"}])  # a short question, whole
    found = evaluate(oracle(), [f"cmexam={tmp_path / 'cmexam'}"], tmp_path / "out", training_data=[str(training)])
    assert {name: task["contamination"]["items"] for name, task in found.items()} == {
        "cmexam": 1,
        "cmexam_cloze": 1,
        "cmexam_letters": 1,
    }


def test_too_few_examples_are_said_before_a_model_is_loaded(tmp_path):
    def make():
        raise AssertionError("loaded")

    row = promptcblue_row("CHIP-CTC", 0)
    test, few = write_lines(tmp_path / "dev.json", [row]), write_lines(tmp_path / "train.json", [row] * 4)
    model = EvaluatedModel("m", {}, make)
    with pytest.raises(InputError, match=r"promptcblue_chip_ctc \(CHIP-CTC\) has 4 examples .*; expected 5 or more"):
        evaluate(model, [f"promptcblue={test},{few}"], tmp_path / "out")


def test_likelihoods_are_those_of_a_plain_computation_with_transformers(tmp_path):
    folder = write_answering_hf(tmp_path / "hf", positions=2048)
    paths = [f"cmb={write_cmb(tmp_path / 'cmb', 4)}", f"medxpertqa={write_medxpertqa(tmp_path / 'xpert', 2)}"]
    model = open_model(f"hf:{folder}", EngineOptions(dtype="float32"), Template())
    evaluate(model, paths, tmp_path / "out", Settings(runs=1, max_new_tokens=4))
    from transformers import AutoModelForCausalLM

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(folder)
    checked = 0
    for name in ("cmb", "medxpertqa"):
        for _, row in read_json_lines(tmp_path / f"out/samples/{name}.0.jsonl"):
            before = tokenizer.encode(row["prompt"])
            for letter, likelihood in row["answer"].items():
                whole = tokenizer.encode(f"{row['prompt']} {letter}")
                assert whole[: len(before)] == before and "cut" not in row
                with torch.no_grad():
                    logits = plain(torch.tensor([[tokenizer.bos_id, *whole]])).logits[0].double()
                scores = torch.log_softmax(logits, -1)
                by_hand = sum(float(scores[place, whole[place]]) for place in range(len(before), len(whole)))
                assert likelihood == pytest.approx(by_hand, abs=1e-6 * max(1.0, abs(by_hand)))
                checked += 1
    assert checked == 3 * 4 + 2 * 10 and np.isfinite(by_hand)
