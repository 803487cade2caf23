"""The start of a process: what it imports is not looked through for garbage, and what comes later is."""

import gc
import subprocess
import sys
import weakref

import pytest

from megatron_chimed.backend.quiet import fast_imports


class Knot:
    """Something that only the garbage collector frees."""

    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def unfrozen():
    yield
    gc.unfreeze()


def test_what_is_imported_is_never_looked_at_and_what_comes_later_is():
    with fast_imports():
        early = weakref.ref(Knot())
        assert not gc.isenabled()
    assert gc.isenabled()
    later = weakref.ref(Knot())
    gc.collect()
    assert early() is not None and later() is None


def test_a_failing_import_leaves_the_collector_on():
    with pytest.raises(ImportError), fast_imports():
        import megatron_chimed.no_such_module  # noqa: F401
    assert gc.isenabled()


def test_a_command_that_asks_for_a_checkpoints_template_first_says_nothing_of_absent_libraries(tmp_path):
    program = "from megatron_chimed.convert.trained_template import of_checkpoint as ask\n"
    program += "from megatron_chimed.errors import InputError\n"
    program += "try:\n    ask('nowhere')\nexcept InputError:\n    print('asked')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("asked\n", "")
