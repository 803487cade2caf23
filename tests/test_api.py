"""The public API: few names, imported when they are used, each with an example that works."""

import doctest
import subprocess
import sys

import pytest
import yaml
from support.corpora import make_texts, write_rows
from support.dialogues import make_dialogues, make_renderer, write_dialogues
from support.exam_files import write_ceval
from support.exam_hf import write_answering_hf
from support.forked import ON_CPU
from support.job import MODEL, STAGE, write_corpus
from support.rankings import make_groups, write_groups

import megatron_chimed as mc

pytestmark = pytest.mark.real_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the examples name, in one folder."""
    folder = tmp_path_factory.mktemp("api")
    make_renderer("sentencepiece", folder)
    (folder / "tokenizer.model").write_bytes((folder / "sentencepiece/tokenizer.model").read_bytes())
    write_rows(folder / "texts.jsonl", [{"text": text} for text in make_texts(20)])
    write_dialogues(folder / "dialogues.jsonl", make_dialogues(10))
    write_groups(folder / "ranked.jsonl", make_groups(10))
    write_ceval(folder / "ceval")
    write_answering_hf(folder / "hf", 2048)
    (folder / "model.yaml").write_text(yaml.safe_dump({"megatron": MODEL}))
    stage = STAGE | {"data-path": str(write_corpus(folder))}
    (folder / "pretrain.yaml").write_text(yaml.safe_dump({"megatron": stage}))
    return folder


def examples(name: str) -> list[doctest.DocTest]:
    """The examples in the docstrings of a public name."""
    thing = getattr(mc, name)
    found = doctest.DocTestFinder(recurse=isinstance(thing, type)).find(thing, name)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", mc.__all__)
def test_the_example_in_its_docstring_works(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for variable, value in ON_CPU.items():
        monkeypatch.setenv(variable, value)
    if name == "megatron_to_hf" and not (folder / "base").exists():
        mc.hf_to_megatron("hf", "base", progress=False)
    tests = examples(name)
    assert tests, f"{name} has no example"
    for test in tests:
        output: list[str] = []
        result = doctest.DocTestRunner().run(test, out=output.append)
        assert result.failed == 0, "".join(output)


def test_control_an_example_that_is_wrong_is_found_out():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1


def test_the_package_alone_imports_nothing_and_names_what_it_has():
    code = "import sys, megatron_chimed as mc; print('numpy' in sys.modules, 'torch' in sys.modules, dir(mc)[:3])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False ['Engine', 'Template', 'Tokenizer']\n", done
    with pytest.raises(AttributeError, match="it has Engine, Template"):
        mc.Unknown  # noqa: B018
    assert len(mc.__all__) == 10
