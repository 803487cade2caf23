"""Which test covers a module that no test imports: it is run inside a job, a worker process or another module."""

import re
from functools import cache

from guards.imports import imports, module_name, own_modules
from guards.tree import files, python_files, read

THROUGH = {
    "tests/test_api.py": ("commands.library",),
    "tests/integration/test_resume.py": (
        "__main__", "models.norm", "stages.stage", "training.loaders",
        "training.parsing", "training.patches", "training.saving", "training.supervision",
    ),
    "tests/integration/test_sft.py": ("stages.batch", "stages.sft"),
    "tests/integration/test_lora_training.py": ("training.lora",),
    "tests/integration/test_forgetting.py": ("training.more_data",),
    "tests/integration/test_dpo.py": ("commands.compute_reference", "training.reference"),
    "tests/integration/test_reward.py": ("training.state_dict",),
    "tests/integration/test_convert.py": (
        "commands.verify_checkpoint", "convert.logits", "convert.transformers_model", "convert.verify_worker",
    ),
    "tests/integration/test_inference.py": ("inference.likelihoods", 
        "inference.cache", "inference.model", "inference.processes", "inference.scoring", "inference.worker",
    ),
    "tests/inference/test_vllm_engine.py": ("inference.lifeline",),
    "tests/inference/test_vllm_worker.py": ("convert.stored",),
    "tests/api/test_servers.py": ("api.servers",),
    "tests/integration/test_chat.py": ("commands.chat", "inference.server"),
    "tests/integration/test_plan.py": ("commands.plan", "plan.dry_run"),
    "tests/integration/test_rejection.py": (
        "commands.rejection_sampling", "rejection.steps.prompts",
    ),
    "tests/corpus/test_builder.py": ("commands.preprocess_data", "corpus.pool"),
    "tests/corpus/test_verify.py": ("commands.verify_corpus",),
    "tests/data/test_sources.py": ("commands.make_documents",),
    "tests/data/test_dialogues.py": (
        "commands.common", "commands.prepare_sft", "data.rejected", "data.report",
    ),
    "tests/data/test_rankings.py": ("commands.prepare_rewards",),
    "tests/data/test_augment.py": ("commands.augment_rewards",),
    "tests/packing/test_dialogues.py": ("commands.pack_sft", "packing.dialogue_worker"),
    "tests/packing/test_rankings.py": ("commands.pack_rewards",),
    "tests/packing/test_show.py": ("commands.show_batch",),
    "tests/text/test_tokenizer.py": ("commands.train_tokenizer",),
    "tests/training/test_curves.py": ("commands.plot_runs",),
    "tests/evaluation/backends/test_chat_model.py": (
        "evaluation.backends.answers_log", "evaluation.backends.chat_model", "inference.openai_engine",
    ),
    "tests/evaluation/readers/test_exams.py": ("evaluation.readers.items",),
    "tests/evaluation/test_run.py": (
        "commands.evaluate", "evaluation.harness_tasks", "evaluation.kinds.answers", "evaluation.kinds.choice",
        "evaluation.kinds.cloze", "evaluation.kinds.kind",
    ),
    "tests/evaluation/test_judged.py": ("evaluation.judged", "evaluation.kinds.rubric"),
    "tests/evaluation/reports/test_report.py": (
        "evaluation.reports.page", "evaluation.reports.paper", "evaluation.reports.plots",
    ),
    "tests/evaluation/reports/test_human.py": ("commands.human_evaluation",),
}  # fmt: skip
"""{test file: the modules that are tested through it, and imported by no test}."""

SHOWN_BY_NO_TEXT = {
    "__main__": "tests/support/fork_server.py runs it as a program in a forked process",
    "commands.human_evaluation": "only its --help is run; what it calls has tests/evaluation/reports/test_human.py",
    "commands.library": "the package imports it when one of its public names is asked for, as tests/test_api.py does",
    "evaluation.kinds.answers": "listed in KINDS, whose tasks tests/evaluation/test_run.py runs",
    "evaluation.kinds.cloze": "listed in KINDS, whose tasks tests/evaluation/test_run.py runs",
    "evaluation.kinds.rubric": "listed in KINDS, whose task tests/evaluation/test_judged.py runs",
    "evaluation.harness_tasks": "named by the YAML files of the tasks, which tests/evaluation/test_run.py runs",
}
"""Why `reached` does not find these."""

NAMED = re.compile(r"\bmegatron_chimed[./](\w+(?:[./]\w+)*)|\b(\w+)\.py\b")


@cache
def known() -> frozenset[str]:
    """The modules of the package (dotted, without the package's name), folders left out, and the pages of data in
    convert/families, which tests/convert/test_families.py goes through."""
    modules = [path for path in python_files("megatron_chimed/") if not path.endswith("/__init__.py")]
    return frozenset(module_name(path) for path in modules if "/convert/families/" not in path)


def imported() -> set[str]:
    """The modules of the package that a file under tests/ imports."""
    return set().union(*(own_modules(read(path), known()) for path in python_files("tests/")))


def reached(test: str) -> set[str]:
    """The modules that a test file imports or names as a program, and those that these import or name in turn."""
    found, seen, todo = set(), set(), {test}
    while todo:
        source = read(todo.pop())
        names = {dotted.replace("/", ".").removesuffix(".py") for dotted, _ in NAMED.findall(source)}
        names |= {f"commands.{program}" for _, program in NAMED.findall(source)}
        modules = (own_modules(source, known()) | names & known()) - found
        found |= modules
        todo |= {f"megatron_chimed/{name.replace('.', '/')}.py" for name in modules}
        helpers = {name for _, full in imports(source) for name in (full, full.rpartition(".")[0])}
        helpers = {f"tests/{name.replace('.', '/')}.py" for name in helpers if name.startswith("support.")}
        todo |= {path for path in helpers if path in files() and path not in seen}
        seen |= helpers
    return found
