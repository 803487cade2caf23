"""The plan's arithmetic: figures that can be worked out by hand, and how they change with the layout."""

import subprocess
import sys
from dataclasses import replace

import pytest
from guards import tree

from megatron_chimed.config import Located, load_settings
from megatron_chimed.convert.families.qwen2 import QWEN2
from megatron_chimed.convert.families.qwen3 import QWEN3
from megatron_chimed.convert.families.qwen3_moe import QWEN3_MOE
from megatron_chimed.errors import InputError
from megatron_chimed.plan import choices, memory, speed
from megatron_chimed.plan.layout import Layout, problems
from megatron_chimed.plan.memory import GIB
from megatron_chimed.plan.model import Model
from megatron_chimed.plan.report import report
from megatron_chimed.plan.settings import read_plan, stage_of

FOLDER = tree.ROOT / "examples/ziya2_13b"
ZIYA = Model(40, 5120, 13824, 40, 40, 128, 39424)
QWEN3_8B = Model(36, 4096, 12288, 32, 8, 128, 151936, family=QWEN3)
EXPERTS = {"experts": 128, "expert_ffn": 768, "experts_per_token": 8, "family": QWEN3_MOE}
QWEN3_30B = Model(48, 2048, 6144, 32, 4, 128, 151936, **EXPERTS)
LLAMA2_13B = replace(ZIYA, vocab=32000)
LAYOUT = Layout(
    16, 2, 1, 1, 512, 4096, sequence_parallel=True, distributed_optimizer=True, half=True, recompute="selective"
)


def read(stage: str, *overrides: str, gpus: int = 16, folder=FOLDER):
    """The plan of a stage of a recipe."""
    path = folder / f"{stage}.yaml"
    return read_plan(stage_of(str(path)), load_settings(folder / "model.yaml", path, list(overrides)), gpus)


def test_published_parameter_counts_are_met():
    assert LLAMA2_13B.parameters() == 13_015_864_320  # transformers' LlamaForCausalLM of that config
    assert Model(32, 4096, 11008, 32, 32, 128, 32000).parameters() == 6_738_415_616
    assert Model(80, 8192, 28672, 64, 8, 128, 128256).parameters() == 70_553_706_496  # Llama 3 70B

    assert Model(28, 3584, 18944, 28, 4, 128, 152064, family=QWEN2).parameters() == 7_615_616_512  # Qwen2.5-7B
    assert QWEN3_8B.parameters() == 8_190_735_360
    assert (QWEN3_30B.parameters(), QWEN3_30B.active()) == (30_532_122_624, 3_353_032_704)  # Qwen3-30B-A3B


def test_the_recipe_is_read_as_it_stands():
    plan = read("pretrain")
    assert (plan.model, plan.layout, plan.steps, plan.stage) == (ZIYA, LAYOUT, 102, "pretrain")
    assert read("rejection_sft").stage == "sft" and read("rejection_sft").steps == 400
    reward = read("reward")
    assert reward.model.head == "reward" and reward.steps is None and "runs/ziya2_13b" in reward.why_no_steps


def test_the_recipe_of_qwen3_is_read_with_its_norms_of_queries_and_keys():
    for stage in ("pretrain", "sft", "reward"):
        plan = read(stage, folder=tree.ROOT / "examples/qwen3_8b")
        head = "reward" if stage == "reward" else "lm"
        assert plan.model == replace(QWEN3_8B, vocab_multiple=64, head=head) and plan.layout.tp == 2


def test_pipeline_stages_together_hold_the_whole_model():
    for tied in (False, True):
        model = replace(ZIYA, tied=tied)
        parts = [model.parameters(1, 4, stage) for stage in range(4)]
        copy = model.padded_vocab(1) * model.hidden if tied else 0  # the last stage has the embedding too
        assert sum(parts) == model.parameters() + copy


