"""The demo in its tiny size, killed at random moments and run again: the figures are those of one never killed.

What the latter prints, bars too, fits in a hundred columns, but for lines with a path of the test in them."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

from megatron_chimed.jsonl import read_json
from megatron_chimed.workers import COLUMNS

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.real_processes,
    pytest.mark.skipif("KILL_DEMO" not in os.environ, reason="two demos take a quarter of an hour: make test-demo"),
]
RUN = ROOT / "examples" / "quickstart" / "run.sh"


@contextlib.contextmanager
def demo(folder: Path) -> Iterator[subprocess.Popen]:
    """The demo in a process group of its own, which is killed at the end."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open(folder.with_suffix(".log"), "ab") as log:
        program = subprocess.Popen(
            ["sh", RUN],
            env=os.environ | {"SIZE": "tiny", "OUTPUT": str(folder), "PATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def test_a_demo_killed_at_random_moments_ends_with_the_same_figures(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with demo(whole) as program:
        assert program.wait() == 0, whole.with_suffix(".log").read_text()[-2000:]
    lines = re.split(r"[\r\n]", whole.with_suffix(".log").read_text("utf-8"))
    too_long = [line for line in lines if len(line) > COLUMNS and str(tmp_path) not in line]
    assert len(lines) > 100 and not too_long, too_long[:5]
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    moments, kills, code = random.Random(seed), 0, None
    while code is None:
        with demo(killed) as program, contextlib.suppress(subprocess.TimeoutExpired):
            code = program.wait(timeout=moments.uniform(5, 75))
        kills += code is None
    print(f"SEED={seed}: killed {kills} times")
    assert code == 0, killed.with_suffix(".log").read_text()[-2000:]
    one, other = (read_json(folder / "results.json")["figures"] for folder in (killed, whole))
    assert kills and one == other
