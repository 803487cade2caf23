"""How the launcher passes signals on; tests/integration/test_faults.py shows it with real ranks."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_chimed.errors import STOPPED_FILE
from megatron_chimed.training.launch import STOP_SECONDS, STOPPED, main

pytestmark = pytest.mark.real_processes

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


@pytest.mark.parametrize("in_job", [False, True], ids=["alone", "in a job"])
def test_a_launcher_without_ranks_stops_at_once_and_in_a_job_leaves_its_file(tmp_path, in_job):
    code = "import os, signal\nfrom megatron_chimed.training.launch import Stop\nStop(600)\n"
    code += "os.kill(os.getpid(), signal.SIGTERM)\nprint('goes on')"
    file = tmp_path / "stopped"
    environment = os.environ | ({STOPPED_FILE: str(file)} if in_job else {})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0 if in_job else STOPPED, "") and file.exists() == in_job
    assert "stopped before the ranks had started" in done.stderr


def test_a_signal_that_comes_while_the_launcher_is_loaded_is_a_stop(tmp_path):
    """Slurm ends the other nodes of a job so when one has failed; a death would count more than the failure."""
    command = [sys.executable, "-m", "megatron_chimed", "train", "pretrain", "model.yaml", "stage.yaml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        while b"training.launch" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == STOPPED and "stopped before the ranks had started" in said


def test_a_signal_is_a_stop_while_the_first_machine_is_waited_for(tmp_path):
    """torch's code, which waits, lets no handler run."""
    with socket.create_server(("127.0.0.1", 0)) as first:  # which says nothing
        place = ["--master-addr", "127.0.0.1", "--master-port", str(first.getsockname()[1])]
        command = [sys.executable, "-m", "megatron_chimed.training.launch", "--nnodes", "2", "--node-rank", "1", *place]
        command += ["--nproc-per-node", "1", "-m", "megatron_chimed.training.rank", "pretrain", "m.yaml", "s.yaml"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
            try:
                first.accept()
                process.send_signal(signal.SIGTERM)
                said = process.communicate(timeout=30)[1]
            finally:
                process.kill()
    assert process.returncode == STOPPED and "stopped before the ranks had started" in said


def test_in_a_slurm_job_a_second_signal_is_passed_over_and_the_time_is_what_is_left_of_the_job():
    """Slurm may send several close together, and kills by itself."""
    saving = RANK.replace("signal, time", "signal, sys, time")
    saving = saving.replace('print("told", flush=True)', '(time.sleep(1), print("saved", flush=True), sys.exit(75))')
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 300)}
    command = [sys.executable, "-c", LAUNCHER.replace("int(sys.argv[1])", "None"), "", saving]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as launcher:
        assert launcher.stdout.readline() == "up\n"
        for _ in range(2):
            launcher.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        output, said = launcher.communicate(timeout=60)
    assert output == "saved\nended 75\n" and 100 <= int(re.search(r"up to (\d+) s", said)[1]) <= 270


def test_a_time_that_is_no_number_is_refused(monkeypatch, capsys):
    monkeypatch.setenv(STOP_SECONDS, "soon")
    with pytest.raises(SystemExit):
        main()
    assert f"{STOP_SECONDS} is 'soon'; expected a whole number" in capsys.readouterr().err
