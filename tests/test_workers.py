"""Workers give the same results in the same order, whoever does the work: processes, or two nodes of a Ray cluster."""

import hashlib
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from support.corpora import command, make_texts, write_model
from support.paths import ROOT
from support.sft_sources import make_dialogues, write_source
from support.worker_tasks import place, square

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json_lines
from megatron_chimed.workers import COLUMNS, Bar, in_columns, map_in_order

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core each on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")  # what their Python finds
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    for tries in range(3):
        made = Cluster()
        try:
            made.add_node(**node, include_dashboard=False)
            made.second = made.add_node(**node)
            break
        except Exception as error:  # Ray gives a node 30 seconds to start, which a busy machine may not have
            made.shutdown()
            if "timed out during startup" not in str(error) or tries == 2:
                raise
    yield made
    made.shutdown()


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    jobs = [(n, None if n == 3 else (n,)) for n in range(12)]
    assert list(map_in_order(square, jobs, workers)) == [(n, None if n == 3 else n * n) for n in range(12)]
    with pytest.raises(InputError, match="^file:13: no$"):
        list(map_in_order(square, [(n, (n,)) for n in range(20)], workers))


@pytest.mark.parametrize("workers", [-1, "rays", "ray2", ""])
def test_what_is_no_number_of_workers_is_refused(workers):
    with pytest.raises(InputError, match=f"--workers {workers}: expected 0 or more processes, or ray, or ray:ADDRESS"):
        list(map_in_order(square, [], workers))


def test_a_node_that_is_lost_in_the_middle_loses_nothing(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address, found, second = f"ray:{cluster.address}", [], cluster.second.node_id
    for _, result in map_in_order(place, ((n, (n,)) for n in range(200)), address):
        found.append(result)
        if second and result[1] == second:
            cluster.remove_node(cluster.second, allow_graceful=False)
            second = None
    assert not second, "the other node did all of it"
    assert [number for number, _, _ in found] == list(range(200))
    assert {folder for _, _, folder in found} == {str(tmp_path)}
    assert list(map_in_order(square, [(3, None), (4, (4,))], address)) == [(3, None), (4, 16)]
    with pytest.raises(InputError, match="^file:13: no$"):
        list(map_in_order(square, [(n, (n,)) for n in range(20)], address))
    here = types.ModuleType("of_this_process")
    exec("def work(number): return number", here.__dict__)
    monkeypatch.setitem(sys.modules, here.__name__, here)
    with pytest.raises(
        InputError, match="^--workers ray: a node's Python has no of_this_process; install this package on each$"
    ):
        list(map_in_order(here.work, [(0, (0,))], address))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, but of manifests, which hold the time."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "manifest" not in path.name
    }


def run(folder: Path, workers: str, middle=None) -> dict[str, str]:
    """Build a corpus, fine-tuning data and packed rows with relative paths; digests of all that they wrote.

    middle: called when the corpus has its first parts.
    """
    folder.mkdir()
    tools = (
        ("preprocess_data.py", "--input", "../texts.jsonl", "--output-prefix", "corpus/c", "--append-eod", "--clean")
        + ("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", "../tokenizer.model")
        + ("--dedup", "near", "--batch-mb", "0.02"),
        ("prepare_sft.py", "--source", "cmd=../cmd.jsonl", "--output", "sft/d.jsonl"),
        ("pack_sft.py", "--input", "sft/d.jsonl", "--tokenizer", "../tokenizer.model", "--sequence-length", "128")
        + ("--output", "packed"),
    )
    for name in ("corpus", "sft"):
        (folder / name).mkdir()
    for tool, *arguments in tools:
        with open(folder / "log", "w") as log:
            program = subprocess.Popen(
                command(tool, *arguments, "--workers", workers), cwd=folder, stderr=log, stdout=log
            )
            while middle and program.poll() is None:
                if len(list(folder.glob("corpus/*.work/*"))) > 3:
                    middle()
                    middle = None
                time.sleep(0.01)
            assert program.wait(timeout=200) == 0, (folder / "log").read_text()[-3000:]
    (folder / "log").unlink()
    assert middle is None, "the corpus was done before its middle was seen"
    return digests(folder)


def test_corpus_data_and_packed_rows_are_those_of_one_process_also_when_a_node_is_killed(cluster, tmp_path):
    write_model(tmp_path)
    write_json_lines(tmp_path / "texts.jsonl", [{"text": text} for text in make_texts(6000)])
    write_source(tmp_path, "cmd", make_dialogues(300)).rename(tmp_path / "cmd.jsonl")
    alone = run(tmp_path / "alone", "0")
    assert len(alone) > 8
    assert run(tmp_path / "ray", f"ray:{cluster.address}") == alone
    kill = lambda: cluster.remove_node(cluster.second, allow_graceful=False)  # noqa: E731
    assert run(tmp_path / "killed", f"ray:{cluster.address}", kill) == alone


def test_where_no_cluster_is_one_line_says_so(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    with pytest.raises(
        InputError, match="^--workers ray: no cluster answers at 127.0.0.1:1 .*ray start --head"
    ) as error:
        list(map_in_order(square, [(1, (1,))], "ray:127.0.0.1:1"))
    assert "\n" not in str(error.value)


def test_a_bar_has_no_thread():
    assert Bar.monitor_interval == 0


def test_a_bar_in_a_file_has_a_hundred_columns_at_most(capsys):
    with Bar(total=10**9, desc="rejection sampling: generate_until", unit=" answers", mininterval=0) as bar:
        for _ in range(3):
            bar.update(10**8)
            bar.set_postfix({"of the source": "dialogues of a hospital", "and so on": 1.5})
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    assert len(lines) > 5 and max(map(len, lines)) <= COLUMNS


def test_pieces_fill_lines_and_are_never_broken():
    pieces = [f"{number} piece{'s' * (number % 7)}," for number in range(60)] + ["x" * 130, "end"]
    lines = in_columns(pieces).split("\n")
    assert [line for line in lines if len(line) > COLUMNS] == [f"    {'x' * 130}"]
    assert " ".join(line.strip() for line in lines) == " ".join(pieces)
    for line, following in zip(lines[:-2], lines[1:-1], strict=True):
        assert len(f"{line} {following.split(',')[0].strip()},") > COLUMNS  # no room for one more
    assert in_columns([]) == "" and in_columns(["one", "two"]) == "one two"
