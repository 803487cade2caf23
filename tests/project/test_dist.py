"""`make dist`: the source distribution is the tree, the wheel is whole, and what fails its trial is not given out."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from guards import tree
from support.paths import ROOT

import megatron_chimed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a release is made from a clone, and this is none"),
]
VERSION = megatron_chimed.__version__
MADE_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}


def make(folder: Path, output: Path) -> subprocess.CompletedProcess:
    """Call the script of a clone as `make dist` does."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHON")}
    command = ["sh", "tools/dist.sh", output]
    return subprocess.run(
        command, cwd=folder, env=variables | {"PATH": path}, capture_output=True, text=True, timeout=250
    )


def clone(folder: Path, changes: dict[str, tuple[str, str]]) -> Path:
    """A clone with what the script needs, tracked; changes: {path: (old text, new text)}."""
    names = [name for name in tree.files() if name.startswith(("megatron_chimed/", "tools/dist.sh")) or "/" not in name]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name, (old, new) in changes.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, name
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    for command in (["git", "init", "--quiet"], ["git", "add", "--force", "--", *names]):
        subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder


def test_the_release_is_the_tree_and_runs_outside_of_it(tmp_path):
    done = make(ROOT, tmp_path / "dist")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is installed and runs outside of the clone") == 2
    names = {path.name for path in (tmp_path / "dist").iterdir()}
    source, wheel = f"megatron_chimed-{VERSION}.tar.gz", f"megatron_chimed-{VERSION}-py3-none-any.whl"
    assert names == {source, wheel}
    tracked = set(subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines())
    with tarfile.open(tmp_path / "dist" / source) as archive:
        held = {one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()}
    assert {name for name in held if not name.startswith("megatron_chimed.egg-info/")} - MADE_BY_SETUPTOOLS == tracked
    with zipfile.ZipFile(tmp_path / "dist" / wheel) as archive:
        packed = set(archive.namelist())
    assert {name for name in packed if ".dist-info/" not in name} == {
        name for name in tracked if name.startswith("megatron_chimed/")
    }
    assert any(name.endswith("licenses/LICENSE") for name in packed)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"CHANGELOG.md": (f"## [{VERSION}] - ", "## [soon] - ")},
            f"no entry with a date for {VERSION}",
        ),
        ({"pyproject.toml": (', "reports/*.html"', "")}, "has no megatron_chimed/evaluation/reports/"),
        ({"megatron_chimed/commands/main.py": ("print(__version__)", "print(1)")}, "chimed --version says 1"),
    ],
)
def test_control_what_is_not_whole_is_not_given_out(changes, complaint, tmp_path):
    done = make(clone(tmp_path / "clone", changes), tmp_path / "dist")
    assert done.returncode != 0 and complaint in done.stderr
    assert not (tmp_path / "dist").exists()