def test_the_optimizer_is_sharded_over_data_parallel_ranks():
    weights, gradients, optimizer = memory.states(ZIYA, LAYOUT, 0)
    alone = memory.states(ZIYA, replace(LAYOUT, distributed_optimizer=False), 0)
    per_rank = ZIYA.parameters(2)
    assert alone == (2 * per_rank, 4 * per_rank, 12 * per_rank)
    assert (weights, gradients) == alone[:2] and optimizer == alone[2] // 8


def test_activations_fall_with_recomputation_and_are_those_of_the_papers_formula():
    kept = {one: memory.layer_kept(ZIYA, replace(LAYOUT, recompute=one)) for one in ("none", "selective", "full")}
    assert kept["none"] > kept["selective"] > kept["full"] == 4096 * 2 * 5120 // 2
    # Korthikanti et al. count 34 s b h for a GPT layer without its scores, two of them masks of dropout. An MLP of
    # three matrices keeps what theirs of two keeps when its width is 8/3 of the hidden size in the place of 4. The
    # rotary embedding, which they have not, makes queries and keys anew (4 more) and keeps sines.
    gelu = replace(ZIYA, ffn=4 * 5120 * 2 // 3)
    count = memory.layer_kept(gelu, replace(LAYOUT, tp=1, sequence_parallel=False)) / (4096 * 5120)
    assert count == pytest.approx(34 - 2 + 4, abs=0.3)
    mlp = replace(LAYOUT, recomputed=("mlp",))
    assert kept["none"] - memory.layer_kept(ZIYA, mlp) == 4096 * 2 * 3 * 13824 // 2


def test_the_first_pipeline_stage_keeps_as_many_micro_batches_as_there_are_stages():
    deep = replace(LAYOUT, pp=4)
    first, last = (memory.activations(ZIYA, deep, stage) for stage in (0, 3))
    ends = 2 * 2 * 4096 * 5120 // 2
    assert first == 4 * (last - ends) == memory.activations(ZIYA, LAYOUT, 0) - ends


def test_logits_are_counted_of_one_chunk():
    model = replace(QWEN3_8B, vocab_multiple=64)
    whole = memory.logits(model, LAYOUT)
    assert whole == 4096 * 151936 // 2 * (2 + 4 + 4)
    summed = 4 * 151936 // 2 * 4096  # the output weight's gradient, in float32
    chunked = replace(LAYOUT, cross_entropy_chunk=512)
    assert memory.logits(model, chunked) == whole // 8 + summed
    assert memory.logits(model, replace(chunked, half=False)) == 512 * 151936 // 2 * (4 + 4 + 4)
    assert memory.logits(model, replace(LAYOUT, cross_entropy_chunk=10**6)) == whole + summed, "no more than all"
    reward = replace(model, head="reward")
    assert memory.logits(reward, chunked) == memory.logits(reward, LAYOUT)
    states = [memory.per_gpu(model, one, 0) for one in (LAYOUT, chunked)]
    assert replace(states[0], logits=0) == replace(states[1], logits=0)


def test_chunks_cost_a_product_with_the_output_layer():
    share = 2 * 4096 * 151936 / speed.flops_per_token(QWEN3_8B, 4096)
    for layout in (replace(LAYOUT, recompute=one) for one in ("none", "selective", "full")):
        chunked = replace(layout, cross_entropy_chunk=512)
        more = speed.relative_time(QWEN3_8B, chunked) - speed.relative_time(QWEN3_8B, layout)
        assert more == pytest.approx(share) and 0.02 < share < 0.03
        reward = replace(QWEN3_8B, head="reward")
        assert speed.relative_time(reward, chunked) == speed.relative_time(reward, layout)


def test_chunks_are_what_lets_four_rows_of_qwen3_fit(tmp_path):
    folder = tree.ROOT / "examples/qwen3_8b"
    said = folder.joinpath("model.yaml").read_text()
    assert "cross_entropy_chunk_tokens: 0 # ours: at a micro batch of 1 chunks of 1024 would save 1 GiB of 44" in said
    changed = tmp_path / "model.yaml"
    changed.write_text(said.replace("cross_entropy_chunk_tokens: 0", "cross_entropy_chunk_tokens: 1024"))

    def total(model, rows):
        settings = load_settings(model, folder / "pretrain.yaml", ["--micro-batch-size", str(rows)])
        plan = read_plan("pretrain", settings, 16)
        return memory.worst(plan.model, plan.layout)[1].total / GIB, report(plan, 80, "h100", 0.45)

    whole, chunked = ([total(model, rows) for rows in (1, 4)] for model in (folder / "model.yaml", changed))
    assert [round(size) for size, _ in whole] == [44, 83]
    assert [round(a - b, 1) for (a, _), (b, _) in zip(whole, chunked, strict=True)] == [1.0, 9.7]
    (text, fits), (advised, too_much) = chunked[1][1], whole[1][1]
    assert fits and "estimate, of 1,024 tokens at a time" in text
    assert not too_much and "cross_entropy_chunk_tokens 1024: 73.0 GiB" in advised


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, " is -1; expected 0 .all. or more"),
        ("many", ": expected int, found 'many'"),
        (True, ": expected int, found True"),
    ],
)
def test_a_chunk_that_is_no_number_of_tokens_is_refused(value, message):
    settings = load_settings(FOLDER / "model.yaml", FOLDER / "pretrain.yaml", [])
    settings.chimed["cross_entropy_chunk_tokens"] = Located(value, "stage.yaml:3")
    with pytest.raises(InputError, match=f"stage.yaml:3: cross_entropy_chunk_tokens{message}"):
        read_plan("pretrain", settings, 16)


