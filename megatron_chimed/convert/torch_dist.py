"""Read and write Megatron's torch_dist checkpoints without Megatron's trainer, tensor by tensor.

Reading takes any layout of chunks (other tensor- and pipeline-parallel sizes), and unpickles nothing but the classes
that such a checkpoint consists of.
"""

import contextlib
import functools
import io
import math
import mmap
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_chimed.backend.cpu import without_compiler
from megatron_chimed.checkpoints import write_tracker
from megatron_chimed.convert.plan import Planned, start_writing
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json

with without_compiler():
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.safe_globals import SafeUnpickler

COMMON = "common_state/shard_0_1"
ALIGNMENT = 64
"""Bytes; torch puts the numbers of a tensor at a multiple of them within what it writes of it."""


_METADATA_CLASSES = (
    "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
    "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
)  # fmt: skip

# Megatron hangs the ranks' plans on the metadata: torch 2.11 dropped them as it wrote, 2.13 pickles them.
_PLAN_CLASSES = ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")


class _MetadataUnpickler(SafeUnpickler):
    """Reads .metadata, a pickle, refusing every class that has no place in it."""

    _SAFE_CLASSES = frozenset(
        {("torch.distributed.checkpoint.metadata", name) for name in _METADATA_CLASSES}
        | {("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
        | {("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath")}
        | {("torch.distributed.checkpoint.filesystem", "_StorageInfo")}
        | {("torch.distributed.checkpoint.planner", name) for name in _PLAN_CLASSES}
    )


class TorchDistCheckpoint:
    """One checkpoint folder: the global shape and type of each tensor, and their contents piece by piece."""

    def __init__(self, folder: str | Path):
        """Reads the metadata and checks that all of the files are there in full length. Raises InputError."""
        self.folder = Path(folder)
        path = self.folder / ".metadata"
        form = read_json(self.folder / "metadata.json")
        if not isinstance(form, dict) or form.get("sharded_backend") != "torch_dist":
            raise InputError(f"{self.folder}: not a torch_dist checkpoint; save it with --ckpt-format torch_dist")
        try:
            with open(path, "rb") as file:
                self._metadata = _MetadataUnpickler(file).load()
            assert isinstance(self._metadata, Metadata)
        except FileNotFoundError:
            raise InputError(f"{path}: missing; the checkpoint is not whole") from None
        except Exception as error:  # a damaged pickle raises nearly anything
            raise InputError(f"{path}: damaged ({' '.join(str(error).split())[:160]}); take another copy") from None
        self._check_files()
        entries = self._metadata.state_dict_metadata
        self.tensors = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
        self.objects = sorted(entries.keys() - self.tensors.keys())
        self._by_place: dict[str, tuple[int, dict]] = {}

    def _check_files(self) -> None:
        """Raise InputError listing the files that are missing or shorter than the metadata says."""
        needed: dict[str, int] = {}
        for place in self._metadata.storage_data.values():
            needed[place.relative_path] = max(needed.get(place.relative_path, 0), place.offset + place.length)
        problems = []
        for name, size in sorted(needed.items()):
            path = self.folder / name
            if not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size < size:
                problems.append(f"{name} has {path.stat().st_size} bytes, expected {size}")
        if problems:
            raise InputError(f"{self.folder}: the checkpoint is not whole: " + "; ".join(problems))

    @functools.cached_property
    def args(self) -> Namespace:
        """The arguments of the training that saved it. Raises InputError."""
        place = self._metadata.storage_data.get(MetadataIndex(COMMON))
        if place is None:
            raise InputError(f"{self.folder}: holds no {COMMON}; expected a checkpoint of megatron-core 0.19")
        with open(self.folder / place.relative_path, "rb") as file:
            file.seek(place.offset)
            content = io.BytesIO(file.read(place.length))
        try:
            (common,) = torch.load(content, weights_only=True)  # Megatron has registered what its arguments hold
            args = common["args"]
        except Exception as error:  # a damaged file raises nearly anything
            raise InputError(f"{self.folder}: {COMMON} is damaged ({' '.join(str(error).split())[:160]})") from None
        return args

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """Read a block of a tensor, whatever chunks it was saved in.

        name: of a tensor of shape tensors[name].size. offsets, sizes: the block's start and shape, one number for each
        axis; (3, 0, 0) and (1, R, H) is layer 3 of [layers, R, H]. Returns a tensor [*sizes] of the type in which it
        was saved, mapped from the file where one chunk holds all of it; to write to it changes no file. Raises
        InputError if it is damaged.
        """
        entry = self.tensors[name]
        block = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        near = replace(entry, chunks=self._chunks_near(name, block))
        items = create_read_items_for_chunk_list(name, near, [block])
        if sum(item.lengths.numel() for item in items) != math.prod(sizes):
            raise InputError(f"{self.folder}: {name} is not whole; take another copy")
        try:
            if len(items) == 1:
                return self._part(items[0])
            target = torch.empty(tuple(sizes), dtype=entry.properties.dtype)
            for item in items:
                _narrow(target, item.dest_offsets, item.lengths).copy_(self._part(item))
        except OSError as error:
            raise InputError(f"{self.folder}: {name} cannot be read ({error})") from None
        except Exception as error:  # a damaged file raises nearly anything
            raise InputError(f"{self.folder}: {name} is damaged ({' '.join(str(error).split())[:160]})") from None
        return target

    def _part(self, item: ReadItem) -> torch.Tensor:
        """What an item asks for of its chunk, mapped into memory: a copy of the file's bytes would take longer than the
        rest of a conversion."""
        place = self._metadata.storage_data[item.storage_index]
        with open(self.folder / place.relative_path, "rb") as file:
            view = _create_file_view(file, place.offset, place.length)
            chunk = torch.load(view, map_location="meta", weights_only=True)  # all but its numbers, and where they are
            storage = chunk.untyped_storage()
            size, begin = storage.nbytes(), place.offset + storage._checkpoint_offset
            # Not the whole file: the system promises memory for what might be written to, at most as much as it has.
            skipped = begin % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(file.fileno(), skipped + size, access=mmap.ACCESS_COPY, offset=begin - skipped)
        content = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=skipped)
        if content.data_ptr() % chunk.dtype.itemsize:
            content = content.clone()
        numbers = content.view(chunk.dtype).as_strided(chunk.size(), chunk.stride(), chunk.storage_offset())
        return _narrow(numbers, item.storage_offsets, item.lengths)

    def _chunks_near(self, name: str, block: ChunkStorageMetadata) -> list[ChunkStorageMetadata]:
        """The chunks that a block may lie in: torch compares it with each, and experts have many thousands."""
        if name not in self._by_place:
            chunks, axes = self.tensors[name].chunks, 0
            while chunks and axes < len(chunks[0].sizes) and all(chunk.sizes[axes] == 1 for chunk in chunks):
                axes += 1
            places: dict[tuple[int, ...], list[ChunkStorageMetadata]] = {}
            for chunk in chunks:
                places.setdefault(tuple(chunk.offsets[:axes]), []).append(chunk)
            self._by_place[name] = (axes, places)
        axes, places = self._by_place[name]
        if any(size != 1 for size in block.sizes[:axes]):
            return self.tensors[name].chunks
        return places.get(tuple(block.offsets[:axes]), [])


def _narrow(tensor: torch.Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """View the block of a tensor that starts at `offsets`, of shape `sizes`."""
    for axis, (start, length) in enumerate(zip(offsets, sizes, strict=True)):
        tensor = tensor.narrow(axis, start, length)
    return tensor


class _Files(FileSystem):
    """torch's files, with a say between two tensors."""

    stream: io.IOBase | None = None

    @contextlib.contextmanager
    def create_stream(self, path: str | Path, mode: str) -> Iterator[io.IOBase]:
        """As in torch."""
        with super().create_stream(path, mode) as self.stream:
            yield self.stream

    def between(self) -> None:
        """Have the disk begin with what is there; let the next tensor lie at an address that it can be mapped to."""
        if self.stream is not None:
            self.stream.write(bytes(-self.stream.tell() % ALIGNMENT))
            start_writing(self.stream)


def write_checkpoint(
    folder: Path,
    planned: Iterable[Planned],
    extra_states: Iterable[str],
    args: Namespace,
    written: Callable[[int], None],
) -> None:
    """Write a checkpoint without optimizer or iteration ("release") as the only one of a run's folder.

    extra_states: names of those that are there, and empty. written: called with the number of bytes of each tensor.
    Tensors are made one at a time; files are on the disk when this returns.
    """
    place = folder / "release"
    objects = dict.fromkeys(extra_states, _saved(None))
    objects[COMMON] = _saved({"args": args, "checkpoint_version": 3.0, "iteration": 0})
    writer = FileSystemWriter(place)
    writer.fs = files = _Files()
    planner = _LazyPlanner(planned, objects, files.between, written)
    torch.serialization.set_crc32_options(False)  # nothing reads them, and they take longer than the disk
    try:
        with warnings.catch_warnings(action="ignore"):  # that this is one process is on purpose
            checkpoint.save({}, storage_writer=writer, planner=planner, no_dist=True)
    except checkpoint.CheckpointException as error:
        cause = error.failures[0][0]  # what happened on this, the only rank
        if isinstance(cause, RuntimeError):  # torch's writer hides what the disk has said
            reason = " ".join(str(cause).split())[:100]
            raise InputError(f"{folder}: could not be written ({reason}); is the disk full?") from None
        raise cause from None
    finally:
        torch.serialization.set_crc32_options(True)
    save_config(CheckpointingConfig("torch_dist", 1), str(place))
    write_tracker(folder, "release")


def _saved(value: Any) -> io.BytesIO:
    """Serialise an object in the form in which Megatron keeps it: a list of one."""
    content = io.BytesIO()
    torch.save([value], content)
    return content


class _LazyPlanner(DefaultSavePlanner):
    """Plans every tensor without having it, and makes it when the writer comes to it."""

    def __init__(
        self, planned: Iterable[Planned], objects: dict[str, io.BytesIO], between: Callable, written: Callable
    ):
        super().__init__(flatten_state_dict=False)
        self.objects, self.between, self.written = objects, between, written
        self.planned = {_index(tensor): tensor for tensor in planned}

    def create_local_plan(self) -> SavePlan:
        """Write items of all objects and tensors, in their order."""
        items = [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in self.objects]
        items += [
            WriteItem(index, WriteItemType.SHARD, tensor_data=self._data(tensor))
            for index, tensor in self.planned.items()
        ]
        self.plan = SavePlan(items)
        return self.plan

    def _data(self, tensor: Planned) -> TensorWriteData:
        """Make place, shape and type of one tensor."""
        offsets, sizes, whole = _block(tensor)
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        return TensorWriteData(chunk, TensorProperties(dtype=tensor.dtype), torch.Size(whole))

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return the content of one item: a tensor [*sizes], with a 1 for each axis of its stack, or bytes."""
        if write_item.type == WriteItemType.BYTE_IO:
            return self.objects[write_item.index.fqn]
        planned = self.planned[write_item.index]
        tensor = planned.made()
        self.between()
        self.written(planned.nbytes)
        return tensor.contiguous()[(None,) * len(planned.stack)]


def _block(tensor: Planned) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Compute (offsets, sizes, shape of the whole) of a planned tensor."""
    zeros, ones = (0,) * len(tensor.shape), (1,) * len(tensor.stack)
    return (*tensor.place, *zeros), (*ones, *tensor.shape), (*tensor.stack, *tensor.shape)


def _index(tensor: Planned) -> MetadataIndex:
    """Make the key of a planned tensor in the checkpoint's metadata."""
    offsets, _, _ = _block(tensor)
    return MetadataIndex(tensor.name, offsets)
