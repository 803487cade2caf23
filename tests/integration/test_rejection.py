"""The whole loop with real ranks: killed anywhere it selects the same answers; both scorers give the same rewards."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from support import rejection_loop as loop
from support.chat_server import ChatServer, Gate
from support.judging import parts_of, verdict, write_rubric
from support.mutations import THOROUGH
from support.rejection_loop import ITERATIONS

from megatron_chimed.checkpoints import latest_iteration
from megatron_chimed.errors import InputError
from megatron_chimed.records import Candidate
from megatron_chimed.rejection.config import read_config
from megatron_chimed.rejection.engines import open_generator
from megatron_chimed.rejection.generator import build_requests, sample
from megatron_chimed.rejection.loop import make_rounds, status
from megatron_chimed.rejection.prompts import read_prompts
from megatron_chimed.rejection.rounds import STEPS
from megatron_chimed.rejection.scorers.options import ScorerOptions
from megatron_chimed.rejection.scorers.reward_model import open_scorer, sequences_of
from megatron_chimed.rejection.store import count_stored, read_candidates

OFTEN = {"prompts": 4, "generate": 3, "score": 2, "select": 4, "pack": 4}
OFTEN |= dict.fromkeys(("train", "evaluate_heldout", "report"), 1)
KILLS = OFTEN if THOROUGH else dict.fromkeys(OFTEN, 0) | dict.fromkeys(("generate", "score", "select", "train"), 1)
DECIDING = list(STEPS)[:4]  # up to the selection
MANIFESTS = {"evaluate_heldout": "sample.manifest.json"}  # keeps its first name, so that begun loops go on
ANSWERS = 32
BY_LENGTH = """
import json, sys
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    print(json.dumps({"prompt": row["prompt"], "sample": row["sample"], "grade": len(row["response"])}))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, settings, seconds of each deciding step): a loop whose round is run up to its selection in whole/."""
    folder = tmp_path_factory.mktemp("rejection")
    settings, seconds = loop.write_world(folder), {}
    config = loop.write_config(folder / "whole.yaml", settings)
    for step in DECIDING:
        begin = time.monotonic()
        loop.run(config, "--round", "1", "--step", step)
        seconds[step] = time.monotonic() - begin
    return folder, settings, seconds


def running(folder: Path) -> int:
    """Processes whose command line names the folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return sum(f"{folder}" in line and "megatron_chimed" in line for line in lines)


def kill_when(config: Path, ready, *words: str) -> bool:
    """Start the round, kill -9 its process alone when ready() holds; whether it was killed before it had ended."""
    process = loop.start(config, "--round", "1", *words)
    while process.poll() is None and not ready():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
    return process.wait() == -signal.SIGKILL


def moment(draw: random.Random, step: str, round_folder: Path, seconds: dict):
    """A condition that comes true at a random place of a step."""
    if step == "train":
        folder = round_folder / "train/selected"
        return lambda: latest_iteration(folder) >= 1 and (running(folder) or not Path("/proc/self").exists())
    stores = {
        "generate": "candidates.store",
        "score": "scored.store",
        "evaluate_heldout": "heldout.selected.sampled.store",
    }
    if step in stores:
        path = round_folder / stores[step]
        more = count_stored(path) + draw.randrange(1, 9)
        return lambda: count_stored(path) >= min(more, ANSWERS - 4 if step != "evaluate_heldout" else 1)
    before = list(STEPS)[: list(STEPS).index(step)][-1:] if step in STEPS else []
    into, now = draw.uniform(0, seconds.get(step, 0.3)), time.time()
    return lambda: time.time() >= max((begin_of(round_folder, one) for one in before), default=now) + into


def begin_of(round_folder: Path, before: str) -> float:
    """When the step began that comes behind another one; never, while this is at work."""
    manifest = round_folder / MANIFESTS.get(before, f"{before}.manifest.json")
    return manifest.stat().st_mtime if manifest.exists() else float("inf")


