"""MedXpertQA's texts: questions in English with up to ten options.

Source: Zuo et al., "MedXpertQA: Benchmarking Expert-Level Medical Reasoning and Understanding", ICML 2025.
"""

from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.readers.exams import by_letter, choice_item, located_rows
from megatron_chimed.evaluation.readers.items import Loaded, load

CUE = "Answer:"
REPEATED = "\nAnswer Choices:"
"""From here on a question repeats its options, which stand in a field of their own."""

ENDINGS = (".jsonl", ".json", ".parquet", ".csv")


def read_medxpertqa(folder: str) -> dict[str, Loaded]:
    """``dev.jsonl`` for examples and ``test.jsonl`` to be answered, in a folder or in its folder Text; or Parquet, by
    names that begin so.

    Rows {"question", "options": {"A": ..., ...}, "label": "C", "question_type", ...}; a group for each type of question
    (reasoning, understanding). Raises InputError.
    """
    root = Path(folder) / "Text" if (Path(folder) / "Text").is_dir() else Path(folder)
    loaded = {}
    for name, split in (("fewshot", "dev"), ("test", "test")):
        paths = [path for path in sorted(root.glob(f"{split}*")) if path.suffix in ENDINGS]
        if len(paths) != 1:
            raise InputError(f"{root}: {len(paths)} files {split}*; expected one, as in MedXpertQA's folder Text")
        loaded[name] = load(located_rows(paths[0]), _question)
    return loaded


def _question(row: dict) -> dict:
    """The item of a row. Raises InputError with the reason."""
    question, options = row.get("question"), row.get("options")
    if isinstance(options, dict):  # a table has all letters in each row, those that a question lacks without a text
        options = {letter: text for letter, text in options.items() if text is not None}
    if isinstance(question, str):
        question = question.partition(REPEATED)[0]
    group = row.get("question_type")
    item = choice_item(question, by_letter(options), row.get("label"))
    return {**item, "group": group if isinstance(group, str) else "", "cue": CUE}
