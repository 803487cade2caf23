"""Qwen3-MoE: its config.json and Megatron's arguments of it; experts are converted one by one."""

import dataclasses
import json

import pytest
import torch
from support.checkpoints import same_bits, weights, write_plain
from torch.multiprocessing.reductions import StorageWeakRef

from megatron_chimed.convert import architecture, checkpoint, hf_folder, torch_dist
from megatron_chimed.convert.megatron_args import from_megatron_args, to_megatron, to_megatron_args, to_options
from megatron_chimed.convert.routing import Routing, config_fields
from megatron_chimed.errors import InputError

PUBLISHED = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
    "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
"""config.json of Qwen3-30B-A3B."""

SMALL = PUBLISHED | {
    "vocab_size": 10, "hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 48, "num_experts": 20, "num_experts_per_tok": 3,
}  # fmt: skip


def read(**changes) -> architecture.Architecture:
    return architecture.from_hf(PUBLISHED | changes, "config.json")


def test_the_published_model_is_read():
    model = read()
    assert model.routing == Routing(8, True, 0.001, False)
    assert (model.sizes.experts, model.sizes.expert_ffn, model.sizes.head_dim) == (128, 768, 128)
    assert model.family.count(model.head, model.tied, model.sizes) == 30_532_122_624


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_only_layers": [0]}, "mlp_only_layers is [0]; only [] is supported"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2; only 1 is supported"),
        ({"num_experts": 0}, "num_experts is 0; expected a whole number above 0"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok is 129; expected a whole number above 0, at most"),
        ({"num_experts_per_tok": 1}, "num_experts_per_tok is 1 with norm_topk_prob"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'; expected true or false"),
        ({"router_aux_loss_coef": -1}, "router_aux_loss_coef is -1; expected a number, at least 0"),
        ({"output_router_logits": None}, "output_router_logits is None; expected true or false"),
        ({"num_local_experts": 64}, "num_local_experts is 64 and num_experts 128, two names of one number"),
        ({"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size is 8, a key that is not known"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"attention_bias": True}, "attention_bias is True"),
    ],
)
def test_what_is_not_served_is_named(change, message):
    with pytest.raises(InputError) as caught:
        read(**change)
    assert message in str(caught.value)


def test_keys_of_experts_are_unknown_to_a_dense_family():
    dense = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    with pytest.raises(InputError, match="num_experts is 128, a key that is not known"):
        read(**dense)


def test_the_number_of_experts_may_have_the_name_that_transformers_5_writes():
    config = {key: value for key, value in PUBLISHED.items() if key != "num_experts"}
    assert architecture.from_hf(config | {"num_local_experts": 64}, "").sizes.experts == 64
    assert architecture.from_hf(config, "").sizes.experts == 128, "transformers' default"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"norm_topk_prob": False, "output_router_logits": True, "router_aux_loss_coef": 0.0137},
        {"architectures": ["Qwen3MoeForSequenceClassification"], "tie_word_embeddings": True},
    ],
)
def test_config_and_arguments_are_read_back(change):
    model = read(**change)
    assert architecture.from_hf(architecture.to_hf(model, "bfloat16", {}), "") == model
    settings = to_megatron(model)
    assert settings["num-experts"] == 128 and settings["qk-layernorm"] is True and to_options(model) == {}
    assert from_megatron_args(to_megatron_args(settings, {}), model.head, "") == model


def test_the_auxiliary_loss_is_that_of_the_config():
    """Transformers adds it where the router's logits are asked for; its sum over layers is Megatron's."""
    settings = to_megatron(read())
    assert settings["moe-router-load-balancing-type"] == "none"
    settings = to_megatron(read(output_router_logits=True))
    assert settings["moe-router-load-balancing-type"] == "aux_loss"
    assert settings["moe-aux-loss-coeff"] == pytest.approx(0.001 * 8 / 48)
    assert read(output_router_logits=True, router_aux_loss_coef=0).routing == Routing(8, True, 0.0, False)


