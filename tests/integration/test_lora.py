"""LoRA is PEFT's: outputs, loss and gradients of the adapters in every layout, and controls that differ."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.checkpoints import same_bits
from support.families import expected, make_batch, make_model
from support.ranks import start

from megatron_chimed.convert.checkpoint import hf_to_megatron, megatron_to_hf
from megatron_chimed.convert.lora import open_checkpoint
from megatron_chimed.convert.peft_folder import peft_to_megatron, write_peft
from megatron_chimed.models.options import LORA_TARGETS

LAYOUTS = {
    "TP 1": {},
    "TP 2": {"tp": 2},
    "TP 2 with sequence parallelism": {"tp": 2, "sequence_parallel": True},
    "PP 2": {"pp": 2},
    "two data-parallel ranks": {},
}
RANKS = {"TP 1": 1}  # of a layout; the others have two
ALL = {"r": 4, "lora_alpha": 6, "target_modules": list(LORA_TARGETS)}
CASES = {
    "llama": ("Llama", {"num_hidden_layers": 4}, ALL),
    "qwen2, query and value, rslora": (
        "Qwen2",
        {"num_hidden_layers": 4, "tie_word_embeddings": True},
        {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    ),
    "qwen3 reward": ("Qwen3", {"num_hidden_layers": 4, "head_dim": 20, "reward": True}, ALL),
}
"""{name: (class, changes to families.CONFIG, settings of PEFT)}."""
LOGITS, GRADIENTS, DIFFERENT = 1e-5, 1e-5, 1e-2


def add_adapters(model: torch.nn.Module, settings: dict, reward: bool) -> peft.PeftModel:
    """Adapters that change the model: B is random as A is."""
    kind = "SEQ_CLS" if reward else "CAUSAL_LM"
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type=kind, **settings))
    draw = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1, generator=draw)
    return adapted.eval()


def gradients_of(adapted: peft.PeftModel, batch: dict) -> dict[str, torch.Tensor]:
    """`families.expected` of a model with adapters, under the names of PEFT's files."""
    results, found = {}, expected(adapted.base_model.model, batch, trained_only=True)
    for name, tensor in found.items():
        name = name.replace(".default", "").replace("modules_to_save.", "")
        results[name.replace("gradient of ", "gradient of base_model.model.")] = tensor
    return results


@pytest.fixture(scope="module")
def world(tmp_path_factory, one_thread):
    """A folder with base, adapters and a batch of every case, and what PEFT makes of it."""
    folder, answers = tmp_path_factory.mktemp("lora"), {}
    for name, (kind, changes, settings) in CASES.items():
        model = make_model(kind, changes)
        model.save_pretrained(folder / name / "hf")
        hf_to_megatron(folder / name / "hf", folder / name / "base", progress=False)
        adapted = add_adapters(model, settings, "reward" in changes)
        adapted.save_pretrained(folder / name / "peft")
        peft_to_megatron(folder / name / "peft", folder / name / "base", folder / name / "adapters")
        batch = make_batch(model.config.vocab_size)
        save_file(batch, folder / name / "batch.safetensors")
        answers[name] = gradients_of(adapted, batch)
    return folder, answers


@pytest.fixture(scope="module")
def found(world):
    """What Megatron computes, {(layout, case): tensors}."""
    folder, _ = world
    for ranks in (1, 2):
        wanted = [{"name": name} | how for name, how in LAYOUTS.items() if RANKS.get(name, 2) == ranks]
        session = start([folder, json.dumps(wanted)], ranks, folder / "output.txt", "support.lora_worker")
        assert session.wait(240) == 0, (folder / "output.txt").read_text()[-4000:]
    results = {}
    for layout in LAYOUTS:
        for name in CASES:
            write_peft(open_checkpoint(folder / name / layout), folder / name / f"{layout} gradients", None)
            gradients = load_file(folder / name / f"{layout} gradients/adapter_model.safetensors")
            results[layout, name] = load_file(folder / name / f"{layout}.safetensors")
            results[layout, name] |= {f"gradient of {key}": tensor for key, tensor in gradients.items()}
    return results


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_peft(world, found, layout, name):
    wanted, results = world[1][name], found[layout, name]
    gradients = [key for key in wanted if key.startswith("gradient")]
    assert {key for key in results if key.startswith("gradient")} == set(gradients)
    apart = largest(wanted["outputs"], results["outputs"]) / wanted["outputs"].abs().max().item()
    steps = {key: largest(wanted[key], results[key]) for key in gradients}
    worst = max(steps, key=steps.get)
    least = min(wanted[key].abs().max() for key in gradients)
    print(
        f"{name}, {layout}: outputs differ by {apart:.1e}, gradients by {steps[worst]:.1e}; the least has {least:.1e}"
    )
    assert apart <= LOGITS and steps[worst] <= GRADIENTS, worst
    assert least > 10 * GRADIENTS
    if "generated" in results:
        assert torch.equal(wanted["generated"], results["generated"])


@pytest.mark.parametrize("control", ["q and v exchanged", "alpha ignored", "row not reduced"])
def test_adapters_in_the_wrong_place_or_size_give_another_model(world, found, control):
    name = "llama"
    apart = largest(world[1][name]["outputs"], found["TP 2", name][f"control: {control}"])
    print(f"{control}: outputs differ by {apart:.1e}")
    assert apart > DIFFERENT


@pytest.mark.parametrize("name", CASES)
def test_a_round_trip_is_exact_to_the_bit(world, name, tmp_path):
    folder = world[0] / name
    write_peft(open_checkpoint(folder / "adapters"), tmp_path / "again", "hf")
    one, other = (load_file(place / "adapter_model.safetensors") for place in (folder / "peft", tmp_path / "again"))
    assert same_bits(one, other)


@pytest.mark.parametrize("name", CASES)
def test_peft_loads_an_export_and_merged_is_unmerged(world, name, tmp_path):
    folder, kind = world[0] / name, "SequenceClassification" if "reward" in name else "CausalLM"
    megatron_to_hf(folder / "adapters", tmp_path / "peft", progress=False)
    megatron_to_hf(folder / "adapters", tmp_path / "merged", merge=True, progress=False)
    load = getattr(transformers, f"AutoModelFor{kind}").from_pretrained
    options = {"num_labels": 1, "pad_token_id": 0} if "reward" in name else {}
    adapted = peft.PeftModel.from_pretrained(load(folder / "hf", **options), tmp_path / "peft")
    tokens, wanted = load_file(folder / "batch.safetensors")["tokens"], world[1][name]["outputs"]
    with torch.no_grad():
        models = (adapted, load(tmp_path / "merged", **options), load(folder / "hf", **options))
        found, merged, plain = (model.eval()(tokens).logits.view_as(wanted) for model in models)
    size = wanted.abs().max().item()
    print(f"{name}: PEFT {largest(wanted, found):.1e}, merged {largest(wanted, merged):.1e}, of {size:.1f}")
    assert largest(wanted, found) <= LOGITS * size and largest(wanted, merged) <= LOGITS * size
    assert largest(wanted, plain) > DIFFERENT
