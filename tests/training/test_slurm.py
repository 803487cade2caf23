"""What a launcher heeds in a Slurm job."""

import socket

import pytest

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json
from megatron_chimed.training.slurm import MAX_IDLE_STARTS, STARTS, check_address, note_start, seconds_to_save


@pytest.mark.parametrize(
    ("end", "seconds"),
    [("1300", 270), ("1040", 20), ("1001", 30), ("900", 30), ("", None), ("9000000", 3600)],
    ids=["what is left", "half of little", "nothing", "past", "unknown", "a signal long before the end"],
)
def test_the_time_to_save_is_what_is_left_of_the_job(end, seconds):
    assert seconds_to_save({"SLURM_JOB_END_TIME": end}, now=1000.0) == seconds


def job(restarts: int, number: str = "7") -> dict[str, str]:
    return {"SLURM_JOB_ID": number} | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})


def write_latest(save, iteration):
    (save / "latest_checkpointed_iteration.txt").write_text(str(iteration))


def test_a_job_that_starts_again_and_again_from_one_iteration_is_refused(tmp_path):
    for restart in range(MAX_IDLE_STARTS):
        note_start(tmp_path, job(restart))
    with pytest.raises(InputError, match=r"job 7 has started 3 times from iteration 0 and saved nothing since"):
        note_start(tmp_path, job(MAX_IDLE_STARTS))
    note_start(tmp_path, job(MAX_IDLE_STARTS, number="8"))  # submitted anew


def test_a_job_that_gets_on_may_start_as_often_as_it_is_stopped(tmp_path):
    for restart in range(10):
        write_latest(tmp_path, 5 + restart // 2)
        note_start(tmp_path, job(restart))
    assert read_json(tmp_path / STARTS) == {"job": "7", "iterations": [5, 5, 6, 6, 7, 7, 8, 8, 9, 9]}


def test_starts_by_hand_in_one_allocation_are_not_counted(tmp_path):
    for _ in range(10):
        note_start(tmp_path, job(0))
    note_start(tmp_path, {})
    assert read_json(tmp_path / STARTS) == {"job": "7", "iterations": [0]}


def test_a_name_without_an_address_and_a_port_that_is_taken_are_one_line_each():
    with pytest.raises(InputError, match=r"MASTER_ADDR 'no.such.invalid' has no address on .+; set it to one that"):
        check_address("no.such.invalid", 1, is_first=False)
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=rf"MASTER_PORT {port} is taken on .+; set another one"):
            check_address("127.0.0.1", port, is_first=True)
        check_address("127.0.0.1", port, is_first=False)  # the port of another machine
    check_address("127.0.0.1", port, is_first=True)
