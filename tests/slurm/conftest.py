"""Tests on a real Slurm of two nodes, by `make test-slurm`, which prints a table of them; `make test` skips them."""

import os
from pathlib import Path

import pytest
from support.slurm_cluster import Cluster, missing
from support.slurm_training import Reference

ASKED = "SLURM_TESTS"
results: list[tuple[str, str, float]] = []


def pytest_collection_modifyitems(items):
    reason = "on a real Slurm: make test-slurm" if not os.environ.get(ASKED) else missing()
    if reason:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The cluster."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def free_nodes(slurm):
    """No job is left to the next test."""
    yield
    slurm.end_jobs()


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Reference:
    """The same training by launch/torchrun.sh, which nothing has disturbed."""
    return Reference(tmp_path_factory.mktemp("reference"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" or report.outcome != "passed":
        case = getattr(item, "callspec", None)
        name = (item.function.__doc__ or item.name).strip() + (f" ({case.id})" if case else "")
        results.append((name, "as it should be" if report.passed else report.outcome, report.duration))
    return report


def pytest_terminal_summary(terminalreporter):
    """The table that docs/slurm.md shows."""
    if any(outcome != "skipped" for _, outcome, _ in results):
        terminalreporter.write_line("\n| case | outcome | seconds |\n|---|---|---|")
        for name, outcome, seconds in results:
            terminalreporter.write_line(f"| {name} | {outcome} | {seconds:.0f} |")
