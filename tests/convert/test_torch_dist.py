"""Reading blocks of a torch_dist checkpoint in place: whatever torch has written, at whatever address it lies."""

import json
import warnings

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


def test_what_is_read_is_the_file_and_writing_to_it_changes_no_file(opened):
    path = next(opened.folder.glob("*.distcp"))
    before, block = path.read_bytes(), ("whole", (0, 0, 0), (6, 8, 10))
    first, second = opened.read(*block), opened.read(*block)
    assert first.data_ptr() == second.data_ptr()  # mapped, and not copied
    first.zero_()
    assert path.read_bytes() == before
    assert torch.equal(TorchDistCheckpoint(opened.folder).read(*block), TENSORS["whole"])


def test_a_damaged_chunk_is_one_line(opened):
    path = next(opened.folder.glob("*.distcp"))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(InputError, match="whole is damaged"):
        opened.read("whole", (0, 0, 0), (6, 8, 10))
