"""Whole evaluations with models that need no weights: oracle, chance, silence, resuming, counting, the report."""

import json
import math
import re
from pathlib import Path

import pytest
from support.exam_files import page, question, write_ceval, write_cmmlu, write_csv, write_lines
from support.exam_models import Scripted, empty, guess, guesser, oracle, scripted, write_all

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.harness import FOLDER
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.readers.exams import CMMLU_SUBJECTS
from megatron_chimed.evaluation.reports.report import write_report
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.jsonl import read_json_lines
from megatron_chimed.text.template import Template

pytestmark = pytest.mark.cpu  # lm-eval loads torch


def evaluate(backend, flags, output, settings=None, **more) -> dict:
    """Evaluate a scripted model."""
    model = backend if not isinstance(backend, Scripted) else scripted(backend)
    return evaluate_model(model, flags, output, settings or Settings(runs=1), Template(), progress=False, **more)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def perfect(flags, tmp_path_factory):
    output = tmp_path_factory.mktemp("oracle")
    return evaluate(oracle(), flags, output, Settings(runs=2)), output


def scores(results: dict) -> dict[str, dict[str, float]]:
    return {task: {m: f["mean"] for m, f in one["metrics"].items()} for task, one in results["tasks"].items()}


def test_an_oracle_scores_100_in_every_metric_of_every_task(perfect):
    results, _ = perfect
    assert len(results["tasks"]) == 14
    for task, metrics in scores(results).items():
        if task != "scale":
            assert metrics == pytest.approx(dict.fromkeys(metrics, 100.0), abs=1e-9), task
        assert not any(results["tasks"][task]["problems"].values()), task
    # Full agreement with four biased and four unbiased statements: 5 and 1 points.
    assert scores(results)["scale"]["points"] == 3.0
    assert len({task["items_sha256"] for task in results["tasks"].values()}) == 8 and results["versions"]["nltk"]
    assert results["tasks"]["cmmlu"]["n"] == 28 and len(results["tasks"]["cmmlu"]["groups"]) == 7
    assert results["tasks"]["ccks2019"]["groups"]["症状"]["metrics"]["f1_strict"]["mean"] == 100


def test_a_silent_model_scores_0_and_every_answer_is_counted(flags, tmp_path):
    results = evaluate(empty(), flags, tmp_path)
    for task, metrics in scores(results).items():
        one = results["tasks"][task]
        assert metrics == dict.fromkeys(metrics, None if task == "scale" else 0.0), task
        assert KINDS[one["kind"]].likelihood or list(one["problems"].values()) == [one["n"]], task
    assert results["tasks"]["scale"]["metrics"]["points"]["answered"] == 0
    write_report([tmp_path], tmp_path)  # a model that refuses all statements is not the least biased
    assert "| points | no level chosen |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def holds(figure: dict, value: float) -> bool:
    """Whether a value lies in a figure's interval."""
    return figure["low"] - 1e-9 <= value <= figure["high"] + 1e-9


def test_guessing_is_at_chance_within_its_interval(tmp_path):
    write_ceval(tmp_path / "ceval", count=60)
    write_cmmlu(tmp_path / "cmmlu", list(CMMLU_SUBJECTS), count=60)
    flags = [f"{exam}={tmp_path / exam}" for exam in ("ceval", "cmmlu")]
    results = evaluate(guesser(), [*flags, "scale=example"], tmp_path / "out", Settings(runs=2))["tasks"]
    exams = ("ceval", "ceval_letter", "cmmlu", "cmmlu_letter")
    subjects = [group["metrics"]["acc"] for exam in exams for group in results[exam]["groups"].values()]
    # An interval of 95% misses chance once in twenty times; more than 3 misses of 18 happen once in 600. Its bounds are
    # attainable accuracies, and belong to it.
    assert len(subjects) == 18 and sum(holds(one, 25) for one in subjects) >= 15
    for exam in exams:
        figure = results[exam]["metrics"]["acc"]
        deviation = 100 * math.sqrt(0.25 * 0.75 / (2 * results[exam]["n"]))
        assert abs(figure["mean"] - 25) < 4 * deviation and len(set(figure["runs"])) == 2
        assert 2 < (figure["high"] - figure["low"]) / deviation < 6
    points = results["scale"]["metrics"]["points"]
    assert holds(points, 3)


