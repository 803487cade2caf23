"""Rounds of rejection sampling with the engine `vllm`: killed and begun again, and a whole one with vLLM's rewards."""

import os
import signal
import time

import pytest
from support import rejection_loop as loop
from support.real_vllm import NEEDED, SLOW, marked, wait_until_none_is_left

from megatron_chimed.convert.checkpoint import megatron_to_hf
from megatron_chimed.inference.open import open_engine
from megatron_chimed.records import Candidate
from megatron_chimed.rejection.config import read_config
from megatron_chimed.rejection.loop import make_rounds, status
from megatron_chimed.rejection.prompts import read_prompts
from megatron_chimed.rejection.scorers.reward_model import sequences_of
from megatron_chimed.rejection.store import count_stored, read_candidates

pytestmark = [NEEDED, SLOW]
N = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, settings) of a loop that samples and scores with vLLM."""
    folder = tmp_path_factory.mktemp("rejection")
    settings = loop.write_world(folder, heads=2)  # of 32, the smallest that vLLM computes on a CPU
    megatron_to_hf(folder / "reward", folder / "exported", tokenizer=settings["tokenizer"], progress=False)
    settings |= {"reward": str(folder / "exported"), "generator": {"engine": "vllm", "batch_size": 8}}
    settings |= {"scorer": {"engine": "vllm", "batch_size": 8}}
    return folder, settings


def test_a_generate_that_is_killed_leaves_nothing_and_goes_on_to_identical_files(world, mark, case):
    case("kill -9 in `generate`: nothing is left alive; again: files identical to an uninterrupted run's")
    folder, settings = world
    sampling = settings["sampling"] | {"n": N}
    whole = loop.write_config(folder / "whole.yaml", settings, sampling=sampling, generator={"engine": "vllm"})
    killed = loop.write_config(folder / "killed.yaml", settings, sampling=sampling)
    for config in (whole, killed):
        loop.run(config, "--round", "1", "--step", "prompts")
    process = loop.start(killed, "--round", "1", "--step", "generate")
    store = folder / "killed/round-01/candidates.store"
    while not count_stored(store):
        assert process.poll() is None, killed.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.01)
    running = len(marked(mark))
    os.kill(process.pid, signal.SIGKILL)
    begin = time.monotonic()
    assert process.wait() == -signal.SIGKILL
    wait_until_none_is_left(mark)
    seconds, stored = time.monotonic() - begin, count_stored(store)
    assert 0 < stored < 8 * N and running > 2
    for config in (whole, killed):
        loop.run(config, "--round", "1", "--step", "generate", timeout=600)
    one, other = ((folder / name / "round-01/candidates.jsonl").read_bytes() for name in ("whole", "killed"))
    assert one == other and one.count(b"\n") == 8 * N
    case(
        f"killed at {stored} of {8 * N}, {running} processes gone after {seconds:.0f} s; identical, with another batch"
    )


def test_a_whole_round_ends_with_its_report_and_the_rewards_are_ours(world, mark, case):
    case("rounds 0 and 1 to the report, generator and scorer vllm, training in between")
    folder, settings = world
    config_file = loop.write_config(folder / "round.yaml", settings)
    loop.run(config_file, timeout=1500)
    config = read_config(config_file)
    assert all(line.split()[2] == "done" for line in status(config).splitlines()[1:])
    candidates: list[Candidate] = read_candidates(config.output / "round-01/scored.jsonl")
    prompts = {prompt.id: prompt for prompt in read_prompts([config.output / "round-01/prompts.jsonl"])}
    sequences = sequences_of(candidates, prompts, make_rounds(config)[0].renderer)
    with open_engine(f"megatron:{folder / 'reward'}", head="reward") as ours:
        expected = ours.rewards(sequences)
    apart = max(abs(one.reward - other) for one, other in zip(candidates, expected, strict=True))
    assert apart < 1e-4 and len(candidates) == 32
    case(f"done; 32 rewards, largest difference to ours {apart:.0e}")
