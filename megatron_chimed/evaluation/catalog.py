"""The tasks by the names that --tasks takes: where the data comes from, its kind, its metrics, its name in lm-eval."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.readers.answers import read_chimed, read_mc
from megatron_chimed.evaluation.readers.bias import read_scale
from megatron_chimed.evaluation.readers.cmb import read_cmb, read_cmb_clin
from megatron_chimed.evaluation.readers.cmexam import read_cmexam
from megatron_chimed.evaluation.readers.entities import read_ccks2019, read_columns
from megatron_chimed.evaluation.readers.exams import (
    CEVAL_SUBJECTS,
    CMMLU_SUBJECTS,
    ONE,
    read_ceval,
    read_cmmlu,
    read_mcmle,
)
from megatron_chimed.evaluation.readers.healthbench import read_healthbench
from megatron_chimed.evaluation.readers.items import Loaded
from megatron_chimed.evaluation.readers.medxpertqa import read_medxpertqa
from megatron_chimed.evaluation.readers.promptcblue import DATASETS, read_promptcblue


@dataclass(frozen=True)
class Source:
    """A data set. read: (path, subject or part) -> {"test", "fewshot"}; subjects: name -> Chinese name, for exams in
    parts that are one task together. A part is a task of its own (`Task.part`); "" is the whole set.

    files: what `NAME=PATH` expects, for a message.
    """

    title: str
    files: str
    read: Callable[[str, str], dict[str, Loaded]]
    subjects: dict[str, str] | None = None


SOURCES = {
    "ccks2019": Source("CCKS-2019", "TEST,EXAMPLES", lambda path, subject: read_ccks2019(path)),
    "chimst": Source("ChiMST", "TEST,EXAMPLES", lambda path, subject: read_columns(path)),
    "ceval": Source("C-Eval", "FOLDER", read_ceval, CEVAL_SUBJECTS),
    "cmmlu": Source("CMMLU", "FOLDER", read_cmmlu, CMMLU_SUBJECTS),
    "mcmle": Source("MedQA (MCMLE)", "FOLDER", lambda path, subject: read_mcmle(path)),
    "cmb": Source("CMB-Exam", "FOLDER", read_cmb),
    "cmexam": Source("CMExam", "FOLDER", read_cmexam),
    "medxpertqa": Source("MedXpertQA", "FOLDER", lambda path, subject: read_medxpertqa(path)),
    "chimed": Source("ChiMed", "FILE", lambda path, subject: read_chimed(path)),
    "mc": Source("MC", "FILE", lambda path, subject: read_mc(path)),
    "cmbclin": Source("CMB-Clin", "FILE or FOLDER", lambda path, subject: read_cmb_clin(path)),
    "promptcblue": Source("PromptCBLUE", "TEST,EXAMPLES", read_promptcblue),
    "healthbench": Source("HealthBench", "FILE", lambda path, subject: read_healthbench(path)),
    "cami": Source("CAMI", "SCALE.yaml", lambda path, subject: read_scale(path, "cami")),
    "mica": Source("MICA", "SCALE.yaml", lambda path, subject: read_scale(path, "mica")),
    "scale": Source("Scale", "SCALE.yaml or the word example", lambda path, subject: read_scale(path)),
}


@dataclass(frozen=True)
class Task:
    """What is measured on a source. kind: of `kinds.KINDS`; harness: its name in lm-eval; description: stands in front
    of each prompt, with {subject}; file: the name of its file in tasks/; percent: scores are shown times 100; part: of
    the source, where it is not all of it; main: the metric that stands for it, where it is not its kind's."""

    source: str
    kind: str
    title: str
    harness: str
    description: str = ""
    file: str = ""
    percent: bool = True
    part: str = ""
    main: str = ""

    @property
    def main_metric(self) -> str:
        """The metric that stands for it in plots, in tables of its parts and in comparisons."""
        return self.main or KINDS[self.kind].main

    @property
    def likelihood(self) -> bool:
        """Whether it needs a model that gives likelihoods, which chat APIs do not."""
        return KINDS[self.kind].likelihood


CHOICE_KINDS = (
    ("", "choice", "Multiple choice by likelihood of the letter, five-shot"),
    ("_cloze", "cloze", "Multiple choice by likelihood of the option's text, five-shot"),
    ("_letter", "letter", "Multiple choice by generated letter, five-shot"),
)
EXAMS = {  # (what is asked, how it ends where options are shown)
    "ceval": ("以下是中国关于{subject}的单项选择题", "，请选出其中的正确答案。"),
    "cmmlu": ("以下是关于{subject}的单项选择题", "，请直接给出正确答案的选项。"),
    "mcmle": ("以下是中国医师资格考试的单项选择题", "，请选出其中的正确答案。"),
}


