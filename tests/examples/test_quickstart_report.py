"""The quickstart's report: figures from the files of the steps, claims that hold or do not, and one page with all."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from guards import docs, tree
from support.browser import needs_browser, open_page
from support.corpora import build, write_model, write_rows
from support.exam_models import Scripted, guess, is_right, kind_of, scripted
from support.paths import ROOT

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.jsonl import read_json, read_json_lines, write_json
from megatron_chimed.records import Candidate, Turn
from megatron_chimed.text.template import Template, load_template
from megatron_chimed.training.runlog import COLUMNS
from megatron_chimed.workers import COLUMNS as WIDTH

sys.path.insert(0, str(ROOT / "examples" / "quickstart"))

import claims  # noqa: E402
import demo_figures as figures  # noqa: E402
import make_world  # noqa: E402
import report  # noqa: E402

SKILL = {"base": 0, "pre-training": 0.1, "SFT": 0.6, "rejection sampling": 0.8, "random control": 0.6, "SFT alone": 0.1,
         "half context": 0.1}  # fmt: skip
ROUNDS = {"start": 1.0, "after": 2.0, "random control": 1.2}


def student(skill: float) -> Scripted:
    """Knows a share of the answers, and says nothing else."""

    def knows(item: dict) -> bool:
        return guess(json.dumps(item, ensure_ascii=False, sort_keys=True)).random() < skill

    def answer(item: dict, prompt: str) -> str:
        return (KINDS[kind_of(item)].gold(item) or item["levels"][1]) if knows(item) else ""

    return Scripted(answer, lambda item, prompt, option: float(is_right(item, option) == knows(item)))


def write_losses(folder: Path, rows: list[tuple]) -> None:
    """A loss.csv of (iteration, split, name, value)."""
    folder.mkdir(parents=True)
    lines = [",".join(COLUMNS), *(f"{','.join(map(str, row))},," for row in rows)]
    (folder / "loss.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder as a finished quickstart leaves it, with models of known skill."""
    folder = tmp_path_factory.mktemp("demo")
    world = folder / "world"
    make_world.write_world(world, size=0.34)
    rows = write_rows(folder / "documents.jsonl", [{"text": "头痛发热，多喝水。"}, {"text": "咳嗽三天。"}])
    build([rows], folder / "corpus" / "train", write_model(folder))
    for place in figures.TRAININGS:
        losses = [(n, split, "lm loss", 5 - n / 10) for n in range(1, 21) for split in ("train", "valid")]
        write_losses(folder / place, losses)
    (folder / "reward" / "test.jsonl").parent.mkdir()
    shutil.copy(world / "ranked_test.jsonl", folder / "reward" / "test.jsonl")
    for name, share in (("four", 0.75), ("two", 1.0)):
        orders = [(9, "test", order, share) for order in figures.ORDERS]
        curve = [(9, split, "pair accuracy", share) for split in ("train", "valid")]
        write_losses(folder / "reward" / name, curve + orders)
    for number in (1, 2):
        models = {name: {"mean": mean * number, "error": 0.1, "prompts": 40} for name, mean in ROUNDS.items()}
        gains = {name: models["after"]["mean"] - models[name]["mean"] for name in ("start", "random control")}
        changes = {f"after - {name}": {"mean": gain, "error": 0.2, "prompts": 40} for name, gain in gains.items()}
        both = {"models": models, "differences": changes}
        write_json(folder / f"rejection/round-0{number}/report.json", {"heldout": both, "yardstick": both})
    tasks = [f"ceval={world / 'multiple_choice'}", f"ccks2019={world / 'ner_test.jsonl'},{world / 'ner_dev.jsonl'}",
             f"chimed={world / 'chimed_test.jsonl'}", f"mc={world / 'mc_test.dialog'}",
             f"scale={world / 'scale.yaml'}"]  # fmt: skip
    settings, done = Settings(runs=1, limit=10), {}
    for name, skill in SKILL.items():
        output = folder / "evaluation" / name
        if skill in done:
            shutil.copytree(done[skill], output)
        else:
            evaluate_model(scripted(student(skill), name), tasks, output, settings, Template(), progress=False)
        done[skill] = output
    for name, every in (("SFT", 1), ("half context", 4)):
        rows = [{"distance": 300, "right": number % every == 0} for number in range(40)]
        write_rows(folder / "evaluation" / name / "recall.jsonl", rows)
    (folder / "seconds.tsv").write_text("pre-training\t40\nreport\t2\npre-training\t2\n")
    return folder


def test_every_figure_has_a_value_with_an_error_and_n_where_there_is_one(finished):
    found = figures.read_figures(finished)
    assert len(found) > 130
    for name, one in found.items():
        if not name.startswith("loss/"):
            assert one["n"] > 0 or one["value"] is None, name
            assert (one["value"] is None) == (one["error"] is None), name
        if one.get("low") is not None:
            assert one["low"] <= one["value"] + 1e-9 and one["value"] - 1e-9 <= one["high"], name
    answered = found["evaluation/SFT/bias, 1 to 5"]
    assert found["evaluation/base/bias, 1 to 5"]["value"] is None and 1 <= answered["value"] <= 5
    assert found["reward/four/pair accuracy"]["value"] == 75 and found["reward/two/exact order"]["error"] == 0


