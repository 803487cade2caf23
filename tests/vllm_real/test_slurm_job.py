"""`launch/slurm.sbatch serve` with the real vLLM, as a job of a real Slurm of two nodes on this machine."""

import contextlib
import re
import sys
import urllib.request
from pathlib import Path

import pytest
from support.real_vllm import NEEDED, SLOW, answers, asked_of
from support.slurm_cluster import ADDRESSES, Cluster, missing, until
from support.slurm_training import SCRIPT, WITHOUT_GPUS, as_project, job_environment

from megatron_chimed.inference.open import open_engine
from megatron_chimed.inference.thinking import spell

pytestmark = [NEEDED, SLOW, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture
def slurm(tmp_path_factory):
    """The cluster, which is there before the mark on the test's processes and after them."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


def is_healthy(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url.replace("/v1", "/health"), timeout=5):
        return True
    return False


def test_a_job_serves_on_two_nodes_and_an_engine_spreads_its_requests_over_them(slurm, llama, mark, case, tmp_path):
    case("`sbatch --nodes=2 launch/slurm.sbatch serve`: greedy texts by both servers = our checkpoint's; scancel")
    as_project(tmp_path)
    environment = job_environment(slurm) | {"VLLM": str(Path(sys.executable).with_name("vllm"))}
    # The nodes pretend to have GPUs, and an exclusive job has them all: without the last flag vLLM would want eight.
    flags = ["--dtype", "float32", "--served-model-name", "chimed", "--tensor-parallel-size", "1"]
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={tmp_path / 'log'}", *WITHOUT_GPUS, "--time=30"]
    job = slurm.command(*command, SCRIPT, "serve", llama.export, *flags, folder=tmp_path, environment=environment)
    log = tmp_path / "log"
    until(lambda: log.exists() and log.read_text().count("base_url: ") == 2, "a running job")
    names = re.findall(r"base_url: (\S+)", log.read_text())
    urls = [url.replace(node, address) for url in names for node, address in ADDRESSES.items() if node in url]

    def all_are_healthy() -> bool:
        assert slurm.show(job)["JobState"] == "RUNNING", log.read_text()[-3000:]
        return all(map(is_healthy, urls))

    until(all_are_healthy, "two servers", 600)
    requests = asked_of(llama, 20, temperature=0.0)
    with open_engine(f"megatron:{llama.checkpoint}", tokenizer=llama.renderer.tokenizer) as ours:
        expected = [spell(one.tokens, llama.renderer).strip() for one in answers(ours, requests, [2])]
    for asked in ([urls[0]], [urls[1]], urls):
        with open_engine("openai:chimed", base_url=asked, concurrency=4) as engine:
            assert [one.text for one in answers(engine, requests, [])] == expected
    slurm.command("scancel", job)
    assert slurm.wait(job)["JobState"] == "CANCELLED"
    case("20 of 20 by each and by both; nothing left")
