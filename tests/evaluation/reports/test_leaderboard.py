"""The leaderboard: one file over any number of results, sorted in a real browser without a network."""

import json
import re

from support.browser import needs_browser, open_page

from megatron_chimed.evaluation.reports.leaderboard import leaderboard, write_leaderboard
from megatron_chimed.evaluation.reports.report import write_report
from megatron_chimed.jsonl import write_json


def figure(mean, low=None, high=None) -> dict:
    return {"mean": mean, "low": mean if low is None else low, "high": mean if high is None else high, "error": 0.0}


def result(name: str, acc=None, points=None, letters=None) -> dict:
    """What results.json of a model says, as far as the page reads it."""
    tasks = {}
    if acc is not None:
        tasks["ceval"] = {"n": 41, "metrics": {"acc": figure(acc, acc - 5, acc + 5)}}
    if letters is not None:
        metrics = {"acc": figure(letters), "acc_one": figure(letters), "acc_several": figure(None)}
        tasks["cmb_letters"] = {"n": 8, "metrics": metrics}
    tasks["scale"] = {"n": 8, "metrics": {"points": figure(points)}}
    return {"model": {"name": name}, "tasks": tasks}


RESULTS = [
    result("middle", 50.0, 2.0, 20.0),
    result("best & <b>last</b></script>", 70.5, 3.0),
    result("worst", 9.25, None, 30.0),
    result("no exam", None, 1.0),
]
"""A mean of None is that of a scale of which no statement was answered."""


def test_rows_are_models_and_the_papers_and_what_has_no_value_has_no_cell():
    page = leaderboard(RESULTS)
    assert [column["key"] for column in page["columns"]] == [
        "ceval/acc",
        "cmb_letters/acc",
        "cmb_letters/acc_one",
        "cmb_letters/acc_several",
        "scale/points",
    ]
    assert [column["main"] for column in page["columns"]] == [True, True, False, False, True]
    assert [column["higher_is_better"] for column in page["columns"]][-1] is False
    rows = {row["name"]: row["cells"] for row in page["rows"]}
    assert list(rows)[-2:] == ["ChiMed-GPT (paper)", "Ziya-v2 (paper)"]
    assert rows["ChiMed-GPT (paper)"] == {"ceval/acc": {"mean": 68.29}}
    assert rows["middle"]["ceval/acc"] == {"mean": 50.0, "low": 45.0, "high": 55.0, "n": 41}
    assert set(rows["worst"]) == {"ceval/acc", "cmb_letters/acc", "cmb_letters/acc_one"}


def test_the_page_is_one_file_that_fetches_nothing_and_no_name_can_end_its_script(tmp_path):
    text = write_leaderboard(RESULTS, tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=|https?:|@import|fetch\(|XMLHttpRequest", text)
    assert text.count("</script>") == 2 and "<b>last" not in text
    content = json.loads(re.search(r'id="content">(.*?)</script>', text, re.S)[1])
    assert content == leaderboard(RESULTS)
    write_leaderboard([], tmp_path / "none.html")


def names(page) -> list[str]:
    return page.script("return [...document.querySelectorAll('tbody tr td:first-child')].map(cell => cell.textContent)")


@needs_browser
def test_a_click_on_a_head_sorts_by_it_with_gaps_at_the_end_and_intervals_are_shown(tmp_path):
    path = write_leaderboard(RESULTS, tmp_path / "leaderboard.html")
    best = "best & <b>last</b></script>"
    paper = ["ChiMed-GPT (paper)", "Ziya-v2 (paper)"]
    with open_page(tmp_path) as page:
        page.open(path)
        assert sorted(names(page)) == sorted([*(one["model"]["name"] for one in RESULTS), *paper])
        page.click("th[data-key='ceval/acc'] button")
        assert names(page) == [best, paper[0], "middle", paper[1], "worst", "no exam"]
        assert page.script("return document.querySelector('th[data-key=\"ceval/acc\"]').ariaSort") == "descending"
        page.click("th[data-key='ceval/acc'] button")
        assert names(page) == ["worst", paper[1], "middle", paper[0], best, "no exam"]
        page.click("th[data-key='scale/points'] button")  # of a bias scale the least is the best
        assert names(page)[:3] == ["no exam", "middle", best]
        first = page.script("return document.querySelector('tbody tr td:last-child').textContent")
        assert first == "1.001.00 – 1.00n = 8"
        assert page.script("return document.querySelectorAll('tr.paper').length") == 2
        assert page.script("return document.querySelectorAll('b').length") == 0  # a name is text
        assert page.script("return document.querySelectorAll('th').length") == 4
        page.click("#all")
        assert page.script("return document.querySelectorAll('th').length") == 6
        page.type("#filter", "MID")
        assert names(page) == ["middle"]
        assert not page.problems()


def test_a_report_has_the_page_beside_it(tmp_path):
    whole = result("middle", 50.0, 2.0)
    for (name, task), kind in zip(whole["tasks"].items(), ("choice", "scale"), strict=True):
        task |= {"title": name, "source": name, "kind": kind, "groups": {}, "runs": 1}
        task |= {"limited": False, "problems": {}, "cut_prompts": 0, "malformed": 0}
        for metric in task["metrics"].values():
            metric["signature"] = "s"
    write_json(tmp_path / "a/results.json", whole | {"settings": {"runs": 1, "temperature": 0.0}, "versions": {}})
    assert tmp_path / "leaderboard.html" in write_report([tmp_path / "a"], tmp_path)
