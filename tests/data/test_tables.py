"""Parquet and Arrow give the rows that the same data give as JSON lines; what is no whole table is said in a line."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from megatron_chimed.data import tables
from megatron_chimed.data.dialogue_readers import READERS
from megatron_chimed.data.source_files import find_sources, read_chunks
from megatron_chimed.data.sources import read_rows
from megatron_chimed.errors import InputError

ROWS = [
    {"instruction": f"头痛{n}", "output": f"休息{n}", "history": [["问", "答"]], "extra": None} for n in range(3000)
]


def rows_of(path):
    return [row for file in find_sources([f"cmd={path}"], READERS) for chunk in read_chunks(file, READERS["cmd"])
            for _, row in chunk]  # fmt: skip


def test_every_form_gives_the_rows_of_the_json_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table, 700)
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    for name in ("a.jsonl", "a.parquet", "a.arrow", "saved"):
        assert rows_of(tmp_path / name) == ROWS, name
    assert [number for number, _ in read_rows(tmp_path / "a.parquet")] == list(range(1, len(ROWS) + 1))


def test_memory_is_bounded_by_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH", 10)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert max(batch.num_rows for batch in tables._batches(tmp_path / "a.parquet")) == 10


def test_splits_are_named(tmp_path):
    splits = {name: datasets.Dataset.from_list(ROWS[:3]) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InputError, match="several splits; give one of them: .*/train, .*/test"):
        find_sources([f"cmd={tmp_path / 'd'}"], READERS)
    assert rows_of(tmp_path / "d" / "train") == ROWS[:3]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all", None])
def test_what_is_no_whole_table_is_said_in_a_line(tmp_path, name, content):
    if content is None:  # cut off
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "whole.parquet")
        content = (tmp_path / "whole.parquet").read_bytes()[:5000]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: not a whole .* file .*; fetch it again"):
        list(read_rows(tmp_path / name))


def test_folders_that_hold_no_table(tmp_path):
    with pytest.raises(InputError, match="not a file; give files or a pattern"):
        find_sources([f"cmd={tmp_path}"], READERS)
    (tmp_path / "state.json").write_text("[1]")
    with pytest.raises(InputError, match=r"state\.json is none of datasets'"):
        find_sources([f"cmd={tmp_path}"], READERS)
