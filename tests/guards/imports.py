"""Who may import what, checked on the syntax tree, so that imports inside functions count too.

`RULES` is the table: a module obeys the entry with the longest matching prefix, and a module without an entry is a
finding, so that a new part of the package starts with its rule. The standard library is open to all.
"""

import ast
import sys
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from guards.tree import syntax

PACKAGE = "megatron_chimed"


class Rule(NamedTuple):
    """Allowed imports as dotted prefixes: `own` inside the package (without its name), `others` outside."""

    own: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


BASE = ("errors", "jsonl", "records", "config", "template", "tokenizer", "workers")
TOKENIZERS = ("sentencepiece", "tokenizers", "transformers")
KERNELS = ("apex", "flash_attn", "transformer_engine")  # optional; the model looks whether they are installed

RULES = {
    "__init__": Rule(),
    # Base modules: no torch, no Megatron, nothing above them.
    "errors": Rule(),
    "jsonl": Rule(("errors",)),
    "quiet": Rule(),
    "records": Rule(("errors",)),
    "checkpoints": Rule(("errors", "jsonl")),
    "locks": Rule(("errors",)),
    "config": Rule(("errors",), ("yaml",)),
    "template": Rule(BASE, ("numpy",)),
    "tokenizer": Rule(("errors", "jsonl"), ("numpy", *TOKENIZERS)),
    "workers": Rule((), ("tqdm",)),
    # Chat completions over HTTP: for augmentation, rejection sampling and evaluation.
    "chat_api": Rule(("errors",), ("openai",)),
    "chat_log": Rule(("errors", "jsonl", "chat_api")),
    "chat_costs": Rule(("errors", "chat_api")),
    "tokenizer_training": Rule(BASE, ("tqdm", *TOKENIZERS)),
    # From sources to a corpus.
    "data": Rule((*BASE, "data"), ("numpy", "datasketch", "orjson", "tqdm")),
    "data.augment": Rule((*BASE, "chat_api", "chat_log", "chat_costs")),
    "data.corpus": Rule((*BASE, "data"), ("numpy", "tqdm", "megatron.core.datasets.indexed_dataset")),
    # From a corpus to batches.
    "datasets": Rule((*BASE, "datasets"), ("numpy", "torch", "megatron.core.datasets")),
    "datasets.rows": Rule(("errors",), ("numpy",)),
    # From dialogues to packed rows: numpy only, as the command that does it needs no torch.
    "datasets.packing": Rule(("errors",), ("numpy",)),
    "datasets.packed": Rule(("errors", "jsonl", "datasets.packing"), ("numpy",)),
    "datasets.instances": Rule((*BASE, "datasets"), ("numpy",)),
    "datasets.parts": Rule((*BASE, "datasets"), ("numpy",)),
    "datasets.dialogue_parts": Rule((*BASE, "datasets"), ("numpy",)),
    "datasets.ranking_parts": Rule((*BASE, "datasets"), ("numpy",)),
    "datasets.pack_records": Rule((*BASE, "datasets"), ("numpy", "tqdm")),
    "datasets.pack_dialogues": Rule((*BASE, "datasets")),
    "datasets.pack_rankings": Rule((*BASE, "datasets")),
    "datasets.show": Rule((*BASE, "datasets"), ("numpy",)),
    # Tensors.
    "losses": Rule((), ("torch",)),
    "ranking_metrics": Rule(("losses",), ("torch",)),
    # Checkpoints: data in, data out; model and verify also build what they have read.
    "convert": Rule(
        (*BASE, "checkpoints", "convert"),
        ("torch", "safetensors", "yaml", "tqdm", "megatron.core.dist_checkpointing", "megatron.core.safe_globals"),
    ),
    "convert.tensors": Rule((), ("torch",)),
    "convert.family": Rule((), ("torch",)),
    "convert.model": Rule(("config", "convert", "models"), ("torch", "megatron.core")),
    "convert.verify": Rule((*BASE, "convert"), ("torch", "safetensors", "transformers")),
    "convert.verify_worker": Rule((*BASE, "convert", "cpu", "quiet"), ("torch", "safetensors")),
    "models": Rule(("errors", "config", "models"), ("torch", "megatron.core", *KERNELS)),
    # Stages know each other only through the record.
    "stages": Rule(
        (
            "errors",
            "jsonl",
            "config",
            "datasets",
            "models",
            "losses",
            "ranking_metrics",
            "stages.stage",
            "stages.batch",
            "stages.schedule",
        ),
        ("torch", "megatron.core"),
    ),
    "stages.schedule": Rule(("errors", "config", "datasets")),
    "stages.stage": Rule(("errors", "config"), ("torch",)),
    # Above the stages: the trainer and what adapts Megatron.
    "cpu": Rule(("errors",), ("torch", "megatron.core")),
    "starting_weights": Rule(("errors",), ("torch", "megatron.core.dist_checkpointing")),
    "adapter": Rule(("errors", "cpu", "starting_weights"), ("torch", "megatron.core", "megatron.training")),
    "loss_watch": Rule(),
    "saving": Rule(("errors", "checkpoints"), ("torch", "megatron.core.dist_checkpointing", "megatron.training")),
    "supervision": Rule(
        ("errors", "jsonl", "config", "checkpoints", "loss_watch"), ("numpy", "torch", "megatron.training")
    ),
    "arguments": Rule(("errors", "config")),
    "defaults": Rule(("config", "arguments", "cpu", "models")),
    "runlog": Rule(("errors", "jsonl"), ("tqdm",)),
    "curves": Rule(("errors", "jsonl", "runlog"), ("yaml", "matplotlib")),
    "run_record": Rule(("errors", "jsonl"), ("yaml",)),
    "tracking": Rule(("errors",), ("wandb",)),
    "train": Rule(
        (
            "errors",
            "jsonl",
            "config",
            "tokenizer",
            "arguments",
            "defaults",
            "runlog",
            "run_record",
            "tracking",
            "cpu",
            "adapter",
            "checkpoints",
            "saving",
            "supervision",
            "models",
            "stages",
        ),
        ("torch", "megatron.core", "megatron.training"),
    ),
    "job": Rule(("errors", "config", "checkpoints", "locks")),
    "launch": Rule(("errors", "job"), ("torch.distributed",)),
    # Before the cluster is asked: arithmetic without torch; the rank of a dry run is the trainer itself.
    "plan": Rule((*BASE, "checkpoints", "stages.schedule", "plan")),
    "plan.model": Rule(),
    "plan.layout": Rule(("plan.model",)),
    "plan.memory": Rule(("plan.model", "plan.layout")),
    "plan.speed": Rule(("plan.model", "plan.layout")),
    "plan.rank": Rule(("errors", "config", "quiet", "cpu", "adapter", "train", "plan")),
    "__main__": Rule(("errors", "quiet", "cpu", "train")),
    # Rejection sampling: steps over files; engines come in through their clients.
    "rejection.keys": Rule(),
    "rejection.select": Rule(("records", "rejection.keys")),
    "rejection.store": Rule(("errors", "jsonl", "records")),
    "rejection.prompts": Rule((*BASE, "data", "rejection.keys")),
    "rejection": Rule(
        (
            *BASE,
            "checkpoints",
            "locks",
            "chat_api",
            "datasets.pack_dialogues",
            "convert.checkpoint",
            "inference.client",
            "rejection",
        ),
        ("torch", "transformers", "vllm", "matplotlib"),
    ),
    # A checkpoint at work: the client's side is without torch and Megatron.
    "inference": Rule(
        (*BASE, "convert", "models", "cpu", "quiet", "inference"), ("torch", "safetensors", "megatron.core")
    ),
    "inference.request": Rule(),
    "inference.batching": Rule(),
    "inference.ranks": Rule(("errors",)),
    "inference.client": Rule(
        ("errors", "workers", "inference.request", "inference.batching", "inference.ranks"),
    ),
    # A conversation: the engine through its client, transformers in one module, servers as commands.
    "chat": Rule((*BASE, "chat", "inference.request")),
    "chat.text": Rule(("tokenizer",)),
    "chat.hf": Rule(("errors", "inference.request", "inference.sampling"), ("torch", "transformers")),
    "chat.models": Rule((*BASE, "chat.hf", "convert.tokenizer_files", "inference.client")),
    "chat.serve": Rule((*BASE, "chat.models"), ("transformers",)),
    # Evaluation: data sets, metrics and reports know no model; lm-eval is known by what it calls and what calls it.
    "evaluation": Rule((*BASE, "evaluation"), ("numpy",)),
    "evaluation.segment": Rule((), ("jieba",)),
    "evaluation.text_metrics": Rule(("evaluation.segment",), ("nltk", "rouge_score")),
    "evaluation.entities": Rule(),
    "evaluation.statistics": Rule((), ("numpy",)),
    "evaluation.items": Rule(("errors", "data.sources")),
    "evaluation.exam_readers": Rule(("errors", "data.sources", "evaluation.items")),
    "evaluation.entity_readers": Rule((*BASE, "data", "evaluation.items", "evaluation.entities")),
    "evaluation.answer_readers": Rule(("errors", "data", "evaluation.items")),
    "evaluation.bias": Rule(("errors", "evaluation.items"), ("yaml",)),
    "evaluation.contamination": Rule(("errors", "jsonl", "workers", "data.overlap"), ("numpy",)),
    "evaluation.human": Rule(("errors", "jsonl", "data.sources")),
    "evaluation.agreement": Rule(("errors", "jsonl", "evaluation.human", "evaluation.statistics"), ("numpy",)),
    "evaluation.plots": Rule(("jsonl",), ("matplotlib",)),
    "evaluation.compare": Rule((*BASE, "evaluation"), ("numpy",)),
    "evaluation.page": Rule(("jsonl", "evaluation.plots")),
    "evaluation.harness": Rule((*BASE, "evaluation"), ("lm_eval",)),
    "evaluation.harness_tasks": Rule((*BASE, "evaluation"), ("numpy", "lm_eval", "datasets")),
    "evaluation.recorded": Rule((*BASE, "evaluation.answers_log"), ("lm_eval",)),
    "evaluation.run": Rule((*BASE, "quiet", "evaluation"), ("numpy",)),
    "evaluation.models": Rule(
        (*BASE, "checkpoints", "evaluation", "convert.tokenizer_files", "inference.client", "chat_api")
    ),
    "evaluation.hf_model": Rule((*BASE, "evaluation.encoding"), ("torch", "transformers", "lm_eval")),
    "evaluation.engine_model": Rule(
        (*BASE, "evaluation.encoding", "evaluation.vllm_engine", "inference.client"), ("lm_eval",)
    ),
    "evaluation.vllm_engine": Rule(("errors", "inference.request"), ("vllm",)),
    "evaluation.chat_model": Rule((*BASE, "evaluation.engine_model", "chat_api"), ("lm_eval",)),
}

