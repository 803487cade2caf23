"""The project's files: what git tracks or would track."""

import ast
import subprocess
from functools import cache

from support.paths import ROOT

IGNORED = {".git", ".venv", ".venv-vllm", "runs", "build", "dist", "__pycache__", ".pytest_cache", ".ruff_cache",
           ".hypothesis"}  # fmt: skip


@cache
def files() -> tuple[str, ...]:
    """Paths relative to the root, with slashes: tracked files and untracked ones that git does not ignore.

    Without git (an unpacked archive) every file outside the folders that .gitignore names.
    """
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True) if (ROOT / ".git").exists() else None
    if listing is not None and listing.returncode == 0:
        names = set(listing.stdout.splitlines())
    else:
        names = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()}
        names = {name for name in names if IGNORED.isdisjoint(name.split("/")) and ".egg-info/" not in name}
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


@cache
def read(path: str) -> str:
    """A file's text; "" for a binary file."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@cache
def syntax(source: str) -> ast.Module:
    """The syntax tree of a file, which many rules look at; not to be changed."""
    return ast.parse(source)


def python_files(*folders: str) -> list[str]:
    """The Python files, all of them or those under the given folders."""
    return [path for path in files() if path.endswith(".py") and (not folders or path.startswith(folders))]
