"""The report over results: tables, plots, and text that cannot break the page."""

from support.browser import needs_browser, open_page

from megatron_chimed.evaluation.reports.report import load_results, report_blocks, write_report
from megatron_chimed.evaluation.reports.summary import summarize
from megatron_chimed.jsonl import write_json


def write_results(folder, name: str, shift: float = 0.0):
    """results.json of a model on two tasks, and the folder."""
    letters = [
        {"group": "ab"[n % 2], "scores": {"acc": float(n % 3 == 0), "unparsed": float(n == 4)}} for n in range(12)
    ]
    levels = [{"group": "", "scores": {"points": [3 + shift, 1], "refused": 0.0}} for _ in range(9)]
    levels.append({"group": "", "scores": {"points": [0, 0], "refused": 1.0}})
    common = {"path": "x", "rows": 12, "malformed": 0, "first_faults": [], "limited": False}
    tasks = {
        "ceval_letter": {"title": "C-Eval", "source": "ceval", "kind": "letter", **common, "runs": 2}
        | summarize("ceval_letter", [letters, letters[::-1]]),
        "scale": {"title": "Scale", "source": "scale", "kind": "scale", **common, "runs": 1}
        | summarize("scale", [levels]),
    }
    settings = {"runs": 2, "temperature": 0.0}
    write_json(folder / "results.json", {"model": {"name": name}, "settings": settings, "versions": {}, "tasks": tasks})
    return folder


def test_any_number_of_models_stand_side_by_side(tmp_path):
    folders = [write_results(tmp_path / f"m{n}", f"model {n}", shift=n / 10) for n in range(5)]
    blocks = list(report_blocks(load_results(folders)))
    table = next(block.content for block in blocks if block.kind == "table" and block.content[0][0] == "metric")
    assert table[0] == ["metric", *(f"model {n}" for n in range(5)), "ChiMed-GPT (paper)", "Ziya-v2 (paper)"]
    assert table[1][0] == "acc" and table[1][1].startswith("33.33 ± 0.00 [") and table[1][-2:] == ["68.29", "39.02"]
    scale = next(b.content for b in blocks if b.kind == "table" and b.content[1][0] == "points")
    assert [cell.split(" ")[0] for cell in scale[1][1:]] == ["3.00", "3.10", "3.20", "3.30", "3.40"]
    plots = {block.content[0]: block.content[1] for block in blocks if block.kind == "plot"}
    assert set(plots) == {"scores", "bias"} and all(f"model {n}" in plots["bias"] for n in range(5))


def test_counts_stand_beside_the_figures(tmp_path):
    write_report([write_results(tmp_path / "a", "one")], tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "n = 12; 2 runs; 2 of 24 answers not understood; 0 prompts cut" in text
    assert "1 of 10 answers without a level (refused or unclear)" in text


def test_one_model_on_a_task_that_the_other_lacks_leaves_a_gap(tmp_path):
    from megatron_chimed.jsonl import read_json

    folders = [write_results(tmp_path / name, name) for name in ("a", "b")]
    content = read_json(folders[1] / "results.json")
    del content["tasks"]["scale"]
    write_json(folders[1] / "results.json", content)
    write_report(folders, tmp_path)
    assert "| points | 3.00 ± 0.00 [3.00, 3.00] |" in (tmp_path / "report.md").read_text(encoding="utf-8")


@needs_browser
def test_the_report_opens_in_a_browser(tmp_path):
    write_report([write_results(tmp_path / "a", "one"), write_results(tmp_path / "b", "two")], tmp_path)
    with open_page(tmp_path) as page:
        page.open(tmp_path / "report.html")
        assert page.script("return document.querySelectorAll('table').length") > 2
        for name in ("scores", "bias"):
            box = page.script(f"return document.querySelector('#{name} svg').getBoundingClientRect().height")
            assert box > 100
        assert "one" in page.script("return document.querySelector('#bias').textContent")
        assert not page.problems()
