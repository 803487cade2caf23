"""The reference pages, made of the code: every command's flags, every key of a configuration, the public names.

PYTHONPATH=tests:. python -m guards.reference        # writes docs/reference/
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields

import megatron_chimed
from guards import tree
from megatron_chimed.commands.main import COMMANDS, make_parser
from megatron_chimed.models.options import LoraOptions, ModelOptions
from megatron_chimed.rejection.config import SECTIONS, Paths
from megatron_chimed.rejection.scorers.options import KINDS
from megatron_chimed.stages.options import STAGES
from megatron_chimed.text.template import Template
from megatron_chimed.training.options import JobOptions, Replay

FOLDER = "docs/reference"
MADE = "Made of the code by `PYTHONPATH=tests:. python -m guards.reference`; a test holds it against the code."
TWO_BLOCKS = """
A model YAML and a stage YAML have a block `megatron:`, Megatron's own arguments by their names, and a block `chimed:`
with the keys of the first sections; rejection sampling has a YAML of its own. There is more on
[training](../guides/training.md), [LoRA](../lora.md), [preferences](../preferences.md) and
[templates](../templates.md)."""
MEGATRONS = "Its other flags are Megatron's own, and override what the YAML files say."


def cell(text: str) -> str:
    """A text as a cell of a table: one line, with Markdown's code spans, and no HTML outside of them.

    A bar ends a cell: GitHub wants it escaped in code, and the site would show the backslash.
    """
    pieces = " ".join(text.split()).replace("``", "`").replace(" | ", " or ").replace("|", " or ").split("`")
    return "`".join(piece if place % 2 else piece.replace("<", "&lt;") for place, piece in enumerate(pieces))


# Commands.


def flag(action: argparse.Action) -> str:
    """A flag as it is given: ``--mode {whole,last}``."""
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    value = value if isinstance(value, str) else " ".join(value)
    value = {"+": f"{value} [{value} ...]", "*": f"[{value} ...]", "?": f"[{value}]"}.get(str(action.nargs), value)
    return f"{names} {value}".strip()


def flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The table of a parser's flags, if it has some."""
    own = [one for one in parser._actions if not isinstance(one, argparse._HelpAction | argparse._SubParsersAction)]
    own = [one for one in own if one.help != argparse.SUPPRESS]
    if own:
        yield from ("", "| flag | what it says |", "|---|---|")
    for one in own:
        needed = "" if not (one.required and one.option_strings) else " Required."
        said = cell((one.help or "") % {"default": one.default, "prog": parser.prog})
        yield f"| {cell(f'`{flag(one)}`')} | {said[:1].upper()}{said[1:]}{'.' if said else ''}{needed} |"


def inner(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands inside a command, by name."""
    groups = (one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return {name: choice for group in groups for name, choice in group.items()}


def command(name: str) -> Iterator[str]:
    """The section of a command."""
    parser = make_parser(name, f"chimed {name}")
    yield from ("", f"## chimed {name}", "", "```text", parser.description.strip(), "```")
    yield from flags(parser)
    for word, one in inner(parser).items():
        yield from ("", f"### chimed {name} {word}")
        yield from flags(one)
    if name == "train":
        yield from ("", MEGATRONS)
    yield from ("", "```text", parser.epilog.strip(), "```")


def commands() -> str:
    """The page of all commands."""
    lines = ["# Commands", "", MADE, "", "| command | what it does |", "|---|---|"]
    lines += [
        f"| [`chimed {name}`](#chimed-{name.replace(' ', '-')}) | {what} |" for name, (_, what) in COMMANDS.items()
    ]
    for name in COMMANDS:
        lines += command(name)
    return "\n".join([*lines, ""])


# Configuration.


def field_texts(cls: type) -> dict[str, tuple[str, str]]:
    """{field: (its type as written, the text below it)} of a dataclass."""
    path = f"{cls.__module__.replace('.', '/')}.py"
    body = next(node.body for node in tree.syntax(tree.read(path)).body if getattr(node, "name", "") == cls.__name__)
    found = {}
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            kind = re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace("'", ""), ast.unparse(node.annotation))
            found[node.target.id] = kind.replace("None", "null"), below.value.value if is_text else ""
    return found


def default(field) -> str:
    """A field's default as YAML would have it; a dash where it must be given."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING:
        return "-"
    words = {None: "null", True: "true", False: "false", "": '""', (): "[]"}
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, bool | str | None | tuple) and value in words:
        return f"`{words[value]}`"
    return f"`{value}`"