def test_flops_are_six_for_each_weight_and_token_and_attention():
    matrices = ZIYA.parameters() - 39424 * 5120 - 81 * 5120
    assert speed.flops_per_token(ZIYA, 4096) == 6 * matrices + 6 * 40 * 5120 * 4096
    seconds = speed.step_seconds(ZIYA, LAYOUT, 989e12, 0.45)
    assert seconds == pytest.approx(speed.flops_per_token(ZIYA, 4096) * 512 * 4096 / (16 * 989e12 * 0.45))


def test_a_token_costs_its_own_experts_alone():
    looked_up = 151936 * 2048
    norms = 48 * (2 * 2048 + 2 * 128) + 2048
    matrices = QWEN3_30B.active() - looked_up - norms
    assert speed.flops_per_token(QWEN3_30B, 4096) == 6 * matrices + 6 * 48 * 32 * 128 * 4096
    again = replace(LAYOUT, recompute="selective", recomputed=("moe",))
    assert 1.15 < speed.relative_time(QWEN3_30B, again) < 1.33
    assert speed.relative_time(QWEN3_30B, replace(again, recomputed=("mlp",))) == 1, "there is no such module"


def test_experts_are_shared_out_and_counted_where_they_are():
    spread = replace(LAYOUT, ep=8, etp=1)
    alone, shared = QWEN3_30B.parameters(2), QWEN3_30B.parameters(2, ep=8, etp=1)
    expert = 3 * 2048 * 768
    assert alone - shared == 48 * (128 * expert // 2 - 16 * expert)
    weights, _, optimizer = memory.states(QWEN3_30B, spread, 0)
    # Of 16 ranks 8 share the experts out, so that 2 hold the same ones; all else 8 ranks have alike.
    parts = 48 * 16 * expert, shared - 48 * 16 * expert
    assert weights == pytest.approx(2 * shared, rel=1e-4)
    assert optimizer == pytest.approx(12 * (parts[0] / 2 + parts[1] / 8), rel=1e-3)
    assert problems(QWEN3_30B, spread) == []
    found = {one.layout.ep for one in choices.choices(QWEN3_30B, spread, 80 * GIB)}
    assert found >= {4, 8, 16} and 32 not in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ep": 3}, "--num-experts 128 is no multiple of EP (3); take an EP that divides it"),
        ({"ep": 32}, "--world-size 16 is no multiple of TP of experts x EP x PP (64)"),
        ({"etp": 5}, "--moe-ffn-hidden-size 768 is no multiple of TP (5)"),
        ({"sequence_parallel": False}, "--num-experts with TP above 1 needs --sequence-parallel"),
    ],
)
def test_what_experts_cannot_be_shared_among_is_named(changes, message):
    assert any(message in problem for problem in problems(QWEN3_30B, replace(LAYOUT, **changes)))


