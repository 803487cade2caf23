"""Folders of PEFT that are not as our adapters are: each refused in one line, with nothing written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import same_bits, write_plain

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.lora import open_checkpoint
from megatron_chimed.errors import InputError

SETTINGS = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    hf_to_megatron(write_plain(folder / "hf", num_hidden_layers=2), folder / "base", progress=False)
    return folder / "base"


def write(folder: Path, settings: dict | None = None, drop: str = "", dtype: torch.dtype = torch.bfloat16) -> Path:
    """Adapters of o_proj in two layers of width 64."""
    folder.mkdir()
    draw, tensors = torch.Generator().manual_seed(0), {}
    for layer in range(2):
        for letter, shape in (("A", (2, 64)), ("B", (64, 2))):
            name = f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{letter}.weight"
            tensors[name] = torch.randn(shape, generator=draw).to(dtype)
    tensors = {name: tensor for name, tensor in tensors.items() if not drop or drop not in name}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | (settings or {})))
    return folder


def refused(peft: Path, base: Path | None, target: Path) -> str:
    with pytest.raises(InputError) as caught:
        hf_to_megatron(peft, target, base=base)
    assert not target.exists() and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is {'q_proj': 8}, which is not supported"),
        ({"bias": "all"}, "bias is 'all', which is not supported"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is ['embed_tokens'], which is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base"),
        ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow is 3, which is not supported"),
        ({"r": "2"}, "r is '2'; expected a number"),
        ({"r": 0}, "lora: rank is 0; expected more than 0"),
        ({"peft_type": "IA3"}, "expected the settings of LoRA"),
        ({"r": 3}, "is torch.bfloat16 [64, 2], expected floats [64, 3]"),
    ],
)
def test_settings_that_our_adapters_have_not_are_refused_by_name(base, tmp_path, settings, message):
    assert message in refused(write(tmp_path / "peft", settings), base, tmp_path / "out")


def test_tensors_are_held_against_the_base(base, tmp_path):
    assert "layers.1.self_attn.o_proj.lora_B.weight is missing" in refused(
        write(tmp_path / "one", drop="layers.1.self_attn.o_proj.lora_B"), base, tmp_path / "out"
    )
    assert "expected floats" in refused(write(tmp_path / "two", dtype=torch.int32), base, tmp_path / "out")
    path = write(tmp_path / "three") / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 2)}, path)
    assert "lm_head.lora_A.weight is no adapter of the model" in refused(tmp_path / "three", base, tmp_path / "out")
    path.write_bytes(path.read_bytes()[:100])
    assert "missing or damaged" in refused(tmp_path / "three", base, tmp_path / "out")


def test_a_base_is_asked_for_and_is_a_whole_model(base, tmp_path):
    peft = write(tmp_path / "peft")
    assert "give their base, --base with its Megatron folder" in refused(peft, None, tmp_path / "out")
    hf_to_megatron(peft, tmp_path / "adapters", base=base)
    assert "holds adapters too" in refused(peft, tmp_path / "adapters", tmp_path / "out")
    with pytest.raises(InputError, match="holds a whole model, nothing to merge; leave --merge out"):
        megatron_to_hf(base, tmp_path / "out", merge=True)
    with pytest.raises(InputError, match="holds a whole model, no adapters; give one of the two"):
        open_checkpoint(f"{base}+{base}")


def test_types_stay_as_they_are_stored(base, tmp_path):
    peft = write(tmp_path / "peft")
    hf_to_megatron(peft, tmp_path / "adapters", base=base)
    megatron_to_hf(tmp_path / "adapters", tmp_path / "again")
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (peft, tmp_path / "again"))
    assert same_bits(one, other)
