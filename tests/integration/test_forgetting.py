"""Validation sets by name and replay, by real trainings: what is measured, what is stopped, and what is left alone."""

import json

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from support.checkpoints import write_hf
from support.dialogues import make_dialogues, make_renderer, write_dialogues
from support.job import Job, figures, write_corpus

from megatron_chimed.checkpoints import latest_iteration
from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.jsonl import sha256_file
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.training.run_record import read_attempts

NEW_IDS = 100  # of the corpus that is trained on: a model that learns it gives the ids above to no token
DROPOUT = {"attention-dropout": 0.1, "hidden-dropout": 0.1}
HARD = {"bf16": True, "use-distributed-optimizer": True, "tensor-model-parallel-size": 2}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """(new text, which is trained on; general text with other ids, whose loss rises then)."""
    folder = tmp_path_factory.mktemp("corpora")
    return write_corpus(folder, ids=NEW_IDS), write_other(folder)


def write_other(folder):
    """A corpus of ids that the other one does not have, counting on likewise."""
    prefix, random = folder / "general_text_document", np.random.default_rng(1)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for _ in range(30):
        length = int(random.integers(20, 120))
        tokens = NEW_IDS + (int(random.integers(150)) + np.arange(length)) % 150
        builder.add_document(tokens.tolist(), [length])
    builder.finalize(f"{prefix}.idx")
    files = [prefix.with_name(f"{prefix.name}.{suffix}") for suffix in ("bin", "idx")]
    sizes = {"bytes": {file.name: file.stat().st_size for file in files}}
    manifest = sizes | {"sha256": {file.name: sha256_file(file) for file in files}, "vocab_size": 250}
    (folder / "general.manifest.json").write_text(json.dumps(manifest))
    return prefix


def make_job(folder, corpora, chimed=None, model=None, **stage) -> Job:
    new, general = map(str, corpora)
    sets = {"valid": {"general": general, "new": new}, "valid_rows": 11}
    return Job(folder, model, {"data-path": new, "lr": 1e-2} | stage, sets | (chimed or {}))


def record_of(save) -> dict:
    return json.loads((save / "forgetting.json").read_text())


def losses(save, name="lm loss general", split="valid") -> dict[int, float]:
    return {int(iteration): float(value) for iteration, value, _ in figures(save, split, name)}


def failed(job, *overrides, ranks=1) -> tuple[int, str]:
    """(exit code, what was said)."""
    before = len(job.output()) if (job.folder / "output.txt").exists() else 0
    code = job.start(*overrides, ranks=ranks).wait(200)
    return code, job.output()[before:]


def test_named_sets_are_measured_before_and_after_and_the_training_is_the_one_without_them(tmp_path, corpora):
    job = make_job(tmp_path, corpora, model=DROPOUT, **HARD)
    output = job.run("--save", tmp_path / "with", "--train-iters", 7)
    plain = Job(tmp_path / "plain", DROPOUT, {"data-path": str(corpora[0]), "lr": 1e-2} | HARD)
    plain.run("--save", tmp_path / "without", "--train-iters", 7)
    for split, rows in (("train", 7), ("valid", 1), ("final_valid", 1)):
        found = figures(tmp_path / "with", split)
        assert found == figures(tmp_path / "without", split) and len(found) == rows
    content = record_of(tmp_path / "with")
    for name in ("general", "new"):
        seen, one = losses(tmp_path / "with", f"lm loss {name}"), content["sets"][name]
        assert list(seen) == [0, 5] and one["before_iteration"] == 0 and one["rows"] == 11
        at_end = losses(tmp_path / "with", f"lm loss {name}", "final_valid")
        assert (one["before"], one["after"]) == pytest.approx((seen[0], at_end[7]), rel=1e-6)
        assert one["low"] < one["difference"] < one["high"]
        assert f"valid set {name}: lm loss {one['before']:.4f} before, {one['after']:.4f} after" in output
    assert content["iteration"] == 7
    assert content["sets"]["general"]["low"] > 0 > content["sets"]["new"]["high"]
    assert {one["path"] for one in read_attempts(tmp_path / "with")[0]["data"]} == set(map(str, corpora))