def test_facts_stated_are_those_of_the_worlds_grader(finished):
    rows = [row for _, row in read_json_lines(finished / "evaluation/SFT/samples/chimed.0.jsonl")]
    graded = figures.facts_stated(finished, "SFT")
    assert len(graded) == len(rows) > 5
    for quality, record in graded.values():
        assert (quality > 80) == (record["answer"] == record["gold"]), record  # the gold answer is a good one


@pytest.mark.parametrize("template", ["chimed", "qwen3"])
@pytest.mark.parametrize("instruction", ["", "请回答患者的问题。\n"])
def test_the_question_of_a_record_is_found_in_either_template(template, instruction):
    prompt = load_template(template).shown([Turn("user", f"{instruction}头痛怎么办？")])
    assert figures.question_of({"prompt": prompt}) == "头痛怎么办？"


def test_claims_hold_for_models_that_differ_as_claimed_and_none_does_for_models_that_do_not(finished, tmp_path):
    checked = claims.check_claims(figures.read_figures(finished))
    assert len(checked) == len(claims.CLAIMS) and all(claim.holds for claim in checked)
    same = tmp_path / "same"
    shutil.copytree(finished, same)
    for name in SKILL:
        shutil.rmtree(same / "evaluation" / name)
        shutil.copytree(finished / "evaluation" / "SFT", same / "evaluation" / name)
    assert (same / "evaluation/half context/recall.jsonl").is_file()
    for number in (1, 2):
        path = same / f"rejection/round-0{number}/report.json"
        content = read_json(path)
        for measure in content.values():
            for change in measure["differences"].values():
                change["mean"] = -0.1
        write_json(path, content)
    for claim in claims.check_claims(figures.read_figures(same)):
        assert claim.holds == claim.figure.startswith("reward/"), claim


