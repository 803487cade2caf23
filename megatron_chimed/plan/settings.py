"""A model YAML and a stage YAML as the plan's model, layout and length."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_chimed.config import Located, RunConfig, parse_dataclass
from megatron_chimed.convert.families import of_args
from megatron_chimed.convert.families.blocks import ABSENT
from megatron_chimed.convert.family import Family
from megatron_chimed.errors import InputError
from megatron_chimed.models.options import LoraOptions, ModelOptions
from megatron_chimed.plan.layout import Layout
from megatron_chimed.plan.model import Model
from megatron_chimed.stages.options import STAGES
from megatron_chimed.stages.schedule import planned_iterations, whole_number
from megatron_chimed.text.tokenizer import load_tokenizer

UNKNOWN = (
    "context-parallel-size",
    "num-layers-per-virtual-pipeline-stage",
    "decoder-first-pipeline-num-layers",
    "decoder-last-pipeline-num-layers",
    "use-megatron-fsdp",
    "use-torch-fsdp2",
    "use-precision-aware-optimizer",
    "optimizer-cpu-offload",
    "optimizer",
    "ddp-bucket-size",
    "ddp-pad-buckets-for-high-nccl-busbw",
)
"""Arguments that change memory or layout in ways that the arithmetic here does not follow."""


@dataclass(frozen=True)
class Plan:
    """What is planned."""

    stage: str
    model: Model
    layout: Layout
    steps: int | None
    """None where they follow from data that is not there yet."""

    why_no_steps: str = ""


def stage_of(path: str, given: str | None = None) -> str:
    """The stage that a YAML configures: the one given, else the last word of its name. Raises InputError."""
    name = given or Path(path).stem.rpartition("_")[2]
    if name not in STAGES:
        raise InputError(f"{path}: its name ends with none of {', '.join(STAGES)}; give --stage")
    return name


def read_plan(stage: str, settings: RunConfig, gpus: int) -> Plan:
    """Model, layout and steps of a training on `gpus` GPUs.

    Raises InputError for a number that is missing or none, and for an argument that the plan cannot follow.
    """
    given = settings.megatron
    for key in UNKNOWN:
        if key in given and str(given[key].value) not in ("1", "adam", "False", "false"):
            raise InputError(f"{given[key].where}: the plan cannot follow --{key}; leave it out to plan")
    options = _model_options(settings.chimed)
    layout = replace(_layout(given, gpus), cross_entropy_chunk=options.cross_entropy_chunk_tokens)
    steps, why = None, ""
    try:
        steps = _steps(stage, settings, layout)
    except InputError as error:
        why = str(error)
    return Plan(stage, read_model(stage, given, options.lora), layout, steps, why)


def _model_options(chimed: dict[str, Located]) -> ModelOptions:
    """The options that memory depends on. Raises InputError."""
    given = {key: chimed[key] for key in ("lora", "cross_entropy_chunk_tokens") if key in chimed}
    options = parse_dataclass(given, ModelOptions)[0]
    wrong = [] if options.lora is None else options.lora.problems()
    if options.cross_entropy_chunk_tokens < 0:
        wrong.append(f"cross_entropy_chunk_tokens is {options.cross_entropy_chunk_tokens}; expected 0 (all) or more")
    if wrong:
        raise InputError(f"{next(iter(given.values())).where}: {'; '.join(wrong)}")
    return options


def read_model(stage: str, given: dict[str, Located], lora: LoraOptions | None = None) -> Model:
    """The sizes of the model. Raises InputError."""
    hidden, heads = whole_number(given, "hidden-size"), whole_number(given, "num-attention-heads")
    grouped, family = flag(given, "group-query-attention"), _family(given)
    return Model(
        layers=whole_number(given, "num-layers"),
        hidden=hidden,
        ffn=whole_number(given, "ffn-hidden-size"),
        heads=heads,
        num_query_groups=whole_number(given, "num-query-groups", 1) if grouped else heads,
        head_dim=whole_number(given, "kv-channels", max(1, hidden // heads)),
        vocab=whole_number(given, "vocab-size") if "vocab-size" in given else _tokenizer_size(given),
        vocab_multiple=whole_number(given, "make-vocab-size-divisible-by", 128),
        tied=not flag(given, "untie-embeddings-and-output-weights"),
        head="reward" if stage == "reward" else "lm",
        family=family,
        lora=lora,
        **(_experts(given) if family.has_experts else {}),
    )


def _experts(given: dict[str, Located]) -> dict[str, int]:
    """The sizes of a model with experts. Raises InputError."""
    return {
        "experts": whole_number(given, "num-experts"),
        "expert_ffn": whole_number(given, "moe-ffn-hidden-size", whole_number(given, "ffn-hidden-size")),
        "experts_per_token": whole_number(given, "moe-router-topk", 2),
    }


def _family(given: dict[str, Located]) -> Family:
    """The family with the layers that the arguments ask for; what none has the trainer refuses, but for experts.

    Raises InputError for experts that no family has.
    """
    args = dict(ABSENT)
    for key, setting in given.items():
        if (name := key.replace("-", "_")) in args:
            args[name] = {"true": True, "false": False}.get(str(setting.value).lower(), setting.value)
    family, problems = of_args(args)
    if args["num_experts"] is not None and not family.has_experts:
        raise InputError(f"{given['num-experts'].where}: no family has such experts: {'; '.join(problems)}")
    return family


def _layout(given: dict[str, Located], gpus: int) -> Layout:
    """The layout that the files ask for, on so many GPUs."""
    tp = whole_number(given, "tensor-model-parallel-size", 1)
    micro = whole_number(given, "micro-batch-size")
    half = flag(given, "bf16") or flag(given, "fp16")
    pp = whole_number(given, "pipeline-model-parallel-size", 1)
    return Layout(
        gpus=gpus,
        tp=tp,
        pp=pp,
        micro_batch=micro,
        global_batch=whole_number(given, "global-batch-size", micro * max(1, gpus // (tp * pp))),
        sequence=whole_number(given, "seq-length"),
        ep=whole_number(given, "expert-model-parallel-size", 1),
        etp=whole_number(given, "expert-tensor-parallel-size", tp) if "expert-tensor-parallel-size" in given else None,
        sequence_parallel=flag(given, "sequence-parallel") and tp > 1,
        distributed_optimizer=flag(given, "use-distributed-optimizer"),
        half=half,
        half_gradients=flag(given, "grad-reduce-in-bf16")
        or (flag(given, "fp16") and not flag(given, "accumulate-allreduce-grads-in-fp32")),
        overlap=flag(given, "overlap-grad-reduce"),
        **_recompute(given),
    )


def _recompute(given: dict[str, Located]) -> dict[str, Any]:
    """recompute and recomputed of the layout. Raises InputError."""
    granularity = given.get("recompute-granularity")
    if granularity is None:
        return {}
    if granularity.value not in ("selective", "full"):
        raise InputError(f"{granularity.where}: recompute-granularity is selective or full")
    modules = given.get("recompute-modules", Located(["core_attn"], "Megatron's default")).value
    return {"recompute": granularity.value, "recomputed": tuple(modules if isinstance(modules, list) else [modules])}


def _steps(stage: str, settings: RunConfig, layout: Layout) -> int:
    """Steps of the run. Raises InputError when they follow from data that cannot be read."""
    return planned_iterations(stage, settings, layout.global_batch)


def change_settings(settings: RunConfig, changes: Mapping[str, Any], left_out: Iterable[str] = ()) -> RunConfig:
    """Megatron's settings without `left_out` and with `changes`; packed attention by the kernel that is there."""
    gone = {*left_out, *changes}
    kept = {key: setting for key, setting in settings.megatron.items() if key not in gone}
    kept |= {key: Located(value, "command line") for key, value in changes.items()}
    chimed = settings.chimed
    if "attention" in chimed:
        chimed = chimed | {"attention": replace(chimed["attention"], value="auto")}
    return RunConfig(kept, chimed)


def _tokenizer_size(given: dict[str, Located]) -> int:
    """Ids of the tokenizer. Raises InputError."""
    if "tokenizer-model" not in given:
        raise InputError("neither --vocab-size nor --tokenizer-model is given; give one of them")
    return load_tokenizer(str(given["tokenizer-model"].value)).vocab_size


def flag(given: dict[str, Located], key: str) -> bool:
    """Whether a flag is set."""
    return key in given and str(given[key].value).lower() == "true"
