"""Test tiers, and what holds for every test.

A test file's tier follows from where it lies and what it imports, so that nobody has to remember a marker:

- ``tests/gpu/``: gpu, skipped with a reason where there is no CUDA device;
- ``tests/integration/``, and every file that imports torch, Megatron or a module of ours that does: cpu;
- all others: light; ``pytestmark = pytest.mark.slow`` keeps a file that takes ten seconds out of `make test-light`.

A file that only starts such a program in a subprocess says so itself: ``pytestmark = pytest.mark.cpu``.
"""

import contextlib
import gc
import os
from functools import cache
from pathlib import Path

import pytest
from guards import imports, tree
from support.fork_server import set_forked

LIGHT_ONLY = "not cpu and not gpu and not slow"  # of make test-light
TORCH = ("torch", "megatron")
REAL = {"slurm", "vllm_real"}
"""Folders in which all programs are as users start them."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # files run side by side, and threads that wait for each other spin
os.fsync = lambda fd: None  # no test cuts the power; what a test starts still waits for its disk
with contextlib.suppress(ImportError):  # tests/gpu runs where there is pytest alone
    import hypothesis

    hypothesis.settings.register_profile("project", deadline=None)  # a slow machine is no failure
    hypothesis.settings.load_profile("project")


@cache
def module_files() -> dict[str, str]:
    """The package's modules (dotted name without the package's) and the helpers in tests/support, to path."""
    modules = {imports.module_name(path): path for path in tree.python_files(f"{imports.PACKAGE}/")}
    helpers = [path for path in tree.python_files("tests/") if path.startswith("tests/support/")]
    return modules | {f"support.{Path(path).stem}": path for path in helpers}


@cache
def needs_torch(path: str) -> bool:
    """Whether a file, or a module of ours that it imports, imports torch or Megatron."""
    files, seen, todo = module_files(), set(), [path]
    while todo:
        source = tree.read(todo.pop())
        names = {name for _, name in imports.imports(source)}
        if any(imports.is_under(name, TORCH) for name in names):
            return True
        helpers = {".".join(name.split(".")[:2]) for name in names if name.startswith("support.")} & set(files)
        found = (imports.own_modules(source, set(files)) | helpers) - seen
        seen |= found
        todo += [files[module] for module in found]
    return False


def tier(file: Path) -> str:
    """light, cpu or gpu."""
    path = file.relative_to(tree.ROOT).as_posix()
    if path.startswith("tests/gpu/"):
        return "gpu"
    return "cpu" if path.startswith("tests/integration/") or needs_torch(path) else "light"


def pytest_configure():
    """What is imported stays to the end: the garbage collector would go through it again and again."""
    gc.disable()


def pytest_collection_finish():
    """From here on it has its work."""
    gc.freeze()
    gc.enable()


def pytest_ignore_collect(collection_path, config):
    """`make test-light` does not even import the files that need torch."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if is_test and config.option.markexpr == LIGHT_ONLY and tier(collection_path) != "light" else None


@cache
def turn(file: Path) -> tuple[bool, bool, int, str]:
    """The order of test files: those that start ranks, then those that need torch, of each kind the large ones."""
    return "integration" not in file.parts, tier(file) == "light", -file.stat().st_size, str(file)


def pytest_collection_modifyitems(items):
    """Mark every test with its tier; skip the gpu tier where there is no device. The files that take longest come
    first, so that the last ones that run side by side are short."""
    items.sort(key=lambda item: turn(item.path))
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("light", "cpu", "gpu")):
            item.add_marker(tier(item.path))
        if REAL & set(item.path.parts):
            item.add_marker("real_processes")
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What tests that need torch start is forked, but where a test is about processes."""
    set_forked(bool(item.get_closest_marker("cpu")) and not item.get_closest_marker("real_processes"))


@pytest.fixture(scope="module")
def one_thread():
    """Small models gain nothing by more, and lose much where other programs run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)