def test_every_layout_gives_the_same_losses_of_each_row(tmp_path, corpora):
    layouts = {
        "one": (1, []),
        "rows": (1, ["--micro-batch-size", 1]),
        "dp": (2, []),
        "gathered": (2, ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]),
        "tp": (2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
        "pp": (2, ["--pipeline-model-parallel-size", 2]),
    }
    job, found = make_job(tmp_path, corpora, lr=1e-3), {}  # layouts draw initial weights of their own
    job.run("--save", tmp_path / "start", "--train-iters", 1, ranks=1)
    steps = ["--load", tmp_path / "start", "--finetune", "--train-iters", 3, "--eval-interval", 2]
    for name, (ranks, layout) in layouts.items():
        job.run(*steps, "--save", tmp_path / name, *layout, ranks=ranks)
        found[name] = record_of(tmp_path / name)["sets"]["general"]
    for name, one in found.items():
        assert one["counts"] == found["one"]["counts"] and len(one["counts"]) == 11
        for key in ("sums_before", "sums_after"):
            exact = name in ("dp", "rows") and key == "sums_before"
            assert one[key] == pytest.approx(found["one"][key], rel=0 if exact else 1e-5), (name, key)
    assert found["one"]["sums_before"] != found["one"]["sums_after"]
    assert len(set(found["one"]["sums_before"])) == 11, "the control: rows are not one row"


def test_a_run_in_parts_is_the_uninterrupted_one_with_replay_too(tmp_path, corpora):
    more = {"replay": {"data": str(corpora[1]), "share": 0.3}}
    job = make_job(tmp_path, corpora, more, DROPOUT, **HARD)
    job.run("--save", tmp_path / "whole")
    job.run("--save", tmp_path / "parts", "--train-iters", 4)
    job.run("--save", tmp_path / "parts")
    for split, name in (("train", "lm loss"), ("valid", "lm loss general"), ("valid", "lm loss new")):
        found = figures(tmp_path / "parts", split, name)
        assert found == figures(tmp_path / "whole", split, name)
        assert len(found) == (10 if split == "train" else 3)
    assert record_of(tmp_path / "parts") == record_of(tmp_path / "whole")


def test_a_risen_loss_stops_the_run_with_a_checkpoint_until_it_is_allowed(tmp_path, corpora):
    save = tmp_path / "run"
    job = make_job(tmp_path, corpora, {"max_rise": 0.05, "on_rise": "stop"})
    code, said = failed(job, "--save", save)
    assert code == 1 and "iteration 5: general: lm loss" in said and "more than max_rise 0.05" in said
    assert said.count("error: ") == 1 and "Traceback" not in said and "new: lm loss" not in said.split("error: ")[1]
    assert latest_iteration(save) == 5 and len(figures(save)) == 5
    assert read_attempts(save)[0]["outcome"].startswith("InputError: iteration 5: general")
    code, said = failed(job, "--save", save)
    assert code == 1 and "this is where the run has stopped" in said and len(figures(save)) == 5
    allowed = make_job(tmp_path / "allowed", corpora, {"max_rise": 0.05, "on_rise": "warn"})
    assert "warning: iteration 10: general" in allowed.run("--save", save, ranks=1)
    make_job(tmp_path / "plain", corpora).run("--save", tmp_path / "whole", ranks=1)
    assert figures(save) == figures(tmp_path / "whole")
    assert record_of(save) == record_of(tmp_path / "whole")


def test_replay_keeps_what_is_forgotten_without_it(tmp_path, corpora):
    rises = []
    for number, more in enumerate(({}, {"replay": {"data": str(corpora[1]), "share": 0.25}})):
        save = tmp_path / str(number) / "run"
        make_job(tmp_path / str(number), corpora, more).run("--save", save, "--train-iters", 15, ranks=1)
        rises.append(record_of(save)["sets"]["general"])
    assert rises[0]["low"] > rises[1]["high"], "the intervals lie apart"
    paths = [one["path"] for one in read_attempts(tmp_path / "1/run")[0]["data"]]
    assert paths == [str(corpora[0]), str(corpora[1])]


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """(packed rows, others of the same sources, Megatron folder)."""
    folder = tmp_path_factory.mktemp("sft")
    renderer = make_renderer("sentencepiece", folder)
    for seed, name in enumerate(("packed", "others")):
        source = write_dialogues(folder / f"{name}.jsonl", make_dialogues(60, seed, most_turns=3, most_words=8))
        pack_dialogues([str(source)], folder / name, renderer, DialogueRowOptions(sequence_length=128, progress=False))
    hf = write_hf(folder / "hf", vocab_size=renderer.tokenizer.vocab_size, num_hidden_layers=2)
    hf_to_megatron(hf, folder / "megatron", progress=False)
    return folder / "packed", folder / "others", folder / "megatron"


