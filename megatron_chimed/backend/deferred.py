"""Packages that are imported when something is asked of them, and no sooner: those that another library imports and a
command has no use for."""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator


class Deferred(types.ModuleType):
    """Stands for a module that is imported when something is asked of it, or of a module in it, and then takes its
    place wherever it was imported to. importlib's LazyLoader is too easily awakened: torch looks through all modules
    for their files."""

    def __getattr__(self, name: str) -> object:
        """What this stand-in lacks."""
        if name.startswith("__") and name != "__path__":  # which is asked for by the import of a module in it
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        for one in list(sys.modules.values()):
            for key, value in list(getattr(one, "__dict__", {}).items()):
                if value is self:
                    setattr(one, key, module)
        return getattr(module, name)


def defer_import(name: str) -> Deferred | None:
    """Have a package that is installed imported no sooner than something is asked of it. None where it is already."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        return None
    stand_in = sys.modules[name] = Deferred(name)
    stand_in.__spec__, stand_in.__file__ = spec, spec.origin
    return stand_in


@contextlib.contextmanager
def deferred(name: str) -> Iterator[None]:
    """The same for what is imported here; whoever imports the package afterwards does so."""
    stand_in = defer_import(name)
    try:
        yield
    finally:
        if stand_in is not None and sys.modules.get(name) is stand_in:
            del sys.modules[name]