@pytest.mark.timeout(390)  # many starts of the loop, each of which imports torch and Megatron
def test_killed_on_its_way_the_same_answers_are_selected(world):
    folder, settings, seconds = world
    (folder / "grade.py").write_text(BY_LENGTH)
    grader = {"engine": "rules", "command": ["python", str(folder / "grade.py")]}
    config = loop.write_config(folder / "killed.yaml", settings, grader=grader)
    seed = random.randrange(1000)
    draw, round_folder, partial = random.Random(seed), folder / "killed/round-01", []
    loop.run(config, "--round", "0")
    for step, kills in KILLS.items():
        for _ in range(kills):
            tries = iter(range(10))
            while not kill_when(config, moment(draw, step, round_folder, seconds)):
                assert next(tries, None) is not None, f"{step} always ended before it was killed (seed {seed})"
                (round_folder / MANIFESTS.get(step, f"{step}.manifest.json")).unlink()  # it had ended: do it again
            left = {name: count_stored(round_folder / f"{name}.store") for name in ("candidates", "scored")}
            partial += [step for name, count in left.items() if 0 < count < ANSWERS]
            if step == "train":
                ends = time.monotonic() + 30
                while running(round_folder / "train/selected") and time.monotonic() < ends:
                    time.sleep(0.1)
                assert not running(round_folder / "train/selected"), "ranks outlived the job"
                assert latest_iteration(round_folder / "train/selected") < ITERATIONS, "they ended by themselves"
    loop.run(config, "--round", "1")
    assert {"generate", "score"} <= set(partial), f"no kill left a part of the answers (seed {seed})"
    for name in ("prompts", "candidates", "scored", "selected", "selected.dialogues"):
        whole, killed = (folder / run / f"round-01/{name}.jsonl" for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), f"{name} (seed {seed})"
    assert latest_iteration(round_folder / "train/selected") == ITERATIONS
    check_finished(config, settings)