def _exam(name: str, suffix: str, kind: str, title: str) -> Task:
    """One of the three ways in which an exam is taken."""
    about, shown = EXAMS[name]
    ending = "及其正确答案。" if kind == "cloze" else shown
    return Task(name, kind, title, f"chimed_{name}{suffix}", f"{about}{ending}\n\n", f"{name}{suffix}")


SEVERAL_EXAMS = {"cmb": "以下是中国医学考试的选择题", "cmexam": "以下是中国国家医师资格考试的选择题"}
"""What is asked in exams of which some questions have several right letters."""


def _several(name: str) -> dict[str, Task]:
    """Such an exam: all of it by generated letters, and what has one right letter by likelihood too."""
    about = SEVERAL_EXAMS[name]
    tasks = {}
    for suffix, kind, title in CHOICE_KINDS[:2]:
        ending = "及其正确答案。" if kind == "cloze" else "，请选出其中的正确答案。"
        file, title = name + suffix, f"{title}, questions with one right letter"
        tasks[file] = Task(name, kind, title, f"chimed_{file}", f"{about}{ending}\n\n", file, part=ONE)
    file, title = f"{name}_letters", "Multiple choice by generated letters, all right ones and no other, five-shot"
    ending = "，每题有一个或多个正确答案，请写出所有正确答案的选项。"
    return tasks | {file: Task(name, "letters", title, f"chimed_{file}", f"{about}{ending}\n\n", file)}


def _medxpertqa(suffix: str, kind: str, title: str) -> Task:
    """One of the three ways in which MedXpertQA is taken."""
    ending = "with their answers" if kind == "cloze" else "with answers; write the letter of the right option"
    description = f"The following are medical questions {ending}.\n\n"
    return Task("medxpertqa", kind, title, f"chimed_medxpertqa{suffix}", description, f"medxpertqa{suffix}")


MACRO = ("CHIP-CTC", "IMCS-V2-DAC", "KUAKE-QIC")
"""PromptCBLUE's data sets whose own metric is the macro-F1; that of its other classifications is weighted by class."""


def _promptcblue(dataset: str, kind: str) -> Task:
    """One of PromptCBLUE's sixteen, by its own metric."""
    file = "promptcblue_" + dataset.lower().replace("-v2", "").replace("-", "_")
    shots = "zero-shot" if KINDS[kind].zero_shot else "five-shot"
    main = "f1_macro" if dataset in MACRO else ""
    return Task("promptcblue", kind, f"{dataset}, {shots}", f"chimed_{file}", "", file, part=dataset, main=main)


TASKS = {
    "ccks2019": Task("ccks2019", "entities", "Named entities, five-shot", "chimed_ccks2019", file="ccks2019"),
    "chimst": Task("chimst", "entities", "Named entities, five-shot", "chimed_chimst", file="chimst"),
    **{name + one[0]: _exam(name, *one) for name in EXAMS for one in CHOICE_KINDS},
    **{task: one for name in SEVERAL_EXAMS for task, one in _several(name).items()},
    **{"medxpertqa" + one[0]: _medxpertqa(*one) for one in CHOICE_KINDS},
    **{task.file: task for task in (_promptcblue(*one) for one in DATASETS.items())},
    "chimed": Task(
        "chimed",
        "answers",
        "Open questions, zero-shot",
        "chimed_qa",
        "假设你是一名医生，请回答患者的问题。\n",
        "qa",
    ),
    "mc": Task("mc", "answers", "Dialogues, zero-shot", "chimed_mc", file="mc"),
    "cmbclin": Task("cmbclin", "answers", "Clinical cases, zero-shot", "chimed_cmbclin", file="cmbclin"),
    "healthbench": Task("healthbench", "rubric", "Rubrics, zero-shot", "chimed_healthbench", file="healthbench"),
    **{
        name: Task(name, "scale", "Bias scale, zero-shot (higher is more biased)", f"chimed_{name}", "", name, False)
        for name in ("cami", "mica", "scale")
    },
}


@cache
def read_source(name: str, path: str, subject: str = "") -> dict[str, Loaded]:
    """The items of a source; `subject` where it has subjects, or the part of a task. Raises InputError."""
    return SOURCES[name].read(path, subject)


def parse_tasks(flags: list[str]) -> dict[str, str]:
    """{source: path} of flags ``NAME=PATH``. Raises InputError for an unknown name, a missing path, a name given twice.

    >>> parse_tasks(["ceval=exams"])
    {'ceval': 'exams'}
    """
    paths: dict[str, str] = {}
    known = "; ".join(f"{name}={source.files}" for name, source in SOURCES.items())
    for flag in flags:
        name, equals, path = flag.partition("=")
        if name not in SOURCES or not equals or not path:
            raise InputError(f"--tasks {flag}: expected NAME=PATH, one of {known}")
        if name in paths:
            raise InputError(f"--tasks {flag}: {name} is given twice")
        paths[name] = path
    return paths
