"""What docs/extend.md says: an example of each, added to a copy of the tree as it is told there, works."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from guards import tree
from support.dialogues import make_dialogues, write_dialogues
from support.forked import ON_CPU
from support.job import MODEL, STAGE, write_corpus

from megatron_chimed.training.runlog import read_log

pytestmark = [pytest.mark.cpu, pytest.mark.real_processes]
DATA = "megatron_chimed/data"
READERS = "megatron_chimed/evaluation/readers"
CATALOG = "megatron_chimed/evaluation/catalog.py"


class Copy:
    """A copy of the tree, to which something is added."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in tree.files():
            if name.startswith(("megatron_chimed/", "tests/", "tools/", "examples/")) or "/" not in name:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tree.ROOT / name, folder / name)

    def add(self, name: str, text: str, before: str = "") -> None:
        """Write a new file, or put lines in front of the one place in a file that begins with `before`."""
        path = self.folder / name
        old = path.read_text(encoding="utf-8") if before else ""
        assert not before or old.count(before) == 1, f"{name} has not one {before!r}"
        path.write_text(old.replace(before, text + before) if before else text, encoding="utf-8")

    def run(self, *words: object) -> str:
        """What a Python of the copy prints. Fails with what it said."""
        variables = os.environ | ON_CPU | {"PYTHONPATH": f"{self.folder}:{self.folder}/tests", "NPROC": "1"}
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{words}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def chimed(self, *words: object) -> str:
        """The same of a command."""
        return self.run("-m", "megatron_chimed", *words)

    def test(self, *words: object) -> str:
        """What tests of the copy print."""
        return self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *words)


@pytest.fixture
def copy(tmp_path) -> Copy:
    return Copy(tmp_path / "copy")