def test_expert_parallelism_without_experts_is_named():
    assert "the model has no experts" in problems(ZIYA, replace(LAYOUT, ep=2))[-1]


def test_time_grows_with_waiting_and_with_recomputation():
    layout = replace(LAYOUT, recompute="none")
    assert speed.relative_time(ZIYA, layout) == 1
    assert speed.relative_time(ZIYA, replace(layout, recompute="full")) == pytest.approx(4 / 3)
    assert speed.relative_time(ZIYA, replace(layout, pp=8, global_batch=4)) == pytest.approx((4 + 7) / 4)


def test_ranked_layouts_fit_divide_and_come_fastest_first():
    found = choices.choices(ZIYA, LAYOUT, 60 * GIB)
    assert found and all(one.memory.total <= 60 * GIB and not problems(ZIYA, one.layout) for one in found)
    times = [round(one.time, 2) for one in found]
    assert times == sorted(times) and len({one.layout for one in found}) == len(found)
    assert not choices.choices(ZIYA, LAYOUT, GIB)


def test_advice_makes_it_fit():
    small = replace(LAYOUT, gpus=2)
    assert memory.worst(ZIYA, small)[1].total > 80 * GIB
    lines = choices.advice(ZIYA, small, 80 * GIB)
    assert lines[-1].startswith("8 GPUs: ")  # 2 have no one to share the optimizer with, 4 still hold too much
    assert not [line for line in lines if float(line.split(": ")[1].split()[0]) > 80]
    assert "no single change" in choices.advice(ZIYA, small, GIB)[0]


def test_a_report_says_whether_it_fits_and_what_is_estimated():
    text, fits = report(read("pretrain"), 80, "h100", 0.45)
    assert fits and "of 80: fits" in text and text.count("estimate") >= 3
    assert f"{2 * ZIYA.parameters(2):,} bytes" in text and "2,097,152 tokens a step" in text
    text, fits = report(read("pretrain", "--micro-batch-size", "16"), 80, "h100", 0.45)
    assert not fits and "does NOT fit" in text and "--micro-batch-size 1: " in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--tensor-model-parallel-size", "3"], "16 is no multiple of TP x PP"),
        (["--global-batch-size", "20"], "take a multiple of 8, or at most 40 GPUs"),
        (["--num-experts", "8"], "no family has such experts: num_experts is '8'; Hugging Face's LLaMA has None"),
        (["--hidden-size", "x"], "hidden-size: expected a whole number above 0, found 'x'"),
        (["--num-layers-per-virtual-pipeline-stage", "2"], "the plan cannot follow"),
        (["--recompute-granularity", "some"], "recompute-granularity is selective or full"),
    ],
)
def test_what_cannot_be_planned_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        report(read("pretrain", *overrides), 80, "h100", 0.45)


def test_a_yaml_whose_stage_cannot_be_told_is_refused():
    with pytest.raises(InputError, match="give --stage"):
        stage_of("runs/mine.yaml")


def test_the_command_ends_with_1_where_it_does_not_fit():
    recipe = ["examples/ziya2_13b/model.yaml", "examples/ziya2_13b/pretrain.yaml"]
    for memory_size, code in ((80, 0), (24, 1)):
        command = [sys.executable, "tools/plan.py", *recipe, "--gpus", "16", "--gpu-memory", str(memory_size)]
        done = subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == code and not done.stderr, done.stderr