def test_examples_stand_between_description_and_instance_and_a_seed_draws_them(perfect):
    _, output = perfect
    for task, answer in (("ccks2019", "症状：头痛"), ("ceval_letter", "答案： "), ("ceval", "答案： ")):
        runs = [[row["prompt"] for _, row in read_json_lines(output / f"samples/{task}.{n}.jsonl")] for n in range(2)]
        for prompt, other in zip(*runs, strict=True):
            description, *examples, instance = prompt.split("\n\n")
            assert len(examples) == 5 and all(answer in example for example in examples)
            assert answer not in instance and answer not in description
            assert prompt != other and other.split("\n\n")[-1] == instance  # other examples, or another order
    chat, plain = (read_json_lines(output / f"samples/{task}.0.jsonl") for task in ("ceval_letter", "ceval"))
    for (_, one), (_, other) in zip(chat, plain, strict=True):
        assert one["prompt"] == f"[human]:{other['prompt']}\n[bot]:"


def test_a_dialogues_history_becomes_turns(perfect):
    _, output = perfect
    second = [row for _, row in read_json_lines(output / "samples/mc.0.jsonl")][1]
    assert second["prompt"] == "[human]:第0位，胃痛怎么办？\n[bot]: 痛多久了？\n[human]:三天了。\n[bot]:"
    assert not (output / "samples/mc.1.jsonl").exists()  # nothing is random in a second greedy zero-shot run


def test_thinking_in_front_of_an_answer_is_counted_and_not_scored(perfect, flags, tmp_path):
    said = oracle().answer

    def answer(item: dict, prompt: str) -> str:
        return "<think>\nA\n\nB" if item["id"].endswith("2") else f"<think>\nA\n\nB\n</think>\n\n{said(item, prompt)}"

    flags = [flag for flag in flags if flag.startswith(("mcmle", "mc", "scale"))]
    found, plain = evaluate(Scripted(answer), flags, tmp_path)["tasks"], perfect[0]["tasks"]
    for name in ("mcmle_letter", "mc", "scale"):
        records = [row for _, row in read_json_lines(tmp_path / f"samples/{name}.0.jsonl")]
        unended = [row for row in records if row["id"].endswith("2")]
        assert found[name]["thinking"] == len(records) == found[name]["n"] and 0 < len(unended) < len(records)
        assert all(row["thinking"] == "A\n\nB" and "A\n" not in row["answer"] for row in records)
        assert all(row["answer"] == "" for row in unended)  # what never came to an end is no answer
        length = {"mean": 4.0, "low": 4.0, "high": 4.0, "longest": 4, "unended": len(unended)}
        assert found[name]["thinking_length"] == length and all(row["unended"] for row in unended)
        assert list(found[name]["problems"].values()) == [len(unended)]
        assert "thinking" not in plain[name]
    write_report([tmp_path], tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "answers with thinking, which is not scored: 4 [4, 4] characters, 4 at most, 1 without an end" in text


def test_lengths_of_thinking_are_those_of_the_blocks_alone_with_an_interval(flags, tmp_path):
    lengths = {}

    def answer(item: dict, prompt: str) -> str:
        thought = "想" * (guess(prompt).randrange(10) * 3)
        lengths[item["id"]] = len(thought)
        return f"<think>{thought}</think>B" if thought else "B"

    task = evaluate(Scripted(answer), [flags[2]], tmp_path)["tasks"]["ceval_letter"]
    found, blocks = task["thinking_length"], [one for one in lengths.values() if one]
    assert task["thinking"] == len(blocks) < task["n"] and found["longest"] == max(blocks)
    assert found["mean"] == pytest.approx(sum(blocks) / len(blocks)) and found["low"] < found["mean"] < found["high"]


def test_a_budget_for_thinking_comes_on_top_of_each_tasks_tokens(flags, tmp_path):
    class Asked(Scripted):
        def generate_until(self, requests):
            limits.update(request.args[1]["max_gen_toks"] for request in requests)
            return super().generate_until(requests)

    for number, (more, expected) in enumerate(
        [({}, {32}), ({"think_tokens": 2000}, {2032}), ({"think_tokens": 50, "max_new_tokens": 7}, {57})]
    ):
        limits: set[int] = set()
        evaluate(Asked(lambda item, prompt: "B"), [flags[4]], tmp_path / str(number), Settings(runs=1, **more))
        assert limits == expected
    with pytest.raises(InputError, match="another model or setting"):
        evaluate(Asked(lambda item, prompt: "B"), [flags[4]], tmp_path / "0", Settings(runs=1, think_tokens=9))
    with pytest.raises(InputError, match="--think-tokens is -1"):
        Settings(think_tokens=-1)


def test_a_record_holds_prompt_answer_parsed_answer_gold_and_scores(perfect):
    _, output = perfect
    for path in (output / "samples").iterdir():
        for _, row in read_json_lines(path):
            assert set(row) == {"id", "group", "prompt", "answer", "parsed", "gold", "scores"}
    row = next(read_json_lines(output / "samples/ceval.0.jsonl"))[1]
    assert row["answer"] == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0} and row["parsed"] == row["gold"] == "A"


