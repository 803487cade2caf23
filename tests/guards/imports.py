"""Which libraries each part of the package may import, checked on the syntax tree, so that imports inside functions
count too. Which part may import which is in pyproject.toml, checked by import-linter.

`LIBRARIES` is the table: a module obeys the entry with the longest matching prefix. The standard library is open to
all.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from guards.tree import syntax

PACKAGE = "megatron_chimed"
TOKENIZERS = ("sentencepiece", "tokenizers", "splintr", "tokie", "transformers")
FOREIGN = ("torch", "megatron")
KERNELS = ("apex", "flash_attn", "transformer_engine")  # optional; the model looks whether they are installed

LIBRARIES: dict[str, tuple[str, ...]] = {
    "": (),  # a file at the root
    "config": ("yaml",),
    "workers": ("tqdm", "ray"),
    "api": ("openai",),
    "backend": ("torch", "megatron.core"),
    "text": ("numpy", "tqdm", *TOKENIZERS),
    "data": ("numpy", "chardet", "orjson", "pyarrow", "rensa", "tqdm"),
    "corpus": ("numpy", "orjson", "tqdm"),
    "judging": (),
    "packing": ("numpy",),
    "datasets": ("numpy", "torch", "megatron.core.datasets"),
    "models": ("numpy", "torch", "megatron.core", *KERNELS),
    "convert": ("torch", "safetensors", "yaml", "tqdm", "transformers", "peft", "megatron.core"),
    "convert.stored": (),
    "stages": ("torch", "megatron.core"),
    "stages.schedule": (),
    "inference": ("torch", "safetensors", "megatron.core", "transformers"),
    "inference.megatron_engine": (),  # an engine's client side is without torch
    "inference.engine": (),
    "inference.open": (),
    "inference.request": (),
    "inference.batching": (),
    "inference.processes": (),
    "inference.lifeline": (),
    "inference.vllm_engine": (),
    "inference.vllm_worker": ("vllm",),  # the one process that has it
    "training": ("numpy", "torch", "megatron.core", "megatron.training", "yaml", "tqdm", "matplotlib", "wandb"),
    "training.job": (),  # before the ranks start
    "commands": (),  # what it runs imports libraries
    "plan": (),  # arithmetic alone; the rank of a dry run is the trainer itself
    "plan.stand_in": ("numpy",),  # the ids of a made-up corpus
    "chat": ("transformers",),
    "rejection": ("matplotlib",),
    "evaluation": ("numpy", "yaml"),
    "evaluation.segment": ("jieba",),
    "evaluation.text_metrics": ("nltk", "rouge_score"),
    "evaluation.reports": ("numpy", "yaml", "matplotlib"),
    "evaluation.harness": ("lm_eval",),
    "evaluation.harness_tasks": ("numpy", "lm_eval", "datasets"),
    "evaluation.backends": ("numpy", "lm_eval", "torch", "transformers"),
}
"""Of each part of the package the libraries that it may import, as dotted prefixes."""


def module_name(path: str) -> str:
    """``megatron_chimed/corpus/builder.py`` to ``corpus.builder``; a folder's __init__.py is the folder."""
    name = path.removeprefix(f"{PACKAGE}/").removesuffix(".py").replace("/", ".")
    return name.removesuffix(".__init__")


@cache
def imports(source: str) -> list[tuple[int, str]]:
    """(line, dotted name) of every import in a module; ``from a import b`` gives ``a.b``.

    A literal in importlib.import_module or __import__ counts, a relative import is the name with leading dots.
    """
    found = []
    for node in ast.walk(syntax(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [(node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return found


def is_under(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted name is one of the prefixes or lies below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def forbidden_libraries(path: str, source: str) -> list[str]:
    """Libraries that a module of the package imports and its entry does not name, and relative imports."""
    module = module_name(path)
    allowed = LIBRARIES[max((prefix for prefix in LIBRARIES if not prefix or is_under(module, [prefix])), key=len)]
    findings = []
    for line, name in imports(source):
        if name.startswith("."):
            findings.append(f"{path}:{line}: relative import {name}; write the full name")
        elif name.split(".")[0] not in (*sys.stdlib_module_names, PACKAGE) and not is_under(name, allowed):
            findings.append(f"{path}:{line}: may not import {name}; see LIBRARIES in tests/guards/imports.py")
    return findings


def broken_contracts(root: Path) -> list[str]:
    """What import-linter finds in the package below a folder, by the contracts in the pyproject.toml there."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", root / "pyproject.toml"]
    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120)
    lines = (line.strip() for line in done.stdout.splitlines())
    found = [line for line in lines if line.startswith("- ") or line.endswith(" BROKEN")]
    return found if not done.returncode else found or [done.stdout + done.stderr]


def own_modules(source: str, known: set[str]) -> set[str]:
    """The package's modules (dotted, without the package's name) that a file imports."""
    names = {name.removeprefix(f"{PACKAGE}.") for _, name in imports(source) if name.startswith(f"{PACKAGE}.")}
    parents = {name.rpartition(".")[0] for name in names}  # `from package.module import function`
    return {name for name in names | parents if name in known}


def foreign_names(source: str) -> dict[str, str]:
    """{name in a file: dotted name of what it stands for} of imports from torch and Megatron, aliases followed."""
    found: dict[str, str] = {}
    nodes = list(ast.walk(syntax(source)))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if is_under(alias.name, FOREIGN):
                    found[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
        elif isinstance(node, ast.ImportFrom) and is_under(node.module or "", FOREIGN):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Assign) and _root(node.value) in found:
            dotted = _dotted(node.value, found)
            found |= {target.id: dotted for target in node.targets if isinstance(target, ast.Name)}
    return found


def patches(source: str) -> list[tuple[int, str]]:
    """(line, dotted target) of assignments to attributes of torch or Megatron, by =, del or setattr.

    Settings below torch.backends are no patches. setattr with a computed name counts as its object.
    """
    foreign, found = foreign_names(source), []
    for node in ast.walk(syntax(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            target = node.args[0]
        else:
            continue
        if _root(target) in foreign and not (dotted := _dotted(target, foreign)).startswith("torch.backends."):
            found.append((node.lineno, dotted))
    return found


def private_names(source: str) -> list[tuple[int, str]]:
    """(line, dotted name) of private names of torch and Megatron that a file reaches."""
    foreign = foreign_names(source)
    found = [(line, name) for line, name in imports(source) if is_under(name, FOREIGN) and _is_private(name)]
    for node in ast.walk(syntax(source)):
        if isinstance(node, ast.Attribute) and _root(node) in foreign and _is_private(node.attr):
            found.append((node.lineno, _dotted(node, foreign)))
    return sorted(set(found))


def _is_private(name: str) -> bool:
    """Whether the last part of a name begins with one underscore."""
    return re.match(r"_[^_]", name.rpartition(".")[2]) is not None


def _dotted(node: ast.expr, foreign: dict[str, str]) -> str:
    """An attribute with the full name of what it begins with."""
    name, dot, rest = ast.unparse(node).partition(".")
    return foreign.get(name, name) + dot + rest


def _root(node: ast.expr) -> str | None:
    """The name at the left end of ``name.attribute.attribute``."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