def write_lines(path: Path, rows: list[dict]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


PAGE = """
\"\"\"Seed-OSS as it was published: biases of query, key and value.\"\"\"

from megatron_chimed.convert.families import blocks
from megatron_chimed.convert.family import Family

SEED_OSS = Family(
    name="seed_oss",
    title="Seed-OSS",
    architectures={"SeedOssForCausalLM": "lm", "SeedOssForSequenceClassification": "reward"},
    body=blocks.body(*blocks.attention(qkv_bias=True), *blocks.mlp()),
    heads=blocks.HEADS,
    stateful=blocks.STATEFUL,
    fixed_args=blocks.PLAIN_ARGS | {"add_qkv_bias": True},
    fixed_hf_keys={
        "hidden_act": "silu", "attention_bias": True, "attention_out_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "residual_dropout": 0.0, "pretraining_tp": 1,
    },
    hf_defaults={"max_position_embeddings": 524288, "num_key_value_heads": 8, "head_dim": 128, "attention_dropout": 0.1,
                 "residual_dropout": 0.1},
    written_hf_keys=("attention_bias", "attention_out_bias", "mlp_bias", "residual_dropout"),
)
"""
CASE = """
    "seed_oss one group": (
        "SeedOss", {"num_key_value_heads": 1, "head_dim": 20, "attention_dropout": 0.0, "residual_dropout": 0.0}
    ),
"""
THERE_AND_BACK = """
import json, sys
from pathlib import Path
from support.families import write_case
from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.verify import verify
folder = Path(sys.argv[1])
write_case(folder / "hf", "seed_oss one group")
hf_to_megatron(folder / "hf", folder / "megatron", progress=False)
megatron_to_hf(folder / "megatron", folder / "back", progress=False)
architectures = json.loads((folder / "back/config.json").read_text())["architectures"]
print(architectures, verify(folder / "back", folder / "megatron").passed)
"""


def test_a_model_family(copy, tmp_path):
    pages = "megatron_chimed/convert/families"
    copy.add(f"{pages}/seed_oss.py", PAGE.lstrip("\n"))
    place = f"from {pages.replace('/', '.')}.qwen3 import"
    copy.add(f"{pages}/__init__.py", f"from {pages.replace('/', '.')}.seed_oss import SEED_OSS\n", before=place)
    copy.add(f"{pages}/__init__.py", "SEED_OSS, ", before="QWEN3_MOE)\n")
    copy.add("tests/support/families.py", CASE.lstrip("\n"), before='    "llama linear": (')
    said = copy.test("-rp", "-k", "seed", "tests/convert/test_families.py", "tests/convert/test_architecture.py")
    assert said.count("PASSED") >= 5 and "failed" not in said

    assert copy.run("-c", THERE_AND_BACK, tmp_path) == "['SeedOssForCausalLM'] True\n"
    blocks = yaml.safe_load((tmp_path / "megatron/model.yaml").read_text())
    assert blocks["chimed"] == {"family": "seed_oss"}  # Megatron's arguments are those of Qwen2


READER = """
def pair_turns(row: dict) -> Turns:
    "An example."
    question, answer = text_of(row, "q"), text_of(row, "a")
    if not answer:
        raise Unanswered("no answer")
    return [("user", question), ("assistant", answer)]


"""


def test_a_source_of_dialogues(copy, tmp_path):
    copy.add(f"{DATA}/dialogue_readers.py", READER.lstrip("\n"), before="READERS = {")
    copy.add(
        f"{DATA}/dialogue_readers.py", '    "pair": Reader(read_rows, pair_turns),\n', before='    "safety": Reader('
    )
    rows = [{"q": f"头痛{day}天怎么办？", "a": f"休息{day}天，多喝温水。"} for day in range(2, 12)]
    write_lines(tmp_path / "rows.jsonl", [*rows, {"q": "咳嗽怎么办？", "a": ""}, {"q": "发热怎么办？"}])
    output = tmp_path / "dialogues.jsonl"
    copy.chimed("sft-data", "--source", f"pair={tmp_path}/rows.jsonl", "--output", output, "--max-rejected-share", 0.5)
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [[turn["text"] for turn in row["turns"]] for row in found] == [[row["q"], row["a"]] for row in rows]
    reasons = [json.loads(line)["reason"] for line in output.with_suffix(".rejected.jsonl").read_text().splitlines()]
    assert reasons == ["no answer", "missing key: 'a'"]

    formats = "tests/support/sft_sources.py"  # "Then give it a name and a file": the tests of formats take it up
    copy.add(formats, '    "pair": "pairs.jsonl",\n', before='    "safety": "safety.json", "sharegpt"')
    copy.add(formats, '        "pair": [{"q": q, "a": a} for q, a in pairs],\n', before='        "multi_turn": [\n')
    said = copy.test("-rp", "-k", "pair", "tests/data/test_dialogue_readers.py", "tests/data/test_hostile_inputs.py")
    assert "[pair]" in said and "passed" in said and "failed" not in said


def test_a_template(copy, tmp_path):
    (tmp_path / "template.yaml").write_text('name: vicuna\nuser_prefix: "USER: "\nuser_suffix: " ASSISTANT: "\n')
    write_dialogues(tmp_path / "dialogues.jsonl", make_dialogues(20))
    words = ("--sequence-length", 64, "--workers", 0, "--tokenizer", tmp_path / "tokenizer/tokenizer.model")
    texts = [{"text": turn.text} for dialogue in make_dialogues(80) for turn in dialogue.turns]
    write_lines(tmp_path / "texts.jsonl", texts)
    copy.chimed(
        "tokenizer", "--input", tmp_path / "texts.jsonl", "--vocab-size", 400, "--output", tmp_path / "tokenizer"
    )
    pack = ("pack", "sft", "--input", tmp_path / "dialogues.jsonl", *words)
    copy.chimed(*pack, "--template", tmp_path / "template.yaml", "--output", tmp_path / "packed")
    copy.chimed(*pack, "--output", tmp_path / "released")
    shown, released = (copy.chimed("show", tmp_path / name, "--row", 0) for name in ("packed", "released"))
    assert "USER:" in shown and "ASSISTANT:" in shown and "[human]" not in shown
    assert "[human]" in released and "USER:" not in released


TASK = """
def read_pairs(path: str) -> dict[str, Loaded]:
    "An example."
    rows = ((f"{path}:{line}", row) for line, row in READERS["cmd"].rows(path))
    return {"test": load(rows, lambda row: _answers([("user", row["q"]), ("assistant", row["a"])]))}


"""
ORACLE = """
import sys
from support.exam_models import empty, oracle, scripted
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.text.template import Template
for number, model in enumerate((oracle(), empty())):
    results = evaluate_model(
        scripted(model), [sys.argv[1]], f"{sys.argv[2]}/{number}", Settings(), Template(), progress=False
    )
    task = results["tasks"]["pairs"]
    print(task["n"], {figure["mean"] for figure in task["metrics"].values()})
"""


def test_a_task_of_evaluation(copy, tmp_path):
    copy.add(f"{READERS}/answers.py", TASK.lstrip("\n"), before="def _rows(")
    place = "from megatron_chimed.evaluation.readers.answers import "
    copy.add(CATALOG, f"{place}read_pairs\n", before=place)
    source = '    "pairs": Source("Pairs", "FILE", lambda path, subject: read_pairs(path)),\n'
    copy.add(CATALOG, source, before='    "cami": Source(')
    entry = '    "pairs": Task("pairs", "answers", "Pairs, zero-shot", "chimed_pairs", "请回答。\\n", "pairs"),\n'
    copy.add(CATALOG, entry, before='    "mc": Task(')
    copy.run("-m", "megatron_chimed.evaluation.task_files")
    assert "chimed_pairs" in (copy.folder / "megatron_chimed/evaluation/tasks/pairs.yaml").read_text()
    write_lines(tmp_path / "pairs.jsonl", [{"q": f"头痛{day}天？", "a": f"休息{day}天，多喝水。"} for day in range(3)])
    assert copy.run("-c", ORACLE, f"pairs={tmp_path}/pairs.jsonl", tmp_path / "out") == "3 {100.0}\n3 {0.0}\n"


OPTIONS = """
@dataclass(frozen=True)
class WeightedConfig:
    "An example."

    weight: float = 1.0
    "Of the loss."


"""
MODULE = """
from functools import partial

from megatron_chimed.models.gpt import build_gpt
from megatron_chimed.stages import pretrain
from megatron_chimed.stages.options import PretrainConfig
from megatron_chimed.stages.stage import Stage


def build_datasets(config, request):
    return pretrain.build_datasets(PretrainConfig(), request)


def times(loss, weight, output):
    total, count, report = loss(output)
    return weight * total, count, {name: figure * figure.new_tensor([weight, 1]) for name, figure in report.items()}


def forward_step(config, batches, model, facts):
    output, loss = pretrain.forward_step(PretrainConfig(), batches, model, facts)
    return output, partial(times, loss, config.weight)


STAGE = Stage("weighted", build_datasets, build_gpt, forward_step)
"""


def test_a_stage(copy, tmp_path):
    options, trainer = "megatron_chimed/stages/options.py", "megatron_chimed/training/trainer.py"
    copy.add(options, OPTIONS.lstrip("\n"), before="STAGES: dict")
    copy.add(options, '"weighted": WeightedConfig, ', before='"pretrain": PretrainConfig')
    copy.add("megatron_chimed/stages/weighted.py", MODULE)
    copy.add(
        trainer, "from megatron_chimed.stages import weighted\n", before="from megatron_chimed.stages.stage import"
    )
    copy.add(trainer, "weighted, ", before="pretrain_stage, sft")
    corpus = write_corpus(tmp_path)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"megatron": MODEL}))
    stage = {"megatron": STAGE | {"train-iters": 2, "eval-iters": 0}}
    losses = {}
    for name, block in {"weighted": {"weight": 2.0}, "pretrain": {}}.items():
        yaml_file, run = tmp_path / f"{name}.yaml", tmp_path / f"run-{name}"
        yaml_file.write_text(yaml.safe_dump(stage | {"chimed": block}))
        copy.chimed("train", name, tmp_path / "model.yaml", yaml_file, "--data-path", corpus, "--save", run)
        losses[name] = float(read_log(run / "loss.csv")[0]["value"])
        assert f"stage {name}:" in copy.chimed("plan", tmp_path / "model.yaml", yaml_file, "--gpus", 1)
    assert losses["weighted"] == pytest.approx(2 * losses["pretrain"], rel=1e-6)
