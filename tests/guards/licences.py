"""docs/licences.md, made of the metadata of the installed packages: what this one asks for, and what those ask for.

PYTHONPATH=tests:. python -m guards.licences        # writes the page
"""

import re
import tomllib
from email.message import Message
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from guards import tree

PAGE = "docs/licences.md"
LONGEST = 60
"""Characters of a licence's name; a longer field holds the text itself."""

NOT_IN_THE_LOCK = {
    "flash-attn": "BSD-3-Clause",
    "mkdocs": "BSD-2-Clause",
    "tensorboard": "Apache-2.0",
    "transformer-engine": "Apache-2.0",
    "vllm": "Apache-2.0",
}
"""Packages of extras that no environment of the lock has, with the licences that their own projects name."""

HEAD = """# Licences of dependencies

Made of the installed packages by `PYTHONPATH=tests:. python -m guards.licences`; a test holds it against them.

This package is under Apache-2.0. Its wheel and its source distribution hold none of the packages below, only their
names: whoever installs it takes each from its own makers, under its own terms. The licences are what each package's
metadata say, word by word; nobody has compared them with the packages' files. Where the metadata give a name and a list
of classifiers that says something else, both stand here, as for megatron-core. Those that are not in the lock have the
licence known to us; it was not read from their metadata: check it before you rely on it.

Three kinds ask for a second look by whoever hands on a whole environment, for example as an image: the packages of
NVIDIA under a proprietary licence, which torch brings along on Linux for CUDA; chardet under the LGPL; and those under
the MPL-2.0, which wants changes to their own files published.
"""
DIRECT = """
## What pyproject.toml asks for

The last column names the extra; without one every installation has the package.
"""
REST = """
## What those ask for

The rest of `requirements.lock`, which `make setup` installs.
"""


def licence(of: Message) -> str:
    """What a package's metadata say: the expression, else the field where it is a name, else the classifiers."""
    if expression := of.get("License-Expression"):
        return expression
    last = [one.rpartition(" :: ")[2] for one in of.get_all("Classifier") or [] if one.startswith("License :: ")]
    field = of.get("License", "").strip()
    first = field.partition("\n")[0].strip()
    name = first if field == first and len(first) <= LONGEST or re.fullmatch(r"(The )?[\w ]+ License.*", first) else ""
    classified = ", ".join(last)
    if name and classified and not _alike(name, classified):
        return f"{name}; classifiers: {classified}"
    return name or classified or "not said"


def _alike(name: str, classified: str) -> bool:
    """Whether a name and classifiers speak of one licence, by the first word of either that is no article."""
    words = re.findall(r"Apache|BSD|MIT|MPL|Mozilla|PSF|Python|ISC|LGPL|Proprietary|Dual", name, re.IGNORECASE)
    known = {"mpl": "mozilla", "psf": "python", "psfl": "python", "lgpl": "lesser"}
    return not words or any(known.get(word.lower(), word.lower()) in classified.lower() for word in words)


def locked() -> dict[str, tuple[str, str]]:
    """{canonical name: (name, version)} of requirements.lock."""
    lines = [line.split(" ;")[0] for line in tree.read("requirements.lock").splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): (name, version) for name, _, version in (line.partition("==") for line in lines)}


def direct() -> dict[str, list[str]]:
    """{canonical name: the extras that ask for it, "" for every installation}."""
    project = tomllib.loads(tree.read("pyproject.toml"))["project"]
    asked: dict[str, list[str]] = {}
    for extra, wanted in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for text in wanted:
            asked.setdefault(canonicalize_name(Requirement(text).name), []).append(extra)
    return asked


def said(name: str, version: str, standing: str) -> str:
    """The licence of a package as it is installed; where it is not (CUDA's on another platform), what stands there."""
    try:
        of = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        row = re.search(rf"^\| {re.escape(name)} \| {re.escape(version)} \| ([^|]*) \|", standing, re.MULTILINE)
        return row[1] if row else f"{name} {version} is not installed here"
    return licence(of) if of["Version"] == version else f"{of['Version']} is installed, the lock has {version}"


def page(standing: str) -> str:
    """The page; standing: as it is now."""
    asked, lock = direct(), locked()
    lines = [HEAD + DIRECT, "| package | version | licence | extra |", "|---|---|---|---|"]
    for key in sorted(asked):
        extras = "" if "" in asked[key] else ", ".join(asked[key])
        name, version = lock.get(key, (key, "not in the lock"))
        text = said(name, version, standing) if key in lock else NOT_IN_THE_LOCK[key]
        lines.append(f"| {name} | {version} | {text} | {extras} |")
    lines += [REST, "| package | version | licence |", "|---|---|---|"]
    rest = sorted(lock.keys() - asked.keys())
    lines += [f"| {lock[key][0]} | {lock[key][1]} | {said(*lock[key], standing)} |" for key in rest]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (tree.ROOT / PAGE).write_text(page(tree.read(PAGE) if PAGE in tree.files() else ""), encoding="utf-8")