TRAINING = ("train", "adapter", "saving", "supervision")
"""The importers of megatron.training: the trainer, what mends it, and what it does about faults."""


def module_name(path: str) -> str:
    """``megatron_chimed/corpus/builder.py`` to ``data.corpus``; a folder's __init__.py is the folder."""
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


def rule_for(module: str, rules: dict[str, Rule]) -> Rule | None:
    """The entry with the longest prefix of the module's name."""
    fitting = [prefix for prefix in rules if is_under(module, [prefix])]
    return rules[max(fitting, key=len)] if fitting else None


def forbidden_imports(path: str, source: str, rules: dict[str, Rule] = RULES) -> list[str]:
    """Imports of a package module that its rule does not allow, or that no rule covers it."""
    rule = rule_for(module_name(path), rules)
    if rule is None:
        return [f"{path}:1: no import rule covers this module; add one to RULES in tests/guards/imports.py"]
    findings = []
    for line, name in imports(source):
        if name.startswith("."):
            findings.append(f"{path}:{line}: relative import {name}; write the full name")
        elif is_under(name, [PACKAGE]):
            own = name.removeprefix(PACKAGE).removeprefix(".")
            if own != "__version__" and not is_under(own, rule.own):
                findings.append(f"{path}:{line}: may not import {name}")
        elif name.split(".")[0] not in sys.stdlib_module_names and not is_under(name, rule.others):
            findings.append(f"{path}:{line}: may not import {name}")
    return findings


def import_cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that can reach themselves. `graph` maps a module to what it imports."""
    findings = []
    for start in sorted(graph):
        seen, todo = set(), list(graph[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, ())
        if start in seen:
            findings.append(f"{start}: imports itself through others")
    return findings


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