def test_a_killed_evaluation_asks_only_for_what_is_missing_and_ends_alike(flags, tmp_path):
    class Dies(Exception):
        pass

    def backend(limit: int) -> Scripted:
        made = guesser()
        one_by_one = made.answer

        def answer(item, prompt):
            if len(made.asked) > limit:
                raise Dies
            return one_by_one(item, prompt)

        made.answer = answer
        return made

    settings = Settings(runs=2, temperature=0.7)
    whole = evaluate(backend(10**9), flags, tmp_path / "whole", settings)
    first = backend(120)
    with pytest.raises(Dies):
        evaluate(first, flags, tmp_path / "killed", settings)
    log = tmp_path / "killed" / "answers.jsonl"
    kept = len(log.read_bytes().splitlines())
    assert 1 < kept < len((tmp_path / "whole" / "answers.jsonl").read_bytes().splitlines())
    with open(log, "ab") as file:
        file.write(b'{"key": "torn')
    second = backend(10**9)
    assert evaluate(second, flags, tmp_path / "killed", settings) == whole
    third = backend(10**9)
    assert evaluate(third, flags, tmp_path / "killed", settings) == whole and not third.asked
    rows = [json.loads(line) for line in log.read_bytes().splitlines()[1:]]
    assert len({row["key"] for row in rows}) == len(rows)


def test_answers_of_another_model_or_setting_are_not_taken_over(flags, tmp_path):
    evaluate(guesser(), flags[-1:], tmp_path)
    for change in ({"settings": Settings(runs=1, temperature=0.5)}, {"backend": scripted(guesser(), "other")}):
        with pytest.raises(InputError, match="another model or setting; name another --output"):
            evaluate(flags=flags[-1:], output=tmp_path, **{"backend": guesser(), **change})


def test_a_server_without_likelihoods_is_asked_for_letters_alone(flags, tmp_path):
    results = evaluate(scripted(oracle(), likelihood=False), flags[2:5], tmp_path)
    assert list(results["tasks"]) == ["ceval_letter", "cmmlu_letter", "mcmle_letter"]


