"""Importing the package changes nothing of the process: no environment, no settings of other libraries."""

import json
import subprocess
import sys

import pytest
from guards import imports, tree

pytestmark = [pytest.mark.cpu, pytest.mark.real_processes]  # what it imports needs torch

PROGRAM = """
import gc, importlib, json, logging, os, signal, sys, warnings
import datasets, lm_eval.models.huggingface, matplotlib, torch, transformers  # what they change themselves is not ours
import megatron.core, megatron.training

def state():
    loggers = {name: one.level for name, one in logging.root.manager.loggerDict.items() if hasattr(one, "level")}
    cuda = {name: id(value) for name, value in vars(torch.cuda).items()}
    return {
        "environment": dict(os.environ), "loggers": loggers, "cuda": cuda, "compile": id(torch.compile),
        "collector": [gc.isenabled(), gc.get_freeze_count() > 0], "backend": matplotlib.rcParams["backend"],
        "hooks": [id(sys.excepthook), id(sys.displayhook)], "signals": str(signal.getsignal(signal.SIGTERM)),
        "verbosity": transformers.utils.logging.get_verbosity(), "argv": sys.argv[:1],
        "warnings": [str(one) for one in warnings.filters if "megatron" in str(one) or "torch" in str(one)],
    }

found = {}
for module in json.loads(sys.argv[1]):
    before = state()
    importlib.import_module(module)
    after = state()
    known = {**after, "loggers": {name: after["loggers"].get(name) for name in before["loggers"]}}
    known["cuda"] = {name: after["cuda"].get(name) for name in before["cuda"]}
    changed = [name for name in before if before[name] != known[name]]
    if changed:
        found[module] = changed
print("FOUND", json.dumps(found))
"""


def changed_by(modules: list[str]) -> dict[str, list[str]]:
    """{module: what its import has changed}, of modules that are imported one after the other."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(modules)]
    done = subprocess.run(command, cwd=tree.ROOT / "tests", capture_output=True, text=True, timeout=240)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND "))


def test_importing_any_module_changes_nothing():
    modules = [imports.module_name(path) for path in tree.python_files("megatron_chimed/")]
    modules = [f"megatron_chimed.{name}" for name in modules if name not in ("__init__", "__main__")]
    assert len(modules) > 150 and changed_by(modules) == {}


def test_control_a_module_that_changes_something_is_found_out(tmp_path):
    (tmp_path / "bad.py").write_text("import os, torch\nos.environ['X'] = '1'\ntorch.cuda.synchronize = None\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program, '["bad"]'], capture_output=True, text=True, timeout=240)
    assert 'FOUND {"bad": ["environment", "cuda"]}' in done.stdout, done.stderr[-2000:]
