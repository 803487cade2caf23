"""What `chimed chat --serve` cannot serve is one line that says what to do; no torch."""

import argparse
import json
from pathlib import Path

import pytest

from megatron_chimed.chat.serve import serve
from megatron_chimed.commands.convert_checkpoint import add_arguments
from megatron_chimed.errors import InputError
from megatron_chimed.text.template import Template


def adapters(folder: Path) -> str:
    """hf:BASE+ADAPTER of two folders that hold their settings alone."""
    for name, file in (("base", "config.json"), ("lora-peft", "adapter_config.json")):
        (folder / name).mkdir()
        (folder / name / file).write_text(json.dumps({}))
    return f"hf:{folder / 'base'}+{folder / 'lora-peft'}"


def test_adapters_beside_their_base_are_merged_first_by_the_command_that_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        serve(adapters(tmp_path), Template(), port=1)
    message = str(caught.value)
    assert "--serve takes one whole folder, not adapters beside their base" in message and "\n" not in message
    words = message.partition("chimed convert ")[2].partition(",")[0].split()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(words)
    assert args.merge and args.hf == f"{tmp_path}/lora-peft-merged"


def test_a_checkpoint_is_exported_first_and_adapters_with_merge(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"^--serve takes hf:DIR; [^\n]*megatron-to-hf \(adapters: with --merge\)$"):
        serve(f"megatron:{tmp_path / 'run'}", Template(), port=1)
