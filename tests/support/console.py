"""The shell blocks of the documents, and a folder in which they run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

from guards import docs, tree

from support.forked import ON_CPU

DOCUMENTS = [path for path in tree.files() if re.fullmatch(r"(README|CONTRIBUTING|docs/(?!.*\.zh\.).*)\.md", path)]
"""Those in English: the blocks of a Chinese twin are the same (tests/project/test_readme_twin.py)."""


def shell_blocks() -> list[str]:
    """The text of each shell block of the documents."""
    return [text for path in DOCUMENTS for _, kind, text in docs.blocks(tree.read(path)) if kind in docs.SHELLS]


def make_clone(folder: Path) -> Path:
    """What a fresh clone has, after make setup."""
    for name in ("examples", "launch", "tools", "megatron_chimed"):
        (folder / name).symlink_to(tree.ROOT / name)
    script = folder / ".venv" / "bin" / "chimed"
    script.parent.mkdir(parents=True)
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m megatron_chimed "$@"\n')
    script.chmod(0o755)
    return folder


def shell(script: str, clone: Path, stdin: str = "") -> str:
    """Run a script in the clone and give what it prints; the test fails when one of its commands does."""
    path = f"{clone / '.venv' / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | ON_CPU | {"PATH": path, "PYTHONPATH": str(tree.ROOT)}
    done = subprocess.run(["sh", "-ec", script], cwd=clone, env=env, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout
