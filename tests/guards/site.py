"""The pages of docs/ as a site: every page in the menu, every link to a page and an anchor, no page too long."""

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping

import yaml

from guards import reference

CONFIG, FOLDER, PAGE_LINES = "mkdocs.yml", "docs/", 200
MADE_OF_CODE = ("docs/architecture.md", "docs/licences.md", "docs/upstream.md", f"{reference.FOLDER}/")
LINK = r"!?\[[^\]]*\]\(([^)\s]+)\)"


def entries(menu: object) -> Iterator[str]:
    """The pages of a menu, at any depth."""
    if isinstance(menu, str):
        yield menu
    else:
        for one in menu.values() if isinstance(menu, dict) else menu:
            yield from entries(one)


def menu_faults(config: str, pages: Iterable[str]) -> list[str]:
    """Pages that the menu lacks, and entries without a page."""
    listed, there = [f"{FOLDER}{name}" for name in entries(yaml.safe_load(config)["nav"])], set(pages)
    found = [f"{CONFIG}: {name} is not there" for name in listed if name not in there]
    found += [f"{CONFIG}: {name} is listed twice" for name in set(listed) if listed.count(name) > 1]
    return found + [f"{CONFIG}: {name} is in no menu" for name in sorted(there - set(listed))]


def without_code(markdown: str) -> str:
    """A page without its blocks and code spans, line by line."""
    text = re.sub(r"^```.*?^```$", lambda match: "\n" * match[0].count("\n"), markdown, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(markdown: str) -> set[str]:
    """The anchors of a page's headings, the same on GitHub and on the site for plain words."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(path: str, markdown: str, pages: Mapping[str, str]) -> list[str]:
    """Links to what is not there: `pages` are all documents with their texts. A page of the site links to pages of the
    site alone, for it is read without the rest of the tree."""
    found = []
    for number, line in enumerate(without_code(markdown).splitlines(), start=1):
        for target in re.findall(LINK, line):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(path), name)) if name else path
            if place not in pages or (path.startswith(FOLDER) and not place.startswith(FOLDER)):
                found.append(f"{path}:{number}: {target} leads nowhere")
            elif anchor and anchor not in anchors(pages[place]):
                found.append(f"{path}:{number}: {target} has no such heading")
    return found


def too_long(path: str, markdown: str) -> list[str]:
    """A page written by hand that is longer than a reader bears."""
    lines = len(markdown.splitlines())
    by_hand = path.startswith(FOLDER) and not path.startswith(MADE_OF_CODE)
    return [f"{path}: {lines} lines; a page has at most {PAGE_LINES}"] if by_hand and lines > PAGE_LINES else []
