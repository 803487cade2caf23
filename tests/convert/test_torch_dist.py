"""Reading blocks of a torch_dist checkpoint in place: whatever torch has written, at whatever address it lies."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint

from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError

TENSORS = {
    "whole": torch.randn(6, 8, 10),
    "transposed": torch.randn(10, 6).t(),
    "part of a larger one": torch.randn(12, 12)[3:7, ::2],
    "odd": torch.randint(0, 9, (3, 7, 1), dtype=torch.int8),
    "bfloat16": torch.randn(4, 33, 7).bfloat16(),
    "float64": torch.randn(5, 3, dtype=torch.float64),
}


@pytest.fixture
def opened(tmp_path) -> TorchDistCheckpoint:
    with warnings.catch_warnings(action="ignore"):  # that this is one process
        checkpoint.save(dict(TENSORS), checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    return TorchDistCheckpoint(tmp_path)


@pytest.mark.parametrize("name", TENSORS)
def test_every_block_is_that_of_the_tensor(opened, name):
    tensor = TENSORS[name]
    whole = opened.read(name, (0,) * tensor.dim(), tuple(tensor.shape))
    assert whole.dtype == tensor.dtype and torch.equal(whole, tensor)
    corner = opened.read(name, (2, *(1,) * (tensor.dim() - 1)), (1, *(size - 1 for size in tensor.shape[1:])))
    assert torch.equal(corner, tensor[(slice(2, 3), *(slice(1, None),) * (tensor.dim() - 1))])


def test_numbers_are_at_addresses_that_their_type_may_have(opened):
    for name, tensor in TENSORS.items():
        assert opened.read(name, (0,) * tensor.dim(), tuple(tensor.shape)).data_ptr() % tensor.dtype.itemsize == 0


def mappings(path) -> int:
    """How often this process has a file mapped."""
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_what_is_read_is_mapped_as_long_as_it_is_held(opened):
    path = next(opened.folder.glob("*.distcp"))
    held = opened.read("whole", (0, 0, 0), (6, 8, 10))
    assert mappings(path) == 1
    del held
    assert mappings(path) == 0


def test_writing_to_what_is_read_changes_no_file(opened):
    path = next(opened.folder.glob("*.distcp"))
    before, block = path.read_bytes(), ("whole", (0, 0, 0), (6, 8, 10))
    opened.read(*block).zero_()
    assert path.read_bytes() == before
    assert torch.equal(opened.read(*block), TENSORS["whole"])


def test_a_file_may_be_larger_than_the_memory(opened):
    """The end of this one is a hole, which takes no place on the disk."""
    path = next(opened.folder.glob("*.distcp"))
    os.truncate(path, 1 << 40)
    assert torch.equal(opened.read("whole", (0, 0, 0), (6, 8, 10)), TENSORS["whole"])


def test_a_damaged_chunk_is_one_line(opened):
    path = next(opened.folder.glob("*.distcp"))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match="whole is damaged"):
        opened.read("whole", (0, 0, 0), (6, 8, 10))
