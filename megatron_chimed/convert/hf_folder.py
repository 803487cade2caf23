"""Read and write the weights of a Hugging Face folder, one tensor at a time.

They are read lazily from safetensors or PyTorch .bin files, and written as sharded safetensors.
"""

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from megatron_chimed.convert.plan import Planned, start_writing
from megatron_chimed.errors import InputError, short
from megatron_chimed.jsonl import is_lfs_pointer, read_json, write_json

FORMATS = (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
"""(a single file, the index of several), in the order in which they are looked for."""

SAFETENSORS_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Tensor in a file, not read yet."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    """A torch type, or the file's name of one that is none of ours."""

    read: Callable[[], torch.Tensor]


class HuggingFaceFolder:
    """The weights in a folder, by name.

    `problems` lists what is wrong with its files: a missing, damaged or truncated shard, an index that does not agree
    with the shards, a tensor stored twice. Tensors that could be found are in `tensors` nevertheless; `unreadable`
    names the files that could not be read, in which others may be.
    """

    def __init__(self, folder: str | Path):
        """Reads headers only. Raises InputError when there are no weights in the folder, or its index is unreadable."""
        self.folder = Path(folder)
        self.tensors: dict[str, Stored] = {}
        self.problems: list[str] = []
        self.unreadable: set[str] = set()
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such folder; give a Hugging Face model folder")
        for single, index in FORMATS:
            if (self.folder / index).is_file() and (self.folder / single).is_file():
                raise InputError(f"{folder}: two sets of weights, {single} and that of {index}; remove the older one")
            if (self.folder / index).is_file():
                self._open_indexed(self.folder / index)
                return
            if (self.folder / single).is_file():
                self._open(single)
                return
        expected = " or ".join(name for names in FORMATS for name in names)
        raise InputError(f"{folder}: no weights here; expected {expected}")

    def _open_indexed(self, path: Path) -> None:
        """Open the shards of an index and hold it against them."""
        index = read_json(path)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        names = weight_map.values() if isinstance(weight_map, dict) else [None]
        if not weight_map or not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: expected {{'weight_map': {{tensor: file}}}}")
        for name in sorted(set(names)):
            if not name or len(name) > 255 or Path(name).name != name:
                self.problems.append(f"{path.name}: {short(name)} is no file of this folder")
            else:
                self._open(name)
        for tensor, file in weight_map.items():
            found = self.tensors.get(tensor)
            if found is None and file not in self.unreadable and (self.folder / file).is_file():
                self.problems.append(f"{path.name}: {tensor} is not in {file}")
            elif found is not None and found.file != file:
                self.problems.append(f"{path.name}: {tensor} is in {found.file}, not in {short(file)}")
        extra = sorted(self.tensors.keys() - weight_map.keys())
        self.problems += [f"{path.name}: does not list {tensor} of {self.tensors[tensor].file}" for tensor in extra]

    def _open(self, name: str) -> None:
        """Add the tensors of one file."""
        path = self.folder / name
        if not path.is_file():
            self.problems.append(f"{name}: missing")
            self.unreadable.add(name)
            return
        if is_lfs_pointer(path):
            self.problems.append(f"{name}: is a Git LFS pointer, not the file; run git lfs pull")
            self.unreadable.add(name)
            return
        try:
            stored = open_safetensors(path) if name.endswith(".safetensors") else _open_bin(path)
        except Exception as error:  # a damaged file raises nearly anything
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            self.problems.append(f"{name}: damaged or truncated ({reason})")
            self.unreadable.add(name)
            return
        for tensor, found in stored.items():
            if tensor in self.tensors:
                self.problems.append(f"{tensor}: in {self.tensors[tensor].file} and in {name}")
            self.tensors[tensor] = found


def open_safetensors(path: Path) -> dict[str, Stored]:
    """Open the tensors of a safetensors file, mapped into memory. Raises SafetensorError and ValueError."""
    names = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}
    file = safe_open(path, framework="pt")  # kept open by the readers below
    metadata = file.metadata()
    if metadata and metadata.get("format") != "pt":
        raise ValueError(f"its metadata is {metadata}, expected format pt")
    stored = {}
    for name in file.keys():  # noqa: SIM118  no dict
        piece = file.get_slice(name)
        dtype = names.get(piece.get_dtype(), piece.get_dtype())
        stored[name] = Stored(path.name, tuple(piece.get_shape()), dtype, lambda name=name: file.get_tensor(name))
    return stored


def _open_bin(path: Path) -> dict[str, Stored]:
    """Open the tensors of a PyTorch file, unpickled with weights_only. Raises ValueError and others.

    They are mapped into memory; a file in PyTorch's form before 2020 can only be read as a whole.
    """
    content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise ValueError("expected a dict of tensors")
    return {
        name: Stored(path.name, tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)
        for name, tensor in content.items()
    }


def shard(planned: Sequence[Planned], max_bytes: int) -> list[list[Planned]]:
    """Cut the tensors, in their order, into files of at most `max_bytes` (a larger tensor is a file of its own)."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in planned:
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_weights(
    folder: Path, planned: Sequence[Planned], max_shard_bytes: int, written: Callable[[int], None]
) -> None:
    """Write tensors as model.safetensors, or as shards with their index, making one tensor at a time.

    written: called with the number of bytes of each tensor. Files are on the disk when this returns.
    """
    shards = shard(planned, max_shard_bytes)
    if len(shards) == 1:
        _write_safetensors(folder / "model.safetensors", shards[0], written)
        return
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(folder / name, tensors, written)
        weight_map |= {tensor.name: name for tensor in tensors}
    total = {"total_size": sum(tensor.nbytes for tensor in planned)}
    write_json(folder / "model.safetensors.index.json", {"metadata": total, "weight_map": weight_map})


def _write_safetensors(path: Path, tensors: Sequence[Planned], written: Callable[[int], None]) -> None:
    """Write one file: length of the header, header, the tensors' bytes.

    The library would want all of them in memory.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        place = [offset, offset := offset + tensor.nbytes]
        header[tensor.name] = {
            "dtype": SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": place,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    with open(path, "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            _write_all(file, memoryview(_bytes_of(tensor.made())))
            start_writing(file)
            written(tensor.nbytes)
        os.fsync(file.fileno())


def _write_all(file: Any, content: memoryview) -> None:
    """Write to an unbuffered file, which may take a part at a time (Linux: at most 2 GiB)."""
    while content:
        content = content[file.write(content) :]


def _bytes_of(tensor: torch.Tensor) -> Any:
    """View a tensor of any shape as uint8 [nbytes], without a copy where it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()