def test_arguments_that_no_such_model_has_are_named():
    args = to_megatron_args(to_megatron(read()), {})
    refused = {
        "moe_layer_freq": 2,
        "moe_shared_expert_intermediate_size": 64,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": 4,
        "moe_router_topk_scaling_factor": 2.5,
        "moe_expert_capacity_factor": 1.0,
        "add_qkv_bias": True,
    }
    vars(args).update(refused)
    with pytest.raises(InputError) as caught:
        from_megatron_args(args, "lm", "checkpoint")
    assert all(
        f"{name} is {value!r}; Hugging Face's Qwen3-MoE has" in str(caught.value) for name, value in refused.items()
    )


def test_the_model_that_is_built_chooses_as_the_config_says():
    model = read(norm_topk_prob=False)
    fields = config_fields(model.routing, model.sizes)
    assert fields["moe_router_pre_softmax"] and fields["num_moe_experts"] == 128 and fields["moe_router_topk"] == 8


class Alive:
    """The bytes of tensors that are alive, and the most that have been."""

    def __init__(self):
        self.storages, self.most = {}, 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        del storage
        self.storages = {place: one for place, one in self.storages.items() if not one[0].expired()}
        self.most = max(self.most, sum(nbytes for _, nbytes in self.storages.values()))
        return tensor


@pytest.fixture
def alive(monkeypatch) -> Alive:
    """Counts what the converter reads, and what it makes of it."""
    alive = Alive()

    def counted(function):
        def count(*args):
            made = function(*args)
            return [alive.add(tensor) for tensor in made] if isinstance(made, list) else alive.add(made)

        return count

    class Folder(hf_folder.HuggingFaceFolder):
        def __init__(self, folder):
            super().__init__(folder)
            for name, stored in self.tensors.items():
                self.tensors[name] = dataclasses.replace(stored, read=counted(stored.read))

    monkeypatch.setattr(checkpoint, "HuggingFaceFolder", Folder)
    monkeypatch.setattr(torch_dist.TorchDistCheckpoint, "read", counted(torch_dist.TorchDistCheckpoint.read))
    monkeypatch.setattr(checkpoint, "merge", counted(checkpoint.merge))
    monkeypatch.setattr(checkpoint, "split", counted(checkpoint.split))
    return alive


@pytest.mark.parametrize("experts", [20, 40])
def test_memory_is_bounded_by_an_expert_and_a_layers_attention(tmp_path, alive, experts):
    """Torch's writer keeps the last tensor of each name, and so the embedding and one of all that a layer has, beside
    the one that is made."""
    hf = write_plain(tmp_path / "hf", **SMALL | {"num_experts": experts})
    sizes = architecture.read_hf(hf).sizes
    expert = 4 * 3 * sizes.expert_ffn * sizes.hidden
    attention = 4 * (2 * sizes.q_dim + 2 * sizes.kv_dim) * sizes.hidden
    router_and_vocabulary = 4 * (experts + 2 * sizes.vocab + 4) * sizes.hidden
    most = 2 * (expert + attention) + router_and_vocabulary
    total = sum(tensor.nbytes for tensor in weights(hf).values())
    checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
    there, alive.most = alive.most, 0
    checkpoint.megatron_to_hf(tmp_path / "megatron", tmp_path / "again", progress=False)
    print(f"of {total} bytes at most {there} and {alive.most}; an expert has {expert}, attention {attention}")
    assert expert < there <= most and expert < alive.most <= expert + attention and total > 10 * most
    assert same_bits(weights(hf), weights(tmp_path / "again"))
    config = json.loads((tmp_path / "again/config.json").read_text())
    kept = ("norm_topk_prob", "mlp_only_layers", "decoder_sparse_step", "moe_intermediate_size", "num_experts_per_tok")
    assert all(config[key] == SMALL[key] for key in kept) and config["num_experts"] == experts


def test_a_checkpoint_with_an_expert_less_is_refused(tmp_path):
    hf = write_plain(tmp_path / "hf", **SMALL)
    (hf / "config.json").write_text(json.dumps(SMALL | {"num_experts": 21}))
    with pytest.raises(InputError, match=r"model.layers.0.mlp.experts.20.gate_proj.weight is missing"):
        checkpoint.hf_to_megatron(hf, tmp_path / "megatron", progress=False)
