"""Where things lie: the project's root, its commands, and the samples that are not part of it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
TESTS = ROOT / "tests"
SHARED = ROOT.parent / "shared" / "data"
"""Real samples in the sources' own formats; tests on them skip with a reason where the folder is absent."""
