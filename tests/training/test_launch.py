"""How the launcher passes signals on; tests/integration/test_faults.py shows it with real ranks."""

import signal
import subprocess
import sys

import pytest

from megatron_chimed.training.launch import STOP_SECONDS, STOPPED, main

RANK = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
print("up", flush=True)
while True:
    time.sleep(0.02)
"""
LAUNCHER = """
import subprocess, sys
from megatron_chimed.training.launch import Stop
stop = Stop(int(sys.argv[1]))
rank = subprocess.Popen([sys.executable, "-c", sys.argv[2]])
print("ended", stop.code(rank.wait()), flush=True)
"""


@pytest.mark.parametrize(("seconds", "signals"), [(600, 2), (1, 1)], ids=["second signal", "deadline"])
def test_the_first_signal_is_passed_on_and_the_second_one_or_the_deadline_kills(seconds, signals):
    command = [sys.executable, "-c", LAUNCHER, str(seconds), RANK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        for line in ("up\n", "told\n")[:signals]:
            assert launcher.stdout.readline() == line
            launcher.send_signal(signal.SIGTERM)
        rest = launcher.communicate(timeout=60)[0]
    assert rest.removeprefix("told\n") == f"ended {128 + signal.SIGTERM}\n"


def test_a_rank_that_a_signal_ends_before_the_first_iteration_is_a_stop_too():
    command = [sys.executable, "-c", LAUNCHER, "600", RANK.replace("signal.SIGTERM", "signal.SIGUSR2")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout.readline() == "up\n"
        launcher.send_signal(signal.SIGUSR1)
        output, said = launcher.communicate(timeout=60)
    assert output == f"ended {STOPPED}\n" and "stopped before the first iteration" in said


def test_a_time_that_is_no_number_is_refused(monkeypatch, capsys):
    monkeypatch.setenv(STOP_SECONDS, "soon")
    with pytest.raises(SystemExit):
        main()
    assert f"{STOP_SECONDS} is 'soon'; expected a whole number" in capsys.readouterr().err