def sft_job(folder, dialogues, chimed) -> tuple[Job, list]:
    """A fine-tuning whose own validation is every row of the others once, and its start."""
    packed, others, start = map(str, dialogues)
    rows = len(PackedRows(others))
    stage = {"train-data-path": [packed], "valid-data-path": [others], "eval-iters": rows}
    stage |= {"seq-length": 128, "micro-batch-size": 1, "global-batch-size": 2, "eval-interval": 2, "train-iters": 4}
    job = Job(folder, None, stage, chimed, name="sft")
    job.stage.write_text(job.stage.read_text().replace("  split: 80,20,0\n", ""))  # of the helper's own stage
    job.model = dialogues[2] / "model.yaml"
    return job, ["--load", start, "--finetune", "--tokenizer-type", "NullTokenizer"]


def test_the_loss_of_a_named_set_in_fine_tuning_is_that_of_an_evaluation_of_all_its_rows(tmp_path, dialogues):
    replay = {"data": str(dialogues[1]), "share": 0.5}
    job, start = sft_job(tmp_path, dialogues, {"valid": {"others": str(dialogues[1])}, "replay": replay})
    job.run(*start, "--save", tmp_path / "run", ranks=2)
    expected, found = losses(tmp_path / "run", "lm loss"), losses(tmp_path / "run", "lm loss others")
    assert list(found) == [0, 2, 4] and list(expected) == [2, 4]
    assert [found[at] for at in expected] == pytest.approx(list(expected.values()), rel=1e-5)
    assert record_of(tmp_path / "run")["sets"]["others"]["rows"] == len(PackedRows(dialogues[1]))


def test_either_stage_watches_and_replays_text_and_dialogues_and_both_measure_the_same(tmp_path, corpora, dialogues):
    text, packed = str(corpora[1]), str(dialogues[1])
    found = {}
    for name in ("sft", "pretrain"):
        replay = {"data": text if name == "sft" else packed, "share": 0.5}
        more = {"isolate_documents": True} if name == "pretrain" else {}
        job, start = sft_job(tmp_path / name, dialogues, more | {"replay": replay, "valid_rows": 7})
        if name == "pretrain":
            content = job.stage.read_text().replace(str(dialogues[0]), str(corpora[0]))
            job.name, text_alone = name, content.replace(f"  valid-data-path:\n  - {packed}\n", "")
            job.stage.write_text(text_alone)
        output = job.run(*start, "--save", tmp_path / name / "run", "--valid", f"text={text}", f"dialogues={packed}")
        found[name] = record_of(tmp_path / name / "run")["sets"]
        assert list(found[name]) == ["text", "dialogues"], output
    for name, one in found["sft"].items():
        other = found["pretrain"][name]
        assert one["counts"] == other["counts"] and one["sums_before"] == other["sums_before"]
        assert one["sums_after"] != other["sums_after"]


@pytest.mark.parametrize(
    ("chimed", "message"),
    [
        ({"valid": {"mc": "OTHERS"}}, "valid: mc is also a source of the data"),
        ({"valid": {"general": "nowhere"}}, "valid: general: nowhere"),
        ({"replay": {"data": "nowhere", "share": 0.1}}, "replay: nowhere"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, dialogues, chimed, message):
    chimed = json.loads(json.dumps(chimed).replace("OTHERS", str(dialogues[1])))
    job, start = sft_job(tmp_path, dialogues, chimed)
    code, said = failed(job, *start)
    assert code == 1 and said.count("error: ") == 1 and message in said and "Traceback" not in said


def test_a_stage_of_rankings_refuses_both(tmp_path, corpora):
    for chimed in ({"valid": {"general": str(corpora[1])}}, {"replay": {"data": str(corpora[1]), "share": 0.1}}):
        job = Job(tmp_path, None, {"data-path": str(corpora[0])}, chimed, name="reward")
        code, said = failed(job)
        assert code == 1 and "valid and replay are for pre-training and fine-tuning" in said