def check_finished(config: Path, settings: dict) -> None:
    """A finished loop is done in every step, does nothing more, and its report has the figures of its files."""
    lines = status(read_config(config)).splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["evaluate_heldout", *STEPS]
    assert all(line.split()[2] == "done" for line in lines), lines
    round_folder = config.with_suffix("") / "round-01"
    before = (round_folder / "report.manifest.json").stat().st_mtime_ns
    loop.run(config)
    assert (round_folder / "report.manifest.json").stat().st_mtime_ns == before
    report = json.loads((round_folder / "report.json").read_text())
    answers = read_candidates(round_folder / "heldout.selected.jsonl")
    asked = {prompt.id for prompt in read_prompts(settings["heldout"])}
    assert len(answers) == 6 and {one.prompt for one in answers} <= asked
    mean = sum(one.reward for one in answers) / len(answers)
    assert report["heldout"]["models"]["after"]["mean"] == pytest.approx(mean)
    graded = sum(len(one.response) for one in answers) / len(answers)
    assert report["yardstick"]["models"]["after"]["mean"] == pytest.approx(graded)
    assert report["graders"]["held out, start"][0]["answers"] == 6
    nlls = [report["drift"][name]["nll"] for name in ("start", "after")]
    assert all(nll > 0 for nll in nlls) and nlls[0] != nlls[1]
    assert (round_folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_round_without_a_reward_model_killed_while_its_judge_is_at_work_asks_for_nothing_twice(world, monkeypatch):
    folder, settings, _ = world
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shutil.copytree(folder / "whole", folder / "judged")
    for path in (folder / "judged/round-01").glob("s*.*"):  # of score and select
        path.unlink()
    (folder / "rules.py").write_text(BY_LENGTH)
    rubric = write_rubric(folder / "rubric.yaml", [("short", 1, []), ("long", 3, [])])
    gate = Gate(20, lambda body, attempt: verdict(len(parts_of(body)[1]) > (40 if parts_of(body)[2] == "long" else -1)))
    with ChatServer(gate) as server:
        judge = {"engine": "judge", "rubric": rubric, "model": "m", "base_url": server.url, "weight": 100.0}
        scorer = [judge, {"engine": "rules", "command": ["python", str(folder / "rules.py")]}]
        config = loop.write_config(folder / "judged.yaml", settings, scorer=scorer, reward="")
        log = folder / "judged/round-01/scored.verdicts.jsonl"
        assert kill_when(config, lambda: log.is_file() and log.read_bytes().count(b"\n") >= 20, "--step", "score")
        told = [line.split() for line in status(read_config(config)).splitlines()]
        assert ["1", "score", "partial", "20", "verdicts"] in told
        gate.opened.set()
        for step in ("score", "select"):
            loop.run(config, "--round", "1", "--step", step)
        assert len(server.num_answered) <= 2 * ANSWERS and log.read_bytes().count(b"\n") == 2 * ANSWERS
        assert "estimate" in config.with_suffix(".log").read_text()
    for one in read_candidates(folder / "judged/round-01/scored.jsonl"):
        assert one.reward == 100 * (1.0 if len(one.response) > 40 else 0.25) + len(one.response)
    assert read_candidates(folder / "judged/round-01/selected.jsonl")


def test_both_scorers_and_transformers_give_an_answer_the_same_reward(world):
    import torch
    from transformers import AutoModelForSequenceClassification

    folder, _, _ = world
    config = read_config(folder / "whole.yaml")
    candidates = read_candidates(config.output / "round-01/candidates.jsonl")
    prompts = {prompt.id: prompt for prompt in read_prompts([config.output / "round-01/prompts.jsonl"])}
    empty = Candidate(1, candidates[0].prompt, 99, "", 1, True)
    renderer = make_rounds(config)[0].renderer
    sequences = sequences_of([*candidates[:6], empty], prompts, renderer)
    assert all(sequence[-1] == renderer.tokenizer.eos_id for sequence in sequences)
    assert len(set(map(len, sequences))) > 2, "padding is not seen"
    with open_scorer(ScorerOptions("hf"), folder / "reward.hf") as scorer:
        found = scorer.rewards(sequences)
        with pytest.raises(InputError, match="^scorer hf:[^\n]*nowhere is no folder$"):
            open_scorer(ScorerOptions("hf"), folder / "nowhere")
    reference = AutoModelForSequenceClassification.from_pretrained(folder / "reward.hf").eval()
    with torch.no_grad():
        expected = [reference(torch.tensor([sequence])).logits.item() for sequence in sequences]
    assert found == pytest.approx(expected, abs=1e-5)
    scored = {one.key: one.reward for one in read_candidates(config.output / "round-01/scored.jsonl")}
    assert [scored[one.key] for one in candidates[:6]] == pytest.approx(expected[:6], abs=1e-5)
    assert max(expected) - min(expected) > 1e-2


def test_an_answer_follows_from_its_prompt_and_seed_whatever_is_asked_beside_it(world):
    folder, settings, _ = world
    config = read_config(folder / "whole.yaml")
    prompts = list(read_prompts([config.output / "round-01/prompts.jsonl"]))
    renderer = make_rounds(config)[0].renderer
    asked = build_requests(prompts, renderer, round=1, n=4, seed=(settings["seed"], "sample", 1))
    stored = {one.key: one for one in read_candidates(config.output / "round-01/candidates.jsonl")}
    with open_generator(config.generator, folder / "start", folder / "export", renderer.tokenizer) as engine:
        for one in asked[::7]:
            assert sample(engine, [one], config.sampling, renderer) == [stored[one.key]]
        mixed = random.Random(0).sample(asked, 9)
        assert len({len(one.tokens) for one in mixed}) > 3
        assert {one.key: one for one in sample(engine, mixed, config.sampling, renderer)} == {
            one.key: stored[one.key] for one in mixed
        }


def test_every_answer_is_there_under_its_own_key_and_seeds_tell_samples_apart(world):
    folder, settings, _ = world
    round_folder = folder / "whole/round-01"
    prompts = [prompt.id for prompt in read_prompts([round_folder / "prompts.jsonl"])]
    candidates = read_candidates(round_folder / "candidates.jsonl")
    assert [one.key for one in candidates] == [(1, name, sample) for name in sorted(prompts) for sample in range(4)]
    assert len({one.response for one in candidates}) > ANSWERS / 2
    selected = read_candidates(round_folder / "selected.jsonl")
    assert [one.prompt for one in selected] == sorted(prompts)
    rewards = {one.key: one.reward for one in read_candidates(round_folder / "scored.jsonl")}
    for one in selected:
        assert one.reward == max(rewards[1, one.prompt, sample] for sample in range(4))
