"""Read the rows of Parquet and Arrow files, and find those of a folder that the datasets library has saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json

SUFFIXES = (".parquet", ".arrow")
BATCH = 1024
"""Rows that are in memory at a time."""


def table_files(folder: str | Path) -> list[str]:
    """The files of a folder that datasets' save_to_disk has written, in their order, or its .parquet and .arrow files.

    None where it holds no such files. Raises InputError for a folder of several splits, naming them.
    """
    folder = Path(folder)
    try:
        if (folder / "dataset_dict.json").is_file():
            names = ", ".join(str(folder / name) for name in read_json(folder / "dataset_dict.json")["splits"])
            raise InputError(f"{folder}: holds several splits; give one of them: {names}")
        if (folder / "state.json").is_file():
            files = [folder / entry["filename"] for entry in read_json(folder / "state.json")["_data_files"]]
        else:
            files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    except (KeyError, TypeError):
        raise InputError(f"{folder}: dataset_dict.json or state.json is none of datasets'; give the files") from None
    return [str(file) for file in files]


def read_table(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, row by column) of a .parquet or .arrow file; values are what JSON has for them.

    Memory is bounded by one batch. Raises InputError: no such file, or one that is none of these, or damaged.
    """
    rows = (row for batch in _batches(Path(path)) for row in batch.to_pylist())
    yield from enumerate(rows, start=1)


def _batches(file: Path) -> Iterator[Any]:
    """The record batches of a file. Raises InputError for one that is no table, or damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix.lower() == ".parquet":
            yield from pyarrow.parquet.ParquetFile(file).iter_batches(BATCH)
            return
        with pyarrow.memory_map(str(file)) as source:
            try:
                yield from pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:  # datasets writes streams, others the format with an index behind
                reader = pyarrow.ipc.open_file(source)
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{file}: not a whole {file.suffix[1:]} file ({reason}); fetch it again") from None
