"""The site of docs/, and the pages that are made of the code."""

import re
import subprocess
import sys
import tomllib
from email import message_from_string

import pytest
from packaging.requirements import Requirement

from guards import licences, reference, site, tree
from megatron_chimed.commands.main import COMMANDS

ALL = {path: tree.read(path) for path in tree.files()}
DOCUMENTS = [path for path in ALL if re.fullmatch(r"(README[.\w]*|CONTRIBUTING|docs/.*)\.md", path)]
PAGES = [path for path in DOCUMENTS if path.startswith(site.FOLDER)]


def test_the_reference_is_that_of_the_code():
    made = reference.pages()
    assert all(ALL.get(path) == text for path, text in made.items()), f"run: {reference.MADE}"
    assert {path for path in PAGES if path.startswith(reference.FOLDER)} == set(made)


def test_the_reference_has_every_command_key_and_public_name():
    commands, configuration, api = reference.commands(), reference.configuration(), reference.api()
    assert all(f"\n## chimed {name}\n" in commands for name in COMMANDS) and "`--sequence-length" in commands
    for key in ("isolate_documents", "center_rewards_coefficient", "keep_checkpoints", "rslora", "near_duplicate"):
        assert f"\n| `{key}` |" in configuration
    assert "\n## mc.Engine\n" in api and "Engine.loglikelihoods(" in api


def test_a_flag_a_default_and_a_text_are_shown_as_they_are_given():
    assert reference.cell("a|b ``c<d`` e <f>\n  g") == "a or b `c<d` e &lt;f> g"
    parser = reference.make_parser("pack sft", "chimed pack sft")
    shown = {reference.flag(action).split()[0]: reference.flag(action) for action in parser._actions}
    assert shown["--mode"] == "--mode {whole,per-turn,last}" and shown["--input"].startswith("--input INPUT [INPUT")


def test_the_licences_are_those_of_what_is_installed():
    standing = ALL[licences.PAGE]
    assert licences.page(standing) == standing, "run: PYTHONPATH=tests:. python -m guards.licences"
    assert licences.direct().keys() - licences.locked().keys() == licences.NOT_IN_THE_LOCK.keys()
    assert not re.findall(r"is(?: not)? installed(?! anew)", standing)


def test_control_a_package_that_is_not_listed_or_not_said_rightly_is_reported(monkeypatch):
    standing = ALL[licences.PAGE]
    for old, new in (("| LGPL-2.1-or-later |", "| MIT |"), ("| torch | 2.11", "| torch | 2.10")):
        wrong = standing.replace(old, new)
        assert wrong != standing and licences.page(wrong) == standing
    lock = licences.locked() | {"new": ("new", "1.0")}
    monkeypatch.setattr(licences, "locked", lambda: lock)
    assert "| new | 1.0 | new 1.0 is not installed here |" in licences.page(standing)
    assert "| new | 1.0 | BSD |" in licences.page("| new | 1.0 | BSD |\n")


def test_a_licence_is_the_expression_a_name_or_the_classifiers():
    def of(*lines: str) -> str:
        return licences.licence(message_from_string("\n".join(lines) + "\n"))

    bsd = "Classifier: License :: OSI Approved :: BSD License"
    assert of("License-Expression: MIT", "License: other", bsd) == "MIT"
    assert of("License: BSD-3-Clause", bsd) == "BSD-3-Clause" and of(bsd) == "BSD License"
    assert of("License: Apache 2.0", bsd) == "Apache 2.0; classifiers: BSD License"
    assert of("License: Copyright (c) somebody, who allows", "        this and that", bsd) == "BSD License"
    assert of("License: MIT License", "        and its text") == "MIT License" and of("Name: x") == "not said"


def test_every_page_is_in_the_menu_once():
    assert not site.menu_faults(ALL[site.CONFIG], PAGES)


def test_every_link_leads_to_a_page_and_a_heading():
    there = ALL | {path.rpartition("/")[0]: "" for path in ALL}
    assert len(PAGES) > 30
    assert not [fault for path in DOCUMENTS for fault in site.dead_links(path, ALL[path], there)]


def test_no_code_in_a_table_has_an_escaped_bar_whose_backslash_the_site_would_show():
    assert not [path for path in PAGES if re.search(r"(?m)^\|.*`[^`]*\\\|[^`]*`", ALL[path])]


def test_no_page_written_by_hand_is_too_long():
    assert not [fault for path in PAGES for fault in site.too_long(path, ALL[path])]


def test_control_a_lost_page_a_dead_link_and_a_long_page_are_reported():
    menu = "nav:\n  - Home: index.md\n  - More:\n      - gone.md\n      - index.md\n"
    faults = site.menu_faults(menu, ["docs/index.md", "docs/new.md"])
    assert [fault.split(": ")[1] for fault in faults] == [
        "docs/gone.md is not there",
        "docs/index.md is listed twice",
        "docs/new.md is in no menu",
    ]
    pages = {"docs/a.md": "# A\n\n## Two words\n", "docs/b/c.md": "", "README.md": ""}
    page = "[a](../a.md#two-words) [b](../a.md#no) [c](../../README.md)\n"
    page += "```\n[d](no.md)\n```\n`[e](no.md)` [f](no.md)\n"
    faults = [fault.split(": ")[1].split()[0] for fault in site.dead_links("docs/b/c.md", page, pages)]
    assert faults == ["../a.md#no", "../../README.md", "no.md"]
    assert site.too_long("docs/a.md", "x\n" * 201) and not site.too_long("docs/reference/a.md", "x\n" * 201)


def test_the_results_of_the_readme_are_those_of_the_benchmarks():
    text = ALL["README.md"].partition("\n## Results\n")[2].partition("\n## ")[0]
    ratios = re.findall(r"\d+\.\d+", text)
    assert len(ratios) > 5 and not [ratio for ratio in ratios if ratio not in ALL["benchmarks/RESULTS.md"]]


def test_what_make_docs_installs_is_pinned_and_fits_the_extra():
    recipe = ALL["Makefile"].partition("\ndocs:")[2].partition("\n\n")[0]
    pins = {name.lower(): version for name, version in re.findall(r"([\w-]+)==([\w.]+)", recipe)}
    (wanted,) = map(Requirement, tomllib.loads(ALL["pyproject.toml"])["project"]["optional-dependencies"]["docs"])
    assert wanted.specifier.contains(pins[wanted.name]) and "--no-deps" in recipe and "--strict" in recipe


def test_the_site_is_built_and_asks_no_other_host_for_anything(tmp_path):
    pytest.importorskip("mkdocs", reason="make docs installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    html = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html"))
    assert "Kendall" in html and not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//", html)
