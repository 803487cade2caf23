"""The documents' blocks one after the other, as a reader goes through them: each on what those before it have made."""

from pathlib import Path

import pytest
from support.console import make_clone, shell, shell_blocks
from support.console_walk import STEPS

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clone(tmp_path_factory.mktemp("clone"))


@pytest.mark.parametrize("mark", STEPS)
def test_a_block_runs_on_what_those_before_it_made(mark, clone):
    """In the order of STEPS; what one lacks, the one before has not made."""
    before, changes = STEPS[mark]
    (block,) = (text for text in shell_blocks() if mark in text)
    for old, new in changes.items():
        assert old in block, old
        block = block.replace(old, new)
    if before:
        before(clone)
    assert shell(block, clone, stdin="头痛怎么办？\n")
