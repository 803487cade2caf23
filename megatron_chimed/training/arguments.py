"""Settings from YAML and command line to the words that Megatron's own argument parser reads."""

import argparse
from typing import Any

from megatron_chimed.config import Located
from megatron_chimed.errors import InputError


def with_defaults(settings: dict[str, Located], defaults: dict[str, Any], parser: argparse.ArgumentParser) -> dict:
    """Add our defaults where neither a key nor another option of the same argument is given."""
    options = _options(parser)
    given = {options[key].dest for key in settings if key in options}
    missing = {key: Located(value, "default") for key, value in defaults.items() if options[key].dest not in given}
    return missing | settings


def to_argv(settings: dict[str, Located], parser: argparse.ArgumentParser) -> list[str]:
    """Settings to command-line words, each checked against the parser's option of that name.

    A flag takes true or false (false leaves it out); a list gives several values. Raises InputError with the place of
    an unknown option, a wrong type, a wrong number of values or a value that is not among the choices, and when two
    names of one argument are given.
    """
    words: list[str] = []
    options = _options(parser)
    owner: dict[str, Located] = {}
    for key, setting in settings.items():
        action = options.get(key)
        if action is None:
            raise InputError(f"{setting.where}: Megatron has no argument {key!r}; see its arguments with --help")
        if action.dest in owner and not _is_plain_flag(action):
            raise InputError(f"{setting.where}: {key!r} is given twice (first at {owner[action.dest].where}); keep one")
        owner[action.dest] = setting
        words += _option(setting, action, name=next(o for o in action.option_strings if _normal(o) == key))
    return words


def padded_vocabulary(settings: dict[str, Located]) -> int:
    """--vocab-size padded as Megatron pads it. Megatron heeds it only where it has no tokenizer; but a model may have
    more rows than its tokenizer has ids."""
    keys = {"vocab-size": None, "make-vocab-size-divisible-by": 128, "tensor-model-parallel-size": 1}
    numbers = []
    for key, default in keys.items():
        setting = settings.get(key, Located(default, "Megatron's default"))
        if not str(setting.value).isdecimal() or not int(str(setting.value)):
            raise InputError(f"{setting.where}: --{key} expects a whole number above 0, found {setting.value!r}")
        numbers.append(int(str(setting.value)))
    size, multiple, ranks = numbers
    return -(-size // (multiple * ranks)) * multiple * ranks


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The parser's options by normalised name. argparse has no public way to ask for them."""
    return {_normal(name): action for name, action in parser._option_string_actions.items()}


def _normal(option: str) -> str:
    """``--override-opt_param-scheduler`` to ``override-opt-param-scheduler``, the form of keys in settings."""
    return option.lstrip("-").replace("_", "-")


def _is_plain_flag(action: argparse.Action) -> bool:
    """A flag without values. Some of Megatron's share a destination with its opposite."""
    return action.nargs == 0


def _option(setting: Located, action: argparse.Action, name: str) -> list[str]:
    """One option with its values as words. Raises InputError."""
    value = setting.value
    if _is_plain_flag(action):
        if isinstance(value, str) and value.lower() in ("true", "false"):  # from the command line
            value = value.lower() == "true"
        if not isinstance(value, bool):
            raise InputError(f"{setting.where}: {name} is a flag; expected true or false, found {value!r}")
        return [name] if value else []
    values = value if isinstance(value, list) else [value]
    several = action.nargs in ("*", "+") or isinstance(action.nargs, int)
    if len(values) != 1 and not several:
        raise InputError(f"{setting.where}: {name} takes one value, found {len(values)}")
    if not values or (isinstance(action.nargs, int) and len(values) != action.nargs):
        raise InputError(f"{setting.where}: {name} takes {action.nargs} values, found {len(values)}")
    for item in values:
        _check_value(name, item, setting, action)
    return [name, *(str(item) for item in values)]


def _check_value(name: str, item: Any, setting: Located, action: argparse.Action) -> None:
    """Raise InputError unless the parser would take this value."""
    if item is None or isinstance(item, bool | dict | list):
        found = "a mapping" if isinstance(item, dict) else repr(item)
        raise InputError(f"{setting.where}: {name} expects {_type_name(action)}, found {found}")
    try:
        converted = action.type(str(item)) if action.type else str(item)
    except (ValueError, TypeError, KeyError, AssertionError, argparse.ArgumentTypeError):
        raise InputError(f"{setting.where}: {name} expects {_type_name(action)}, found {item!r}") from None
    if action.choices is not None and converted not in action.choices:
        choices = ", ".join(str(choice) for choice in action.choices)
        raise InputError(f"{setting.where}: {name} is one of {choices}; found {item!r}")


def _type_name(action: argparse.Action) -> str:
    """The type of an option's value, for messages."""
    return getattr(action.type, "__name__", "a value") if action.type else "text"
