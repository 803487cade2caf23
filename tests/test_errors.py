"""How commands end: tests of each tool have the rest; here is what a job asks of them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_chimed.errors import STOPPED_FILE, InputError, one_line

COMMAND = """
import os, sys, time
from megatron_chimed.errors import InputError, exit_cleanly
def main():
    worker = os.fork()
    if not worker:
        time.sleep(2)
        os._exit(0)
    try:
        print(worker, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("cleans up", os.waitpid(worker, os.WNOHANG)[0])
        raise
def fails():
    print("up", flush=True)
    time.sleep(0.3)
    raise InputError("a worker has ended")
exit_cleanly(main if sys.argv[1] == "main" else fails, "it")
"""


def start(what: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_command_that_its_job_stops_cleans_up_leaves_the_file_and_ends_with_0(tmp_path, number):
    with start("main", **{STOPPED_FILE: str(tmp_path / "stopped")}) as command:
        worker = int(command.stdout.readline())
        os.kill(worker, number)  # Slurm signals all; workers end with what they work for
        command.send_signal(number)
        output, said = command.communicate(timeout=60)
    assert command.returncode == 0 and output == "cleans up 0\n" and (tmp_path / "stopped").exists()
    assert said == "it: interrupted; what is finished is kept, run the command again to continue\n"


def test_what_fails_because_its_helper_got_the_signal_first_is_a_stop_too(tmp_path):
    with start("fails", **{STOPPED_FILE: str(tmp_path / "stopped")}) as command:
        command.stdout.readline()
        time.sleep(0.7)  # after the error, before its message
        command.send_signal(signal.SIGUSR1)
        assert command.wait(timeout=60) == 0
    assert (tmp_path / "stopped").exists()


def test_a_failure_of_a_job_leaves_no_file_and_outside_of_one_a_signal_kills(tmp_path):
    with start("fails", **{STOPPED_FILE: str(tmp_path / "stopped")}) as command:
        assert command.wait(timeout=60) == 1 and "it: error: a worker has ended" in command.stderr.read()
    assert not (tmp_path / "stopped").exists()
    with start("main", **{STOPPED_FILE: ""}) as command:
        command.stdout.readline()
        command.send_signal(signal.SIGTERM)
        assert command.wait(timeout=60) == -signal.SIGTERM


def test_a_message_of_any_length_is_shown_with_its_ends():
    text = one_line(InputError("model: 900 faults: " + "tensor, " * 900 + "take another copy"))
    assert text.startswith("model: 900 faults: tensor") and text.endswith("take another copy")
    assert "(4736 characters left out)" in text and len(text) < 2600
