"""Packages that are imported when something is asked of them: no sooner, whole, and in everybody's hands then."""

import importlib
import inspect
import subprocess
import sys

import pytest

from megatron_chimed.backend.deferred import Deferred, defer_import, deferred

USER = "import put_off\nimport sys\n\ndef answer():\n    return put_off.answer\n"


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """put_off, which says when it runs, with a module `inner`; and `user`, which imports it."""
    (tmp_path / "put_off").mkdir()
    (tmp_path / "put_off/__init__.py").write_text("import sys\nsys.ran_by_test = True\nanswer = 42\n")
    (tmp_path / "put_off/inner.py").write_text("import sys\nfrom put_off import answer\n")
    (tmp_path / "user.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "ran_by_test", False, raising=False)
    for name in ("put_off", "put_off.inner", "user"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("put_off", "put_off.inner", "user"):
        sys.modules.pop(name, None)


def test_a_package_runs_when_something_is_asked_of_it_and_no_sooner(tmp_path):
    defer_import("put_off")
    put_off = importlib.import_module("put_off")
    inspect.getmodule(inspect.currentframe())  # torch's custom operators ask this of all modules
    assert not sys.ran_by_test and put_off.__file__ == str(tmp_path / "put_off/__init__.py")
    assert put_off.answer == 42 and sys.ran_by_test
    assert importlib.import_module("put_off") is sys.modules["put_off"] is not put_off
    with pytest.raises(AttributeError, match="no_such_name"):
        put_off.no_such_name  # noqa: B018
    assert defer_import("no_such_package") is None
    with pytest.raises(ImportError):
        importlib.import_module("no_such_package")
    assert defer_import("put_off") is None, "what is imported is left"


def test_a_module_in_it_has_the_package_run_before():
    defer_import("put_off")
    inner = importlib.import_module("put_off.inner")
    assert sys.ran_by_test and inner.answer == 42


def test_what_was_imported_meanwhile_gets_the_package_itself_once_it_asks():
    with deferred("put_off"):
        user = importlib.import_module("user")
    assert "put_off" not in sys.modules and isinstance(user.put_off, Deferred) and not sys.ran_by_test
    assert user.answer() == 42
    assert user.put_off is sys.modules["put_off"] and not isinstance(user.put_off, Deferred)


def test_the_package_is_left_where_it_was_asked_for_meanwhile_or_before():
    with deferred("put_off"):
        assert importlib.import_module("put_off").answer == 42
    assert not isinstance(sys.modules["put_off"], Deferred)
    with deferred("put_off"):
        assert not isinstance(sys.modules["put_off"], Deferred)


PROGRAM = """
import sys
from megatron_chimed.text.tokenizer import load_tokenizer
ids = load_tokenizer(sys.argv[1]).encode("头痛")
assert "torch" not in sys.modules and not any(name.startswith("torch.") for name in sys.modules)
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
theirs = AutoTokenizer.from_pretrained(sys.argv[1])
assert theirs("头痛", add_special_tokens=False, return_tensors="pt").input_ids.tolist() == [ids]
model = LlamaForCausalLM(LlamaConfig(vocab_size=max(ids) + 1, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=2))
assert model(torch.tensor([ids])).logits.shape[1] == len(ids)
print("whole")
"""


def test_a_tokenizer_needs_no_torch_and_whoever_needs_it_afterwards_has_it_whole(tmp_path):
    from support.dialogues import make_tokenizer

    make_tokenizer("huggingface", tmp_path)
    folder = next(path.parent for path in tmp_path.rglob("tokenizer.json"))
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, timeout=200)
    assert done.stdout.endswith("whole\n"), done.stderr[-2000:]