def test_malformed_rows_cut_prompts_and_odd_answers_are_counted_and_shown(tmp_path):
    write_ceval(tmp_path / "ceval")
    bad = ["9", "", "a", "b", "c", "d", "A"]
    rows = [["0", *question(0)], bad, ["1", *question(1)]]
    write_csv(tmp_path / "ceval/val/basic_medicine_val.csv", ["id", "question", "A", "B", "C", "D", "answer"], rows)
    backend = Scripted(lambda item, prompt: "我不知道")
    backend.cut = type("Cut", (dict,), {"get": lambda self, key: [900, 512]})()
    results = evaluate(backend, [f"ceval={tmp_path / 'ceval'}"], tmp_path / "out")
    letter = results["tasks"]["ceval_letter"]
    assert (letter["n"], letter["rows"], letter["malformed"], letter["problems"]) == (10, 11, 1, {"unparsed": 10})
    assert letter["cut_prompts"] == 10 and results["tasks"]["ceval"]["cut_prompts"] == 10
    write_report([tmp_path / "out"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for part in (
        "n = 10",
        "10 of 10 answers not understood",
        "10 prompts cut",
        "1 rows are no items",
        "val.csv:3: no question",
    ):
        assert part in text, part


def test_contaminated_items_are_counted_and_figures_given_without_them(tmp_path):
    questions = [
        "胃痛已有三天了请问医生应该怎么办才好呢",
        "昨天开始发热咳嗽吃什么药能够好得快一些",
        "孩子身上起了许多红疹要不要去皮肤科看看",
    ]
    pages = [page(n) | {"title": "", "question_content": text} for n, text in enumerate(questions)]
    file = write_lines(tmp_path / "chimed.jsonl", pages)
    training = write_lines(tmp_path / "train.jsonl", [{"text": f"问：{questions[1]}？"}])
    backend = Scripted(lambda item, prompt: item["reference"] if questions[1] in prompt else "")
    results = evaluate(backend, [f"chimed={file}"], tmp_path / "out", training_data=[str(training)])
    task = results["tasks"]["chimed"]
    assert task["metrics"]["bleu1_chars"]["mean"] == pytest.approx(100 / 3)
    assert task["contamination"]["items"] == 1
    assert task["contamination"]["metrics_without"]["bleu1_chars"]["mean"] == 0
    assert list(results["training_data"]) == [str(training)]


def test_the_report_shows_all_models_beside_the_papers_figures(perfect, flags, tmp_path):
    _, output = perfect
    evaluate(scripted(guesser(), "guess|<b>"), flags, tmp_path / "guess")
    written = write_report([output, tmp_path / "guess"], tmp_path / "report")
    assert [path.name for path in written] == [
        "report.md",
        "report.html",
        "scores.png",
        "bias.png",
        "leaderboard.html",
        "comparison.json",
    ]
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| metric | scripted | guess\\|<b> | ChiMed-GPT (paper) | Ziya-v2 (paper) |" in text
    row = next(line for line in text.splitlines() if line.startswith("| bleu1_chars"))
    assert row.endswith("| 44.58 | 38.41 |") and "100.00 ± 0.00 [100.00, 100.00]" in row
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "guess|&lt;b&gt;" in page and "guess|<b>" not in page and page.count("<svg") == 2
    assert not re.search(r"(src|href)=[\"']https?:|<script|@import", page)  # nothing is fetched
    with pytest.raises(InputError, match="--name"):
        write_report([output, output], tmp_path / "report")


def test_every_task_file_is_whole_and_named_by_the_catalog():
    from lm_eval.tasks import TaskManager

    from megatron_chimed.evaluation.catalog import TASKS
    from megatron_chimed.evaluation.task_files import task_files

    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    assert set(manager.all_tasks) == {task.harness for task in TASKS.values()}
    for task in TASKS.values():
        text = (FOLDER / f"_{task.kind}.yaml").read_text(encoding="utf-8")
        assert set(re.findall(r"metric: (\w+)", text)) - {"parsed"} == set(KINDS[task.kind].metrics)
    written = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
    assert written == task_files(), "run: python -m megatron_chimed.evaluation.task_files"


def test_lm_eval_itself_runs_the_tasks_and_agrees(perfect, flags, tmp_path):
    """The way of the `lm_eval` command: its own evaluator, the paths in the metadata."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    metadata = dict(flag.split("=", 1) for flag in flags)
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    names = ["chimed_ceval", "chimed_cmmlu_letter", "chimed_ccks2019", "chimed_mc", "chimed_scale"]
    found = simple_evaluate(oracle(), tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    assert found["chimed_ceval"]["acc,none"] == found["chimed_cmmlu_letter"]["acc,none"] == 1
    assert found["chimed_ccks2019"]["f1_relaxed,none"] == 1 and found["chimed_scale"]["points,none"] == 3
    assert found["chimed_mc"]["rougeL_words,none"] == pytest.approx(1)


@pytest.mark.parametrize("exam", ["ceval", "cmmlu"])
def test_accuracy_by_likelihood_is_that_of_lm_evals_own_task(tmp_path, exam, flags):
    """The same files and model through the YAML that ships with lm-eval; its choice hangs on every character."""
    import lm_eval.tasks
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    from megatron_chimed.data.sources import read_rows

    subject, name, split = {
        "ceval": ("clinical_medicine", "ceval-valid_clinical_medicine", "val"),
        "cmmlu": ("virology", "cmmlu_virology", "test"),
    }[exam]
    folder = dict(flag.split("=", 1) for flag in flags)[exam]
    paths = {
        "ceval": {s: f"{folder}/{s}/{subject}_{s}.csv" for s in ("dev", "val")},
        "cmmlu": {s: f"{folder}/{s}/{subject}.csv" for s in ("dev", "test")},
    }[exam]
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / exam / f"{name}.yaml") | {"num_fewshot": 5}
    config["custom_dataset"] = lambda **_: {
        s: Dataset.from_list([row for _, row in read_rows(p)]) for s, p in paths.items()
    }
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(0)

    def likelihood(item, prompt, option):
        return guess(prompt, option).random()

    theirs = lm_eval.evaluate(Scripted(None, likelihood), {"tasks": {name: task}, "groups": {}}, bootstrap_iters=0)
    ours = evaluate(Scripted(lambda *_: "", likelihood), [f"{exam}={folder}"], tmp_path)
    mine = ours["tasks"][exam]["groups"][subject]
    assert mine["n"] == len(theirs["samples"][name]) and split in paths
    assert mine["metrics"]["acc"]["mean"] == pytest.approx(100 * theirs["results"][name]["acc,none"], abs=1e-9)
    rows = [row for _, row in read_json_lines(tmp_path / f"samples/{exam}.0.jsonl") if row["group"] == subject]
    assert [list(row["answer"].values()) for row in rows] == [
        [answers[0][0] for answers in sample["resps"]] for sample in theirs["samples"][name]
    ]
