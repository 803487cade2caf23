"""The start of a process: what it imports is not looked through for garbage, and what comes later is."""

import gc
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
