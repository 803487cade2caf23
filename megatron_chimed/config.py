"""Configuration: a model YAML and a stage YAML in, Megatron's settings and our dataclasses out.

Each file has two blocks. ``megatron:`` holds Megatron's own argument names, which go verbatim through Megatron's own
parser; ``chimed:`` fills our dataclasses, each of which stands beside what it configures. A key given twice (in one
file or in both), an unknown key and a wrong type are errors that name file, line and key.
"""

import dataclasses
import functools
import os
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from megatron_chimed.errors import InputError

BLOCKS = ("megatron", "chimed")
FLAGS = {"allow-other-tokenizer", "valid"}
"""Options of ``chimed:`` that the command line takes as well."""


# Megatron takes one side of each; what the command line gives of one side replaces what the files give of the other.
ALTERNATIVES = (
    (("data-path", "split"), ("train-data-path", "valid-data-path", "test-data-path")),
    (
        ("train-iters", "lr-decay-iters", "lr-warmup-iters"),
        ("train-samples", "lr-decay-samples", "lr-warmup-samples"),
    ),
)


@dataclass(frozen=True)
class Located:
    """One value and where it was given, for messages: ``model.yaml:12`` or ``command line``."""

    value: Any
    where: str


@dataclass(frozen=True)
class RunConfig:
    """The merged content of a model YAML, a stage YAML and the command line."""

    megatron: dict[str, Located]
    """Megatron's arguments by option name without the leading dashes, hyphens inside: "num-layers"."""

    chimed: dict[str, Located] = field(default_factory=dict)
    """Our own keys."""


class _LocatedLoader(yaml.SafeLoader):
    """YAML's safe loader; a key given twice in one mapping is an error."""


def _construct_mapping(loader: _LocatedLoader, node: yaml.MappingNode) -> dict:
    """A mapping as {key: Located with line}, nested mappings likewise."""
    content: dict[Any, Located] = {}
    for key_node, value_node in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            line = key_node.start_mark.line + 1
            raise InputError(f"{loader.name}:{line}: merge keys (<<) are not supported; write the keys out")
        key = loader.construct_object(key_node, deep=True)
        where = f"{loader.name}:{key_node.start_mark.line + 1}"
        if key in content:
            raise InputError(f"{where}: key {key!r} is given twice (first at {content[key].where}); keep one")
        content[key] = Located(loader.construct_object(value_node, deep=True), where)
    return content


_LocatedLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_mapping(path: str | Path) -> dict[str, Located]:
    """Read a YAML file that is one mapping to {key: Located}; nested mappings likewise.

    Raises InputError with file and line: not a file, not YAML, a key given twice, no mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            loader = _LocatedLoader(file.read())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a YAML") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not a text for YAML ({' '.join(str(error).split())})") from None
    loader.name = str(path)
    try:
        content = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark or error.context_mark).line + 1
        raise InputError(f"{path}:{line}: not YAML ({error.problem or error.context})") from None
    except TypeError:
        raise InputError(f"{path}: a key must be a word, not a list or a mapping") from None
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, lines of the form key: value")
    return content


def read_yaml(path: str | Path) -> dict[str, dict[str, Located]]:
    """Read one configuration file to {"megatron": {...}, "chimed": {...}}; both blocks may be absent.

    Raises InputError as `read_mapping`, and for an unknown block or one that is no mapping.
    """
    return _blocks(read_mapping(path))


def _blocks(content: dict[str, Located]) -> dict[str, dict[str, Located]]:
    """Check the two-block form of a configuration file and normalise Megatron's names to hyphens."""
    blocks: dict[str, dict[str, Located]] = {name: {} for name in BLOCKS}
    for name, block in content.items():
        if name not in BLOCKS:
            raise InputError(f"{block.where}: unknown block {name!r}; a configuration has megatron: and chimed:")
        if block.value is None:
            continue
        if not isinstance(block.value, dict):
            raise InputError(f"{block.where}: block {name}: holds {_held(block.value)}; expected a mapping")
        for key, setting in block.value.items():
            normal = str(key).replace("_", "-") if name == "megatron" else str(key)
            merge(blocks[name], {normal: setting})
    return blocks


def merge(into: dict[str, Located], more: dict[str, Located]) -> None:
    """Add settings to a block. Raises InputError when a key is given in both."""
    for key, setting in more.items():
        if key in into:
            raise InputError(f"{setting.where}: key {key!r} is given twice (first at {into[key].where}); keep one")
        into[key] = setting


def parse_overrides(words: list[str]) -> dict[str, Located]:
    """``["--lr", "1e-4", "--bf16", "--data-path", "a", "b"]`` to settings: no value is True, several are a list.

    Raises InputError when a word stands before the first ``--key``, and when a key is given twice.
    """
    overrides: dict[str, Located] = {}
    values: dict[str, list[str]] = {}
    key = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            key = key.replace("_", "-")
            if key in values:
                raise InputError(f"command line: --{key} is given twice; keep one")
            values[key] = [value] if equals else []
        elif key is None:
            raise InputError(f"command line: unexpected {word!r}; after the two YAML files come --megatron-arg value")
        else:
            values[key].append(word)
    for key, given in values.items():
        value: Any = True if not given else given[0] if len(given) == 1 else given
        overrides[key] = Located(value, f"command line --{key}")
    return overrides


