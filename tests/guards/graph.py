"""The package's imports as a picture: one box for each folder and each module beside them, what it needs below it.

PYTHONPATH=tests python -m guards.graph        # writes the picture into CONTRIBUTING.md
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from guards import imports, tree

PLACE = re.compile(r"(<!-- imports -->\n).*?(<!-- /imports -->)", re.DOTALL)


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


def drawn(document: str, graph: Mapping[str, set[str]]) -> str:
    """The document with the picture between its marks."""
    return PLACE.sub(lambda match: match[1] + picture(graph) + match[2], document)


if __name__ == "__main__":
    package = tree.python_files("megatron_chimed")
    (tree.ROOT / "CONTRIBUTING.md").write_text(drawn(tree.read("CONTRIBUTING.md"), boxes(package)), encoding="utf-8")
