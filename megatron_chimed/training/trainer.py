"""Run a stage by `megatron.training.pretrain`.

Order of things: settings -> Megatron's parser -> refusals -> run folder -> the trainer with the stage's hooks.
"""

import argparse
import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.optimizer import Adam
from megatron.training import pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.global_vars import get_tensorboard_writer, get_wandb_writer

from megatron_chimed import checkpoints, config
from megatron_chimed.backend import cpu
from megatron_chimed.convert.megatron_args import OPTIONS, unexportable
from megatron_chimed.errors import InputError
from megatron_chimed.models.attention import choose_kernel
from megatron_chimed.models.gpt import backends, check_layers
from megatron_chimed.models.options import ModelOptions, stated
from megatron_chimed.stages import dpo as dpo_stage
from megatron_chimed.stages import options as stage_options
from megatron_chimed.stages import pretrain as pretrain_stage
from megatron_chimed.stages import reward as reward_stage
from megatron_chimed.stages import sft as sft_stage
from megatron_chimed.stages.stage import Stage
from megatron_chimed.training import lora, patches, saving
from megatron_chimed.training.forgetting import Watch
from megatron_chimed.training.job import trained_line
from megatron_chimed.training.loaders import DataProvider, data_request
from megatron_chimed.training.options import JobOptions
from megatron_chimed.training.parsing import parse
from megatron_chimed.training.run_record import RunRecord
from megatron_chimed.training.runlog import RunLog, log_rank0
from megatron_chimed.training.supervision import Supervisor
from megatron_chimed.training.tracking import Tracker

STAGES = {one.STAGE.name: one.STAGE for one in (pretrain_stage, sft_stage, reward_stage, dpo_stage)}
assert STAGES.keys() == stage_options.STAGES.keys()
USAGE = "chimed train STAGE MODEL.yaml STAGE.yaml [--megatron-arg value ...]"


def train(argv: list[str]) -> None:
    """Run one rank of a stage: ``[stage name, model YAML, stage YAML, overrides ...]``.

    Raises InputError for whatever the user can mend.
    """
    if len(argv) < 3 or argv[0] not in STAGES:
        raise InputError(
            f"expected {USAGE}, with STAGE one of {', '.join(STAGES)}; found {' '.join(argv) or 'nothing'}"
        )
    run(STAGES[argv[0]], config.load_settings(argv[1], argv[2], argv[3:]))


def run(stage: Stage, settings: config.RunConfig) -> None:
    """The same from settings that are read already. Raises InputError."""
    kinds = (ModelOptions, JobOptions, stage.config_class)
    options, job, stage_config = config.parse_dataclass(settings.chimed, *kinds)
    job.check(stage.learns_text)
    args, megatron_settings = parse(settings.megatron, stage.schedule(stage_config, settings.megatron))
    if stage.missing_keys and (args.bf16 or args.fp16) and not args.use_distributed_optimizer:
        # Upstream's other optimizer cannot save the state of a float32 weight among 16-bit ones.
        raise InputError(f"the {stage.name} stage with --bf16 or --fp16 needs --use-distributed-optimizer")
    done = checkpoints.latest_iteration(args.save) if args.save else 0
    total = args.train_iters or args.train_samples // args.global_batch_size
    if done >= total:
        log_rank0(trained_line(args.save, done))
        return
    model = model_config(args, stage, options)
    base = None
    if options.lora is not None and not args.fake_process_group:  # a dry run reads no checkpoint
        base = lora.base_of(settings.megatron, args, options.lora)
    try:
        record = RunRecord(args.save, args.rank, args.world_size)
        line = start_line(args, stage, options)
        given = {"stage": stage.name, "megatron": megatron_settings, "chimed": settings.chimed}
        _begin(record, args, given, (done, total), line, job.more_data)
        log = _run_log(args, stage, done, total)
    except OSError as error:
        raise InputError(f"--save {args.save}: cannot be written ({error.strerror}); name another folder") from None
    log_rank0(line)
    patches.install(without_cuda=cpu.is_needed(), log=log)
    patches.check_state_dict(stage.missing_keys, stage.unexpected_keys)
    if base is not None:
        lora.install(options.lora, base)
    saving.install(job.keep_checkpoints, in_background=args.async_save)
    provider = DataProvider(stage, stage_config, job)
    watch = Watch(job, args.save, lambda: provider.named, log)
    supervisor = Supervisor(job, lambda: provider.data.train, watch)
    supervisor.install()
    try:
        with supervisor.running(functools.partial(patches.explain, args=args)):
            pretrain(
                pretrain_cfg_container_from_args(args, model),
                provider,
                ModelType.encoder_or_decoder,
                functools.partial(_forward_step, stage, stage_config, provider),
            )
    finally:
        record.end(sys.exception())
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _begin(
    record: RunRecord, args: argparse.Namespace, given: dict[str, Any], iterations: tuple, line: str, more: list[str]
) -> None:
    """Enter the attempt into the run's record: stage and configuration, first and last iteration, start line, and data
    beside the blends."""
    resolved = {
        name: {key: config.plain(one) for key, one in sorted(block.items())} if isinstance(block, dict) else block
        for name, block in given.items()
    }
    request = data_request(args, (0, 0, 0))
    blends = filter(None, [request.blend, *(request.blend_per_split or [])])
    record.begin(resolved, line, [*(path for paths, _ in blends for path in paths), *more], iterations)


