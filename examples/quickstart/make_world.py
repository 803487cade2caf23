"""Write the synthetic medical world: raw files in the formats of the paper's sources, and test sets with gold answers.

Example:
    python examples/quickstart/make_world.py --output runs/demo/world --seed 0 --size 1.0

The same seed, size and dirt give the same bytes on every machine. All diseases, drugs and their relations are
invented: nothing in these files is medical knowledge. facts.json holds the facts, world.json the list of files with
their formats, row counts and hashes; it is written last.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import yaml
from attitudes import attitude_exercises, scale
from dirt import add_dirt
from documents import make_documents
from exams import COLUMNS, SUBJECTS, choice_exercises, entity_exercises, multiple_choice, ner_sentences
from recall import recall_dialogues
from sources import (
    HELD_OUT,
    SFT_GRADE_WEIGHTS,
    TRAIN,
    chimed,
    cmd_finetune,
    cmd_reward,
    dialogues,
    gold_questions,
    mc_dialog,
    meddialog,
    questions_of_split,
    ranked,
    safety_prompts,
    training_questions,
)
from world import DISEASES_AT_SIZE_1, World, build_world, world_to_json

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.jsonl import atomic_output, manifest, sha256_file, write_json, write_json_lines

ROWS_AT_SIZE_1 = {
    "cmd_finetune": 1000, "chimed": 600, "choice": 500, "mc_train": 240, "mc_test": 48, "meddialog": 120, "safety": 160,
    "ranked_train": 320, "chimed_test": 120, "ranked_held_out": 120, "ner_train": 640, "ner_dev": 40, "ner_test": 120,
    "recall_train": 480, "recall_test": 120,
}  # fmt: skip


class Writer:
    """Writes files below one folder and remembers format and number of rows of each."""

    def __init__(self, output: Path):
        self.output, self.files = output, {}

    def lines(self, name: str, layout: str, rows: Iterable[dict]) -> None:
        """JSON lines."""
        self.files[name] = {"format": layout, "rows": write_json_lines(self.output / name, rows)}

    def text(self, name: str, layout: str, blocks: Iterable[str]) -> None:
        """Blocks of text one after the other."""
        with atomic_output(self.output / name) as file:
            count = sum(bool(file.write(block)) for block in blocks)
        self.files[name] = {"format": layout, "rows": count}

    def json(self, name: str, layout: str, content: dict, rows: int) -> None:
        """One JSON value that holds so many rows."""
        write_json(self.output / name, content)
        self.files[name] = {"format": layout, "rows": rows}

    def yaml(self, name: str, layout: str, content: dict, rows: int) -> None:
        """One YAML mapping that holds so many rows."""
        with atomic_output(self.output / name) as file:
            yaml.safe_dump(content, file, allow_unicode=True, sort_keys=False)
        self.files[name] = {"format": layout, "rows": rows}

    def csv(self, name: str, layout: str, rows: list[dict]) -> None:
        """A CSV file with a header."""
        with atomic_output(self.output / name) as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        self.files[name] = {"format": layout, "rows": len(rows)}


def write_world(output: str | Path, seed: int = 0, size: float = 1.0, dirt: float = 0.02) -> dict:
    """Write all files and world.json into a folder; returns the manifest.

    size: 1.0 gives 24 diseases and about 2 MB of documents, and both grow with it; dirt: share of soiled rows in the
    documents and the single-turn sources. Raises InputError if size or dirt is out of range.
    """
    if not 0 <= dirt <= 0.5:
        raise InputError(f"--dirt {dirt}: expected a share from 0 to 0.5")
    world = build_world(seed, size)
    scale = len(world.diseases) / DISEASES_AT_SIZE_1
    rows = {name: max(8, round(number * scale)) for name, number in ROWS_AT_SIZE_1.items()}
    writer = Writer(Path(output))
    writer.json("facts.json", "the facts of every disease", world_to_json(world), len(world.diseases))
    _write_documents(writer, world, dirt)
    _write_finetuning(writer, world, dirt, rows)
    _write_ranked(writer, world, rows)
    _write_tests(writer, world, rows)
    content = manifest(
        made_by="examples/quickstart/make_world.py",
        rows=sum(file["rows"] for file in writer.files.values()),
        sha256={name: sha256_file(writer.output / name) for name in writer.files},
        parents={"seed": seed, "size": size, "dirt": dirt},
        dropped={},
        files=writer.files,
        sft_grade_weights=SFT_GRADE_WEIGHTS,
    )
    write_json(writer.output / "world.json", content)
    return content


def _dirty(world: World, name: str, rows: Iterable[dict], share: float, field: str) -> Iterable[dict]:
    """Rows with dirt in one text field."""
    return add_dirt(world.stream("dirt", name), rows, share, field)


def _write_documents(writer: Writer, world: World, dirt: float) -> None:
    """Documents for pre-training."""
    layout = 'CMD (Pre-train): {"text"}'
    documents = ({"text": text} for text in make_documents(world))
    writer.lines("pretrain_train.jsonl", layout, _dirty(world, "documents", documents, dirt, "text"))
    held_out = ({"text": text} for text in make_documents(world, held_out=True))
    writer.lines("pretrain_heldout.jsonl", layout, held_out)


def _write_finetuning(writer: Writer, world: World, dirt: float, rows: dict[str, int]) -> None:
    """The sources for supervised fine-tuning, and what is held out of two of them."""
    cmd, pages = training_questions(world, (rows["cmd_finetune"], rows["chimed"]), "fine-tuning")
    layout = 'CMD (SFT): {"instruction", "input", "output"}'
    writer.lines("cmd_finetune.jsonl", layout, _dirty(world, "cmd", cmd_finetune(world, cmd), dirt, "output"))
    layout = 'ChiMed pages: {"title", "question_content", "labels", "answers": [{"adopted", "recommended", "answer"}]}'
    soiled = _dirty(world, "chimed", chimed(world, pages, TRAIN), dirt, "question_content")
    writer.lines("chimed_train.jsonl", layout, soiled)
    unseen = questions_of_split(world, "test")
    world.stream("chimed test").shuffle(unseen)
    writer.lines("chimed_test.jsonl", layout, chimed(world, unseen[: rows["chimed_test"]], ("test",)))
    layout = "MC .dialog: header, P and D lines with label, SUM1, SUM2.0, blank line; separated by tabs"
    writer.text("mc_train.dialog", layout, mc_dialog(dialogues(world, "mc_train", rows["mc_train"], TRAIN)))
    writer.text("mc_test.dialog", layout, mc_dialog(dialogues(world, "mc_test", rows["mc_test"], HELD_OUT)))
    layout = "MedDialog raw text: id=, Doctor faculty, Description, Dialogue with 病人： and 医生："
    writer.text("meddialog_train.txt", layout, meddialog(dialogues(world, "meddialog", rows["meddialog"], TRAIN)))
    safe = safety_prompts(world, rows["safety"])
    layout = 'Safety-Prompts: {category: [{"prompt", "response", "type"}]}'
    writer.json("safety_prompts.json", layout, safe, sum(map(len, safe.values())))


def _write_ranked(writer: Writer, world: World, rows: dict[str, int]) -> None:
    """Ranked answers for the reward model, and the accepted and rejected ones of the same questions."""
    (questions,) = training_questions(world, (rows["ranked_train"],), "reward")
    train = list(ranked(world, questions, "train", TRAIN))
    layout = '{"question", "responses", "ranks"}: rank 0 is best'
    writer.lines("ranked_train.jsonl", layout, train)
    for split in HELD_OUT:
        unseen = questions_of_split(world, split)
        world.stream("ranked", split, "order").shuffle(unseen)
        unseen = unseen[: rows["ranked_held_out"]]
        writer.lines(f"ranked_{split}.jsonl", layout, ranked(world, unseen, split, (*TRAIN, split)))
    layout = 'CMD (Reward): {"question", "response_chosen", "response_rejected"}'
    writer.lines("cmd_reward.jsonl", layout, cmd_reward(train))


def _write_tests(writer: Writer, world: World, rows: dict[str, int]) -> None:
    """Held-out questions, named entities, multiple choice and a bias scale; exercises in the last three."""
    for split in HELD_OUT:
        layout = '{"id", "question", "answer", "disease", "facet", "facts": {name: value}}'
        writer.lines(f"questions_{split}.jsonl", layout, gold_questions(world, split))
    counts = {split: rows[f"ner_{split}"] for split in ("train", "dev", "test")}
    sentences = ner_sentences(world, counts)
    for split in sentences:
        layout = 'CCKS-2019: {"originalText", "entities": [{"label_type", "start_pos", "end_pos"}]}, end exclusive'
        writer.lines(f"ner_{split}.jsonl", layout, sentences[split])
    for subject in SUBJECTS:
        for split in ("dev", "test"):
            name = f"multiple_choice/{split}/{subject}_{split}.csv"
            writer.csv(name, f"C-Eval CSV: {','.join(COLUMNS)}", list(multiple_choice(world, subject, split)))
    for part, splits in (("train", TRAIN), ("test", HELD_OUT)):
        layout = '{"messages", "options": four answers, "answer": which is right}'
        writer.lines(f"recall_{part}.jsonl", layout, recall_dialogues(world, part, rows[f"recall_{part}"], splits))
    attitudes = scale(world)
    writer.yaml("scale.yaml", "a bias scale", attitudes, len(attitudes["statements"]))
    exercises = [
        *attitude_exercises(world),
        *entity_exercises(world, sentences["train"]),
        *choice_exercises(world, rows["choice"]),
    ]
    writer.lines("exercises.jsonl", 'CMD (SFT): {"instruction", "input", "output"}', exercises)


def main() -> int:
    """Parse the arguments, write the world, say what was written."""
    epilog = "example:\n    python examples/quickstart/make_world.py --output runs/demo/world --seed 0 --size 1.0"
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog=epilog, formatter_class=raw)
    parser.add_argument("--output", type=Path, required=True, help="folder for the files; made if it is missing")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole world (default 0)")
    parser.add_argument("--size", type=float, default=1.0, help="1.0: 24 diseases, 2 MB of documents (default)")
    parser.add_argument("--dirt", type=float, default=0.02, help="share of soiled rows (default 0.02)")
    arguments = parser.parse_args()
    content = write_world(arguments.output, arguments.seed, arguments.size, arguments.dirt)
    for name, file in content["files"].items():
        print(f"{name:50}{file['rows']:7,} rows  {(arguments.output / name).stat().st_size:10,} bytes")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