def keys(cls: type, typed: bool = True) -> list[str]:
    """The table of a dataclass's keys."""
    lines = ["", "| key | type | default | what it does |" if typed else "| key | what it does |"]
    lines += ["|---|---|---|---|" if typed else "|---|---|"]
    texts = field_texts(cls)
    for one in fields(cls):
        kind, text = texts[one.name]
        old = f" Was called `{one.metadata['was']}`." if "was" in one.metadata else ""
        middle = f"| `{cell(kind)}` | {cell(default(one))} " if typed else ""
        lines.append(f"| `{one.name}` {middle}| {cell(text)}{old} |")
    return lines


def section(title: str, cls: type, level: str = "##", typed: bool = True) -> list[str]:
    """A heading, what the class is about, and its keys."""
    return ["", f"{level} {title}", "", cell(cls.__doc__), *keys(cls, typed)]


def configuration() -> str:
    """The page of all keys."""
    lines = ["# Configuration", "", MADE, TWO_BLOCKS]
    for name, cls in STAGES.items():
        lines += section(f"The stage {name}", cls)
    lines += section("The model", ModelOptions) + section("lora", LoraOptions, "###") + section("The job", JobOptions)
    lines += section("replay", Replay, "###")
    lines += ["", "## Rejection sampling", "", "Keys at the top of the YAML of `chimed rejection`:", *keys(Paths)]
    for name, cls in SECTIONS.items():
        lines += section(name, cls, "###")
    lines += ["", "### scorer, grader", "", "A mapping or a list of them, by `engine` ([the page](../rejection.md))."]
    for cls in dict.fromkeys(KINDS.values()):
        engines = ", ".join(name for name, one in KINDS.items() if one is cls)
        lines += section(f"engine: {engines}", cls, "####")
    lines += section("A template", Template, typed=False)
    return "\n".join([*lines, ""])


# Public names.


def definition(name: str) -> ast.AST:
    """The class or function of a public name, also where its module has it from another one."""
    module = f"megatron_chimed.{megatron_chimed._PLACES[name]}"
    while True:
        body = tree.syntax(tree.read(f"{module.replace('.', '/')}.py")).body
        found = [node for node in body if getattr(node, "name", "") == name]
        if found:
            return found[0]
        imported = (node for node in body if isinstance(node, ast.ImportFrom))
        module = next(node.module for node in imported if name in [one.name for one in node.names])


def signature(node: ast.FunctionDef, name: str) -> str:
    """How a function is called."""
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("cls, ")
    arguments = "" if arguments in ("self", "cls") else arguments
    return f"{name}({arguments}) -> {ast.unparse(node.returns) if node.returns else 'None'}"


def described(node: ast.FunctionDef, name: str) -> list[str]:
    """A function's call and its docstring."""
    return ["", "```text", signature(node, name), "", ast.get_docstring(node) or "", "```"]


def api() -> str:
    """The page of the public names."""
    lines = ["# Python", "", MADE, "", "`import megatron_chimed as mc` imports nothing until a name is used."]
    for name in megatron_chimed.__all__:
        node = definition(name)
        lines += ["", f"## mc.{name}"]
        if isinstance(node, ast.FunctionDef):
            lines += described(node, f"mc.{name}")
            continue
        lines += ["", "```text", ast.get_docstring(node) or "", "```"]
        for method in public_methods(node.body):
            lines += described(method, f"{name}.{method.name}")
    return "\n".join([*lines, ""])


def public_methods(body: Iterable[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """The methods of a class that are for its users and not properties."""
    for node in body:
        marks = [ast.unparse(one) for one in getattr(node, "decorator_list", [])]
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and "property" not in marks:
            yield node


def pages() -> dict[str, str]:
    """{path: text} of all of them."""
    made = {"commands": commands, "configuration": configuration, "api": api}
    return {f"{FOLDER}/{name}.md": make() for name, make in made.items()}


if __name__ == "__main__":
    (tree.ROOT / FOLDER).mkdir(exist_ok=True)
    for path, text in pages().items():
        (tree.ROOT / path).write_text(text, encoding="utf-8")
        print(path, file=sys.stderr)
