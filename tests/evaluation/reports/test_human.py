"""The human evaluation: a blinded form in a real browser, its files, agreement of annotators."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from support.browser import needs_browser, open_page

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.reports.agreement import report_ratings, weighted_kappa
from megatron_chimed.evaluation.reports.human import CRITERIA, make_form, ratings_csv, read_ratings
from megatron_chimed.jsonl import read_json, write_json, write_json_lines

HOSTILE = '</script><script>document.title="broken"</script><b>粗体</b> " \' & \\u003c'


def write_output(folder, name: str, items: int = 8, answer: str = "建议休息"):
    """What tools/evaluate.py leaves of a model."""
    write_json(folder / "results.json", {"model": {"name": name}})
    for task in ("chimed", "mc"):
        rows = [
            {"id": f"{task}:{n}", "prompt": f"[human]:问题{n}\n[bot]:", "answer": f"{answer}{n}"} for n in range(items)
        ]
        write_json_lines(folder / "samples" / f"{task}.0.jsonl", rows)
    return folder


@pytest.fixture
def outputs(tmp_path):
    return [write_output(tmp_path / name, name, answer=f"回答{name}") for name in ("model-a", "model-b")]


def content_of(path) -> dict:
    """The form's content as its script reads it."""
    text = re.search(r'id="content">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1]
    return json.loads(text)


def random_ratings(key: dict, seed: int) -> dict:
    draw = np.random.default_rng(seed)
    return {code: {name: int(draw.integers(1, 4)) for name in CRITERIA} for code in key["answers"]}


def test_the_form_is_blind_shuffled_and_the_same_for_the_same_seed(outputs, tmp_path):
    outputs = [write_output(path, path.name, answer="答") for path in outputs]
    key = make_form(outputs, tmp_path / "one", count=5, seed=1)
    page = (tmp_path / "one" / "form.html").read_text(encoding="utf-8")
    assert "model-a" not in page and "model-b" not in page and "qa" not in content_of(tmp_path / "one/form.html")
    assert not re.search(r"https?://|src=|@import", page)  # works offline
    assert len(key["answers"]) == 2 * (5 + 5)
    for kind in ("qa", "dialogue"):
        per_item: dict[str, list] = {}
        for answer in key["answers"].values():
            if answer["kind"] == kind:
                per_item.setdefault(answer["item"], []).append(answer["model"])
        assert len(per_item) == 5 and all(sorted(models) == ["model-a", "model-b"] for models in per_item.values())
    first = [answer["model"] for code, answer in key["answers"].items() if code.endswith("a")]
    assert set(first) == {"model-a", "model-b"}  # which comes first differs
    assert make_form(outputs, tmp_path / "two", count=5, seed=1) == key
    assert (tmp_path / "two" / "form.html").read_text(encoding="utf-8") == page
    assert make_form(outputs, tmp_path / "three", count=5, seed=2) != key


def test_kappa_equals_sklearn():
    draw = np.random.default_rng(0)
    for size in (5, 40, 200):
        one = draw.integers(1, 4, size)
        other = np.where(draw.random(size) < 0.6, one, draw.integers(1, 4, size))
        for weights in ("linear", "quadratic"):
            expected = cohen_kappa_score(one, other, labels=[1, 2, 3], weights=weights)
            assert weighted_kappa(one.tolist(), other.tolist(), weights) == pytest.approx(expected, abs=1e-9)
    assert weighted_kappa([1, 2, 3], [1, 2, 3]) == 1 and weighted_kappa([2, 2], [2, 2]) is None
    # By hand: distances 0, 1, 0, 2 of 4 against 3 x 3 of all pairs (1 2 2 3 by 1 1 2 1): 14 / 4.
    assert weighted_kappa([1, 2, 2, 3], [1, 1, 2, 1]) == pytest.approx(1 - 3 / (14 / 4), abs=1e-9)


def test_two_annotators_files_become_means_and_agreement(outputs, tmp_path):
    key = make_form(outputs, tmp_path, count=4)
    ratings = [random_ratings(key, seed) for seed in (1, 2)]
    one, other = tmp_path / "a.json", tmp_path / "b.csv"
    write_json(one, {"form": key["form"], "annotator": "甲", "ratings": ratings[0]})
    other.write_text(ratings_csv(key["form"], "乙", ratings[1]), encoding="utf-8")
    results = report_ratings(tmp_path / "key.json", [one, other], tmp_path / "report")
    codes = [c for c, a in key["answers"].items() if a["kind"] == "qa" and a["model"] == "model-b"]
    expected = np.mean([rater[code]["fluency"] for rater in ratings for code in codes])
    found = results["means"]["qa"]["model-b"]
    assert found["n"] == 4 and found["fluency"]["mean"] == pytest.approx(expected, abs=1e-12)
    assert found["fluency"]["low"] <= expected <= found["fluency"]["high"]
    levels = [[rater[code]["precision"] for code in key["answers"]] for rater in ratings]
    row = next(row for row in results["kappa"] if row["criterion"] == "precision")
    assert row["linear"] == pytest.approx(cohen_kappa_score(*levels, weights="linear"), abs=1e-9) and row["n"] == 16
    text = (tmp_path / "report" / "human.md").read_text(encoding="utf-8")
    assert "| ChiMed-GPT (paper) | 50 | 2.57 | 2.45 | 2.57 |" in text and "甲 and 乙" in text


def test_what_is_not_rated_is_counted_and_no_rating_made_up(outputs, tmp_path):
    key = make_form(outputs, tmp_path, count=3)
    ratings = random_ratings(key, 0)
    codes = list(ratings)
    del ratings[codes[0]]
    ratings[codes[1]]["fluency"] = 4
    del ratings[codes[2]]["precision"]
    ratings["99z"] = dict.fromkeys(CRITERIA, 1)
    path = tmp_path / "a.json"
    write_json(path, {"form": key["form"], "annotator": "甲", "ratings": ratings})
    name, read, faults = read_ratings(path, key)
    assert name == "甲" and set(read) == set(codes[3:])
    assert len(faults) == 4 and any("unknown code" in fault for fault in faults)
    for changed, reason in (({"form": "other"}, "the key is of"), ({"ratings": None}, "not a file that the form")):
        write_json(path, {"form": key["form"], "annotator": "甲", "ratings": ratings} | changed)
        with pytest.raises(InputError, match=reason):
            read_ratings(path, key)
    write_json(path, {"form": key["form"], "annotator": "甲", "ratings": ratings})
    with pytest.raises(InputError, match="two or more"):
        report_ratings(tmp_path / "key.json", [path, path], tmp_path / "report")


def test_models_without_common_items_or_with_one_name_are_refused(outputs, tmp_path):
    with pytest.raises(InputError, match="one name"):
        make_form([outputs[0], outputs[0]], tmp_path / "form")
    for task in ("chimed", "mc"):
        (outputs[1] / "samples" / f"{task}.0.jsonl").unlink()
    with pytest.raises(InputError, match="all models have answered"):
        make_form(outputs, tmp_path / "form")


@needs_browser
def test_the_form_is_filled_in_by_a_browser_and_its_files_are_imported(outputs, tmp_path):
    outputs[0] = write_output(tmp_path / "hostile", "model-c", answer=HOSTILE)
    key = make_form(outputs, tmp_path, count=2)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    wanted = random_ratings(key, 3)
    with open_page(downloads) as page:
        page.open(tmp_path / "form.html")
        assert page.script("return document.title") == "回答评估"
        shown = page.script("return [...document.querySelectorAll('article')].map(a => a.innerText)")
        assert len(shown) == 8 and sum("</script>" in text and "<b>粗体</b>" in text for text in shown) == 4
        codes = list(wanted)
        for code in codes[:-1]:
            for name, level in wanted[code].items():
                page.click(f"input[name='{code}-{name}'][value='{level}']")
        page.type("#annotator", "annotator-1\n")
        assert page.script("return document.getElementById('progress').textContent") == "7 / 8"
        stored = page.script("return JSON.parse(localStorage.getItem(place))")
        assert stored == {"annotator": "annotator-1", "ratings": {code: wanted[code] for code in codes[:-1]}}
        page.click("#json")
        half = page.downloaded("ratings-annotator-1.json").rename(downloads / "half.json")
        page.script("localStorage.clear()")
        page.open(tmp_path / "form.html")
        assert page.script("return document.getElementById('progress').textContent") == "0 / 8"
        page.type("#load", str(half))  # the file of yesterday
        page.wait("return document.getElementById('progress').textContent", "7 / 8")
        for name, level in wanted[codes[-1]].items():
            page.click(f"input[name='{codes[-1]}-{name}'][value='{level}']")
        for suffix in ("json", "csv"):
            page.click(f"#{suffix}")
        saved = [page.downloaded(f"ratings-annotator-1.{suffix}") for suffix in ("json", "csv")]
        assert not page.problems()
    for path in saved:
        assert read_ratings(path, key) == ("annotator-1", wanted, [])
    assert read_json(saved[0])["form"] == key["form"]