def load_settings(model_yaml: str | Path, stage_yaml: str | Path, overrides: list[str]) -> RunConfig:
    """Merge the two files; the command line overrides Megatron's arguments, and ALTERNATIVES. Raises InputError."""
    merged: dict[str, dict[str, Located]] = {name: {} for name in BLOCKS}
    for path in (model_yaml, stage_yaml):
        for name, block in read_yaml(path).items():
            merge(merged[name], block)
    given = parse_overrides(overrides)
    for pair in ALTERNATIVES:
        for ours, others in (pair, pair[::-1]):
            if given.keys() & set(ours):
                for key in others:
                    merged["megatron"].pop(key, None)
    for flag in FLAGS & given.keys():
        setting = given.pop(flag)
        merged["chimed"][flag.replace("-", "_")] = _named_paths(setting) if flag == "valid" else setting
    return RunConfig(merged["megatron"] | given, merged["chimed"])


def _named_paths(setting: Located) -> Located:
    """``--valid general=PATH medical=PATH`` as the mapping that it is in a file. Raises InputError."""
    paths: dict[str, Located] = {}
    for word in setting.value if isinstance(setting.value, list) else [setting.value]:
        name, _, path = str(word).partition("=")
        if not name or not path or name in paths:
            raise InputError(f"{setting.where}: expected NAME=PATH, each name once, found {word!r}")
        paths[name] = Located(path, setting.where)
    return Located(paths, setting.where)


def parse_dataclass(settings: dict[str, Located], *classes: type, block: str = " in chimed:") -> list[Any]:
    """Fill one instance of each dataclass from the ``chimed:`` block, every key going to the class that has it.

    block: where the keys stand, for the message, if not there. A field's metadata may name what its key ``was``:
    the old key is taken too, and a line on stderr says the new one.
    Raises InputError on a key that no class has (with the known ones), on a wrong type, and on one key by both names.
    """
    owner = {f.name: (cls, f) for cls in classes for f in dataclasses.fields(cls)}
    new_names = {f.metadata["was"]: name for name, (_, f) in owner.items() if "was" in f.metadata}
    given: dict[type, dict[str, Any]] = {cls: {} for cls in classes}
    for key, setting in settings.items():
        if key in new_names and key not in owner:
            _say_new_name(key, new_names[key], setting.where)
            if new_names[key] in settings:
                raise InputError(f"{setting.where}: {key!r} is the old name of {new_names[key]!r}; keep one")
            key = new_names[key]
        if key not in owner:
            raise InputError(f"{setting.where}: unknown key {key!r}{block}; known here: {', '.join(sorted(owner))}")
        cls, f = owner[key]
        given[cls][key] = _checked(key, setting, typing.get_type_hints(cls)[f.name])
    return [cls(**given[cls]) for cls in classes]


@functools.cache
def _say_new_name(old: str, new: str, where: str) -> None:
    """Tell once, on rank 0, that a key has a new name."""
    if os.environ.get("RANK", "0") == "0":
        print(f"megatron_chimed: {where}: {old} is called {new} now; the old name works", file=sys.stderr, flush=True)


def as_written(options: Any) -> dict[str, Any]:
    """A dataclass as JSON under the names that its keys have on disk, where a renamed key keeps the old one, so that
    hashes of settings stay the same."""
    found = {}
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if isinstance(value, tuple):
            value = [as_written(one) if dataclasses.is_dataclass(one) else one for one in value]
        found[f.metadata.get("was", f.name)] = as_written(value) if dataclasses.is_dataclass(value) else value
    return found


def _checked(key: str, setting: Located, expected: Any) -> Any:
    """The setting's value if it has the expected type (an int may stand for a float); of a mapping, each value."""
    value = setting.value
    if typing.get_origin(expected) is dict and isinstance(value, dict):
        kind = typing.get_args(expected)[1]
        return {str(name): _checked(f"{key}.{name}", one, kind) for name, one in value.items()}
    inner = next((one for one in (expected, *typing.get_args(expected)) if dataclasses.is_dataclass(one)), None)
    if inner is not None and isinstance(value, dict):
        return _filled(key, setting, inner)
    if inner is not None and not _fits(value, expected):
        names = ", ".join(f.name for f in dataclasses.fields(inner))
        raise InputError(f"{setting.where}: {key}: holds {_held(value)}; expected a mapping of {names}")
    if isinstance(value, str) and expected is float:
        try:
            return float(value)  # YAML 1.1 reads 1e-5 as text
        except ValueError:
            pass
    elif isinstance(value, int) and not isinstance(value, bool) and expected is float:
        return float(value)
    if not _fits(value, expected):
        found = "a mapping" if isinstance(value, dict) else repr(value)
        raise InputError(f"{setting.where}: {key}: expected {_name(expected)}, found {found}")
    return value


def _held(value: Any) -> str:
    """What stands in the place of a mapping, for a message."""
    return "a list" if isinstance(value, list) else repr(value)


def _filled(key: str, setting: Located, cls: type) -> Any:
    """A dataclass from a mapping below a key. Raises InputError as `parse_dataclass`, and for what is missing."""
    given = setting.value
    for f in dataclasses.fields(cls):
        if f.default is f.default_factory is dataclasses.MISSING and f.name not in given:
            raise InputError(f"{setting.where}: {key} has no {f.name}; give it")
    return parse_dataclass(given, cls, block=f" in {key}:")[0]


def plain(value: Any) -> Any:
    """A block of settings without the places where they were given, for JSON."""
    if isinstance(value, Located):
        return plain(value.value)
    return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def _name(expected: Any) -> str:
    """A type for a message: bool, one of 'a', 'b', str | None."""
    if typing.get_origin(expected) is Literal:
        return "one of " + ", ".join(repr(argument) for argument in typing.get_args(expected))
    return expected.__name__ if isinstance(expected, type) else str(expected)


def _fits(value: Any, expected: Any) -> bool:
    """Whether a YAML value is of a type: bool, int, float, str, None, Literal, unions and lists of them."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return value in arguments
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if expected is type(None):
        return value is None
    return type(value) is expected
