"""Which libraries each part of the package may import, checked on the syntax tree, so that imports inside functions
count too. Which part may import which is in pyproject.toml, checked by import-linter.

`LIBRARIES` is the table: a module obeys the entry with the longest matching prefix. The standard library is open to
all.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from guards.tree import syntax

PACKAGE = "megatron_chimed"
TOKENIZERS = ("sentencepiece", "tokenizers", "transformers")
KERNELS = ("apex", "flash_attn", "transformer_engine")  # optional; the model looks whether they are installed

LIBRARIES: dict[str, tuple[str, ...]] = {
    "": (),  # a file at the root
    "config": ("yaml",),
    "workers": ("tqdm",),
    "api": ("openai",),
    "backend": ("torch", "megatron.core"),
    "text": ("numpy", "tqdm", *TOKENIZERS),
    "data": ("numpy", "datasketch", "orjson", "tqdm"),
    "corpus": ("numpy", "orjson", "tqdm"),
    "packing": ("numpy",),
    "datasets": ("numpy", "torch", "megatron.core.datasets"),
    "models": ("torch", "megatron.core", *KERNELS),
    "convert": ("torch", "safetensors", "yaml", "tqdm", "transformers", "megatron.core"),
    "stages": ("torch", "megatron.core"),
    "stages.schedule": (),
    "inference": ("torch", "safetensors", "megatron.core", "transformers", "vllm"),
    "inference.client": (),  # an engine's client side is without torch
    "inference.request": (),
    "inference.batching": (),
    "inference.ranks": (),
    "training": ("numpy", "torch", "megatron.core", "megatron.training", "yaml", "tqdm", "matplotlib", "wandb"),
    "training.job": (),  # before the ranks start
    "plan": (),  # arithmetic alone; the rank of a dry run is the trainer itself
    "chat": ("transformers",),
    "rejection": ("matplotlib", "torch", "transformers", "vllm"),
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


def patches(path: str, source: str) -> list[str]:
    """Assignments to attributes of imported torch or Megatron objects, by =, del or setattr.

    Settings below torch.backends are no patches. An alias (``cuda = torch.cuda``) is followed.
    """
    tree = syntax(source)
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                if is_under(module or alias.name, ["torch", "megatron"]):
                    foreign.add(alias.asname or alias.name.split(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _root(node.value) in foreign:
            foreign |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    findings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            target = node.args[0]
        else:
            continue
        if _root(target) in foreign and not ast.unparse(target).startswith("torch.backends."):
            findings.append(
                f"{path}:{node.lineno}: changes {ast.unparse(target)}; patches belong into the named modules"
            )
    return findings


def _root(node: ast.expr) -> str | None:
    """The name at the left end of ``name.attribute.attribute``."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
