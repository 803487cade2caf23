"""What the blocks of the documents need before them and what is changed in them, each run on what those before made.

The raw data are those of the quickstart's synthetic world and small files in the published formats; a small random
model stands for the published one. Only what stands in STEPS is another than in the block: four steps of training.
"""

import csv
import shutil
from pathlib import Path

import yaml
from guards import tree

from megatron_chimed.evaluation.readers.exams import CMMLU_SUBJECTS
from megatron_chimed.evaluation.reports.human import CRITERIA, make_form, ratings_csv
from megatron_chimed.jsonl import read_json_lines, write_json
from support.chat_templates import CHATML, write_chat_tokenizer
from support.console import shell
from support.exam_files import write_ccks, write_ceval, write_cmmlu, write_mcmle
from support.exam_hf import write_answering_hf

SHORT = "--train-iters 4 --lr-decay-iters 4 --lr-warmup-iters 1 --eval-iters 1"
STAGE = "examples/quickstart/pretrain.yaml"
CORPUS = "--train-data-path runs/ziya2-corpus_text_document --valid-data-path runs/ziya2-corpus_text_document"


def copy(clone: Path, source: str, target: str) -> None:
    """Put what one block has made where another looks for it."""
    (clone / target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(clone / source, clone / target, dirs_exist_ok=True)


def raw_data(clone: Path) -> None:
    """The files that the reader has: raw/ and questions.csv."""
    shell("python examples/quickstart/make_world.py --output world --size 0.34", clone)
    world, raw = clone / "world", clone / "raw"
    for source, target in {
        "chimed_train.jsonl": "chimed/train.json",
        "cmd_finetune.jsonl": "cmd/finetune.json",
        "meddialog_train.txt": "meddialog/train.txt",
        "mc_train.dialog": "mc_train.dialog",
        "mc_test.dialog": "mc_test.dialog",
        "chimed_test.jsonl": "chimed_test.jsonl",
        "safety_prompts.json": "safety_prompts.json",
        "cmd_reward.jsonl": "reward.json",
        "exercises.jsonl": "train.jsonl",
    }.items():
        (raw / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world / source, raw / target)
    rows = [(row["instruction"], row["output"]) for _, row in read_json_lines(world / "cmd_finetune.jsonl")]
    with open(raw / "surgery.csv", "w", encoding="gb18030", newline="") as file:
        csv.writer(file).writerows(
            [("department", "title", "ask", "answer"), *(("外科", "问诊", ask, answer) for ask, answer in rows)]
        )
    shutil.copy(raw / "surgery.csv", clone / "questions.csv")
    write_ceval(raw / "ceval")
    write_cmmlu(raw / "cmmlu", list(CMMLU_SUBJECTS))
    write_mcmle(raw / "medqa" / "Mainland")
    write_ccks(raw)
    (raw / "subtask1_test_set_with_answer.json").rename(raw / "test.json")
    for part in raw.glob("subtask1_training_part*.txt"):
        part.rename(raw / part.name.removeprefix("subtask1_"))
    scale = yaml.safe_load((tree.ROOT / "megatron_chimed/evaluation/readers/scales/example.yaml").read_text("utf-8"))
    scale["statements"] *= 40 // len(scale["statements"])
    (raw / "cami.yaml").write_text(yaml.safe_dump(scale, allow_unicode=True), encoding="utf-8")


def pack_dialogues(clone: Path) -> None:
    """runs/mine/train and runs/mine/heldout of runs/mine/dialogues.jsonl, and the model of make demo to start from."""
    lines = (clone / "runs/mine/dialogues.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in {"train": lines[:-20], "heldout": lines[-20:]}.items():
        (clone / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
        shell(
            f"chimed pack sft --input {name}.jsonl --tokenizer tokenizer.model --sequence-length 512 "
            f"--output runs/mine/{name}",
            clone,
        )
    copy(clone, "runs/mine/pretrain", "runs/demo/pretrain")
    copy(clone, "runs/mine/tokenizer", "runs/demo/tokenizer")


def own_dialogues(clone: Path) -> None:
    """dialogues.jsonl and tokenizer.model, as if they were the reader's."""
    shutil.copy(clone / "runs/mine/dialogues.jsonl", clone)
    shutil.copy(clone / "runs/mine/tokenizer/tokenizer.model", clone)


def augmented(clone: Path) -> None:
    """What the augmentation would write, which is asked here for its price alone."""
    (clone / "runs/mine").mkdir(parents=True, exist_ok=True)
    shutil.copy(clone / "world/ranked_train.jsonl", clone / "runs/mine/augmented.jsonl")


def published_model(clone: Path) -> None:
    """A small random model in the place of Ziya2-13B-Base, and a corpus of its tokenizer."""
    write_answering_hf(clone / "Ziya2-13B-Base", 512)
    shutil.copytree(clone / "Ziya2-13B-Base", clone / "runs/demo/hf")
    shell(
        "chimed corpus --input runs/mine/text.jsonl --output-prefix runs/ziya2-corpus --append-eod "
        "--tokenizer-type HuggingFaceTokenizer --tokenizer-model Ziya2-13B-Base",
        clone,
    )


def evaluated_base(clone: Path) -> None:
    """An evaluation of another model to compare with."""
    shell(
        "chimed evaluate --model hf:runs/demo/hf --name base --output runs/base/evaluation --runs 1 --limit 3 "
        "--max-new-tokens 4 --tasks chimed=raw/chimed_test.jsonl mc=raw/mc_test.dialog",
        clone,
    )


def rated(clone: Path) -> None:
    """What two annotators have saved of the form, which the block makes again, the same by its seed."""
    key = make_form([clone / f"runs/{name}/evaluation" for name in ("base", "mine")], clone / "runs/human")
    ratings = dict.fromkeys(key["answers"], dict.fromkeys(CRITERIA, 2))
    write_json(clone / "ratings-a.json", {"form": key["form"], "annotator": "a", "ratings": ratings})
    (clone / "ratings-b.csv").write_text(ratings_csv(key["form"], "b", ratings), encoding="utf-8")


def rewarded(clone: Path) -> None:
    """The two runs of make demo that are drawn."""
    copy(clone, "runs/mine/reward", "runs/demo/reward/four")
    copy(clone, "runs/mine/reward", "runs/demo/reward/two")


def tuned(clone: Path) -> None:
    """The fine-tuned model of make demo."""
    copy(clone, "runs/mine/sft", "runs/demo/sft/run")


def tokenizer_with_template(clone: Path) -> None:
    """The tokenizer of a published model that has a chat template."""
    write_chat_tokenizer(clone / "runs/mine/base/tokenizer", CHATML)


STEPS = {
    "chimed documents --input questions.csv": (raw_data, {"8000": "1000", "--save": f"{SHORT} --save"}),
    "chimed sft-data --source 'chimed=": (None, {}),
    "chimed pack sft --input dialogues.jsonl --tokenizer tokenizer.model": (own_dialogues, {}),
    "chimed pack sft --input dialogues.jsonl --tokenizer runs/mine/base/tokenizer": (tokenizer_with_template, {}),
    "chimed train sft examples/quickstart/model.yaml": (pack_dialogues, {"--save": f"{SHORT} --save"}),
    "chimed reward-data --source cmd=": (augmented, {"3800,100,100": "40,10,10", "4096": "512"}),
    "chimed train reward MODEL.yaml": (
        tuned,
        {"MODEL.yaml": "examples/quickstart/model.yaml", "--save": "--eval-interval 2 --eval-iters 1 --save"},
    ),
    "chimed reference --packed": (
        None,
        {"MODEL.yaml": "examples/quickstart/model.yaml", "--save": "--eval-interval 2 --eval-iters 1 --save"},
    ),
    "chimed plot runs/demo": (rewarded, {}),
    "chimed convert hf-to-megatron --hf Ziya2": (
        published_model,
        {
            "STAGE.yaml": f"examples/quickstart/pretrain.yaml {CORPUS} {SHORT}",
            "runs/mine/pretrain": "runs/mine/further",
        },
    ),
    "--name sft --output runs/mine/evaluation": (
        evaluated_base,
        {" --tasks": " --runs 1 --limit 3 --max-new-tokens 4 --tasks"},
    ),
    "chimed human make": (rated, {}),
    # A server is asked in tests/integration/test_chat.py.
    "chimed chat --model hf:runs/demo/hf ": (None, {"chimed chat --model hf:runs/demo/hf --serve --port 8000": "true"}),
}
"""What a block holds: what makes what it needs, and what is changed in it."""
