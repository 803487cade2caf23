"""The package as pictures in docs/architecture.md: its folders and files, a line each, and who imports whom.

PYTHONPATH=tests python -m guards.graph        # writes both
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import groupby

from guards import imports, tree

DOCUMENT = "docs/architecture.md"


def box(module: str) -> str:
    """The folder of a module, or the module itself.

    >>> box("megatron_chimed.data.clean"), box("megatron_chimed.training.trainer")
    ('data/', 'train')
    """
    name, *inner = module.removeprefix("megatron_chimed.").split(".")
    return f"{name}/" if inner else name


def layers(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Boxes from the bottom: in each layer those that need nothing but what lies below. Raises ValueError for a cycle.

    >>> layers({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    [['c'], ['b'], ['a']]
    """
    done: set[str] = set()
    found = []
    while len(done) < len(graph):
        ready = sorted(name for name, needs in graph.items() if name not in done and needs <= done)
        if not ready:
            raise ValueError(f"a cycle among {', '.join(sorted(graph.keys() - done))}")
        found.append(ready)
        done |= set(ready)
    return found


def boxes(paths: Iterable[str]) -> dict[str, set[str]]:
    """{box: boxes that it imports} of the package's files."""
    known = {imports.module_name(path): path for path in paths if not path.endswith(("__init__.py", "__main__.py"))}
    graph: dict[str, set[str]] = defaultdict(set)
    for module, path in known.items():
        needs = imports.own_modules(tree.read(path), set(known))
        graph[box(module)] |= {box(other) for other in needs} - {box(module)}
    return dict(graph)


def picture(graph: Mapping[str, set[str]]) -> str:
    """The layers from the top, each box with what it imports of the layers below."""
    lines = ["```"]
    for number, layer in reversed(list(enumerate(layers(graph)))):
        lines.append(f"{number}")
        lines += [f"    {name:<20}{' '.join(sorted(graph[name])) or '-'}" for name in layer]
    return "\n".join([*lines, "```", ""])


def first_line(path: str) -> str:
    """The first line of a module's docstring, which says what it is."""
    return (ast.get_docstring(tree.syntax(tree.read(path))) or "").partition("\n")[0]


def listing(paths: Iterable[str]) -> str:
    """The package's files as a tree: a folder's line is that of its __init__.py, a module's its own."""
    lines = ["```"]
    for folder, inside in groupby(
        sorted(paths, key=lambda path: path.rpartition("/")[::2]), lambda p: p.rpartition("/")[0]
    ):
        files = list(inside)
        lines.append(f"{folder + '/':<38}{first_line(f'{folder}/__init__.py')}".rstrip())
        modules = (path for path in files if not path.endswith("/__init__.py"))
        lines += [f"  {path.rpartition('/')[2]:<24}{first_line(path)}" for path in modules]
    return "\n".join([*lines, "```", ""])


def drawn(document: str, pictures: Mapping[str, str]) -> str:
    """The document with each picture between the marks of its name."""
    for name, text in pictures.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        document = place.sub(lambda match, text=text: match[1] + text + match[2], document)
    return document


def pictures(paths: Iterable[str]) -> dict[str, str]:
    """Both pictures of the package's files. Raises ValueError for a circle of imports."""
    return {"tree": listing(paths), "imports": picture(boxes(paths))}


if __name__ == "__main__":
    package = tree.python_files("megatron_chimed")
    (tree.ROOT / DOCUMENT).write_text(drawn(tree.read(DOCUMENT), pictures(package)), encoding="utf-8")