def start_line(args: argparse.Namespace, stage: Stage, options: ModelOptions) -> str:
    """Which stage runs on what, and which package serves each part."""
    device = "CPU" if cpu.is_needed() else torch.cuda.get_device_name()
    parts = backends(args.transformer_impl, args.gradient_accumulation_fusion, options.attention)
    parts["Adam"] = Adam.__module__.split(".")[0]
    layout = (
        f"TP {args.tensor_model_parallel_size} x PP {args.pipeline_model_parallel_size} x DP {args.data_parallel_size}"
    )
    if args.num_experts:
        layout += f", experts TP {args.expert_tensor_parallel_size} x EP {args.expert_model_parallel_size}"
    served = ", ".join(f"{part} {package}" for part, package in parts.items())
    return f"{stage.name} on {args.world_size} x {device} ({layout}, {args.distributed_backend}); {served}"


def _run_log(args: argparse.Namespace, stage: Stage, start: int, total: int) -> Any:
    """The run's log on the last rank, where the losses are; elsewhere one that keeps nothing."""
    if args.rank != args.world_size - 1:
        return patches.Log()
    track = Tracker(get_tensorboard_writer, get_wandb_writer, args.tensorboard_log_interval)
    return RunLog(args.save, start, total, args.global_batch_size * args.seq_length, stage.derive, track)


def model_config(args: argparse.Namespace, stage: Stage, options: ModelOptions) -> patches.StageModelConfig:
    """Megatron's model config from its arguments, with the stage's model.

    What belongs to the weights of the model's options is added to the arguments, which every checkpoint keeps. Raises
    InputError when no family has such a model, or its layers or attention kernel cannot run here.
    """
    made = gpt_config_from_args(args, model_config_cls=patches.StageModelConfig)
    made.rope_scaling_factor = args.rope_scaling_factor  # forgotten upstream
    made.num_ids = args.vocab_size
    try:
        check_layers(made.transformer, options)
        if problems := unexportable(args, options):
            raise ValueError(f"the model could not be exported: {'; '.join(problems)}. Leave these arguments out")
        choose_kernel(options.attention)
    except ValueError as error:
        raise InputError(str(error)) from None
    if belongs := stated(options):
        setattr(args, OPTIONS, belongs)
    made.build = functools.partial(stage.build_model, options)
    return made


def _forward_step(stage: Stage, stage_config: Any, provider: DataProvider, batches: Iterator, model: torch.nn.Module):
    """The stage's forward step with the trainer's signature, behind what is bound."""
    return stage.forward_step(stage_config, batches, model, provider.data.facts)
