"""tests/gpu, in this process, with a result that grows from test to test."""

from pathlib import Path
from typing import Any

import pytest

from megatron_chimed.jsonl import write_json


class Outcomes:
    """A plug-in that counts tests by their outcome, and writes the counts whenever one has ended."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "names_of_failed": []}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One of the three phases of a test: what fails or skips in set-up has no second one."""
        if report.when == "call" or (report.when == "setup" and not report.passed) or report.failed:
            self.found[report.outcome] += 1
            self.found["names_of_failed"] += [report.nodeid] if report.failed else []
            write_json(self.path, self.found)


def measure(way: str, given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Counts of tests. Raises RuntimeError when pytest itself does not come to its end."""
    outcomes = Outcomes(path)
    code = pytest.main([given["tests"], "-q", "-p", "no:cacheprovider"], plugins=[outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {code!r}")
    return outcomes.found