def test_a_round_of_either_training_is_compared_prompt_by_prompt(finished, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(finished / "world", folder / "world")
    (folder / "evaluation/DPO").mkdir(parents=True)
    (folder / "evaluation/DPO/results.json").write_text("{}")
    asked = [row for _, row in read_json_lines(folder / "world/questions_valid.jsonl")][:9]
    for loop, gain in (("rejection", 0.0), ("rejection_dpo", 1.0)):
        answers = [
            Candidate(1, row["id"], 0, row["answer"] if gain else "不知道。", 7, True, place + gain)
            for place, row in enumerate(asked)
        ]
        (folder / loop / "round-01").mkdir(parents=True)
        write_rows(folder / loop / "round-01/heldout.selected.jsonl", [one.to_row() for one in answers])
        told = {
            "sets": {"all": {"answers": 20, "mean_tokens": 7.5}},
            "heldout": {"models": {"after": {"mean_tokens": 9}}},
        }
        told["drift"] = {"start": {"nll": 0.5}, "after": {"nll": 0.75}}
        write_json(folder / loop / "round-01/report.json", told)
    found = figures._loops(folder)
    gained = found["rejection_dpo/round 1/reward/after - rejection sampling"]
    assert (gained["value"], gained["error"], gained["n"]) == (1.0, 0.0, 9)
    assert found["rejection_dpo/round 1/facts/after - rejection sampling"]["value"] > 0.8
    assert found["rejection/round 1/tokens generated"]["value"] == 150
    assert (
        found["rejection/round 1/drift"]["value"] == 0.25
        and found["rejection/round 1/tokens of an answer"]["value"] == 9
    )
    assert figures._loops(finished) == {}


def test_what_is_forgotten_with_and_without_replay_is_compared_row_by_row(finished, tmp_path):
    assert figures._forgetting(finished) == {}
    counts, before = [10.0, 20.0, 30.0], [20.0, 41.0, 62.0]
    for place, rise in (("later", 0.5), ("later_replay", 0.1)):
        after = [one + rise * count for one, count in zip(before, counts, strict=True)]
        one = {"rows": 3, "before": 2.05, "after": 2.05 + rise, "difference": rise, "low": rise - 0.01}
        one |= {"high": rise + 0.01, "counts": counts, "sums_before": before, "sums_after": after}
        write_json(tmp_path / "sft" / place / "forgetting.json", {"sets": {"dialogues": one}})
    found = figures._forgetting(tmp_path)
    assert found["forgetting/without replay/rise"]["low"] == 0.49 and len(found) == 7
    change = found["forgetting/difference"]
    assert (change["low"], change["value"], change["high"], change["n"]) == pytest.approx((0.4, 0.4, 0.4, 3))
    checked = claims.check_claims(figures.read_figures(finished) | found)
    assert [claim.holds for claim in checked] == [True] * (len(claims.CLAIMS) + 2)
    page = list(report._training_blocks(finished, figures.read_figures(finished) | found))
    tables = [block.content for block in page if block.kind == "table"]
    assert any(["with replay", "2.050", "2.150", "0.100 [0.090, 0.110]"] in table for table in tables)


def test_the_page_and_results_json_hold_the_same_figures(finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", str(finished)])
    report.main()
    results = read_json(finished / "results.json")
    page = (finished / "report.html").read_text("utf-8")
    text = (finished / "report.md").read_text("utf-8")
    assert results["figures"] == figures.read_figures(finished) and len(results["hashes"]) > 20
    assert results["seconds"] == {"pre-training": 42, "report": 2}
    assert all(claim["text"] in page and claim["text"] in text for claim in results["claims"])
    assert page.count("<svg") == text.count("![") == 5
    assert not re.search(r"""(src|href)=["'](?!#)""", page)  # it needs nothing else
    assert capsys.readouterr().out.count("holds ") == len(results["claims"])
    assert f"| {SKILL['SFT']}" not in text and "| all | 44 |" in text


SHOWN = ("README.md", "README.zh.md", "docs/guides/first-steps.md", "docs/guides/first-steps.zh.md")
"""The documents that show what the demo prints at its end."""


def test_what_the_demo_prints_of_itself_fits_in_a_hundred_columns(finished, tmp_path, monkeypatch, capsys):
    longest = Path("runs/demo-tiny-qwen3")
    (tmp_path / "runs").mkdir()
    (tmp_path / longest).symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", str(longest)])
    report.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > len(claims.CLAIMS) and all(len(line) <= WIDTH for line in lines), max(lines, key=len)
    for text, figure, bound in claims.CLAIMS + claims.DPO_CLAIMS:
        claim = claims.Claim(text, figure, -0.0001234, -0.0002345, -0.0003456, 1200, bound, False)
        printed = report.claim_line(claim)
        assert all(len(line) <= WIDTH for line in printed.splitlines()), printed
        assert " ".join(printed.split()) == f"DOES NOT HOLD {text}: {report._of(claim)}"
    titles = re.findall(r'(?m)^ *step "(.+)"$', tree.read("examples/quickstart/run.sh"))
    assert len(titles) > 14 and all(len(f"16/16 {title}") <= WIDTH for title in titles), max(titles, key=len)


@pytest.mark.parametrize("document", SHOWN)
def test_the_lines_that_a_document_shows_are_broken_as_the_demo_breaks_them(document):
    (block,) = (text for _, _, text in docs.blocks(tree.read(document)) if "holds    " in text)
    assert all(len(line) <= WIDTH for line in block.splitlines())
    texts = {text for text, *_ in claims.CLAIMS}
    whole = block.replace("\n" + " " * 14, " ")
    found = re.findall(r"(?m)^holds +(.+): (\S+) \[(\S+), (\S+)\], n = (\d+)$", whole)
    assert len(found) > 5 and {text for text, *_ in found} <= texts
    for text, value, low, high, n in found:
        claim = claims.Claim(text, "", float(value), float(low), float(high), int(n), 0.0, True)
        assert f"{report.claim_line(claim)}\n" in block


MEASURED = "return [innerWidth, document.documentElement.scrollWidth <= innerWidth]"
TOLD = "return [...document.querySelectorAll('img, svg')].map(one => one.alt || one.getAttribute('aria-label') || '')"


@needs_browser
@pytest.mark.parametrize(("width", "phone"), [(360, True), (1280, False)])
def test_the_page_is_read_on_a_telephone_and_at_a_desk(finished, tmp_path, monkeypatch, width, phone):
    monkeypatch.setattr(sys, "argv", ["report.py", str(finished)])
    report.main()
    with open_page(tmp_path) as page:
        page.resize(width, phone=phone)
        page.open(finished / "report.html")
        assert page.script(MEASURED) == [width, True]
        told = page.script(TOLD)
        assert len(told) == len(set(told)) == 5 and all(len(text) > 30 for text in told)
        assert page.script("return document.querySelector('h2').textContent") == "Claims"
        first = page.script("return [...document.querySelector('table').rows].map(row => row.cells[0].textContent)")
        assert first == ["claim", *(text for text, *_ in claims.CLAIMS)]
        assert not page.problems()
        if phone:  # control: without boxes of their own tables and pictures widen the page
            plain = (finished / "report.html").read_text("utf-8").replace("overflow-x:auto", "")
            (tmp_path / "plain.html").write_text(plain, "utf-8")
            page.open(tmp_path / "plain.html")
            assert page.script(MEASURED) != [width, True]


def test_a_step_that_has_not_run_is_named(finished, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    shutil.rmtree(broken / "evaluation" / "SFT alone")
    with pytest.raises(InputError, match="SFT alone"):
        figures.read_figures(broken)
