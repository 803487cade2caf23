"""A stage and its configuration into `megatron.training.pretrain`: the only module, with patches.py, that knows both.

Order of things: settings -> Megatron's parser -> refusals -> run folder -> the trainer with the stage's hooks.
"""

import argparse
import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.enums import ModelType
from megatron.core.optimizer import Adam
from megatron.training import get_args, get_tokenizer, pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.arguments import add_megatron_arguments, parse_and_validate_args
from megatron.training.datasets.data_samplers import MegatronPretrainingSampler
from megatron.training.global_vars import get_tensorboard_writer, get_wandb_writer
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_chimed import checkpoints, config
from megatron_chimed.backend import cpu
from megatron_chimed.config import Located
from megatron_chimed.errors import InputError
from megatron_chimed.models.attention import choose_kernel
from megatron_chimed.models.gpt import backends, check_llama_shape, has
from megatron_chimed.stages import pretrain as pretrain_stage
from megatron_chimed.stages import reward as reward_stage
from megatron_chimed.stages import sft as sft_stage
from megatron_chimed.stages.stage import DataRequest, Stage
from megatron_chimed.training import arguments, patches, saving, tracking
from megatron_chimed.training.defaults import defaults
from megatron_chimed.training.run_record import RunRecord
from megatron_chimed.training.runlog import RunLog
from megatron_chimed.training.supervision import Supervisor
from megatron_chimed.training.tracking import Tracker

STAGES = {stage.name: stage for stage in (pretrain_stage.STAGE, sft_stage.STAGE, reward_stage.STAGE)}
USAGE = "launch/torchrun.sh STAGE MODEL.yaml STAGE.yaml [--megatron-arg value ...]"


def train(words: list[str]) -> None:
    """Run one rank of a stage: ``[stage name, model YAML, stage YAML, overrides ...]``.

    Raises InputError for whatever the user can mend.
    """
    if len(words) < 3 or words[0] not in STAGES:
        raise InputError(
            f"expected {USAGE}, with STAGE one of {', '.join(STAGES)}; found {' '.join(words) or 'nothing'}"
        )
    run(STAGES[words[0]], config.load_settings(words[1], words[2], words[3:]))


def run(stage: Stage, settings: config.RunConfig) -> None:
    """The same from settings that are read already. Raises InputError."""
    kinds = (config.ModelOptions, config.JobOptions, stage.config_class)
    options, job, stage_config = config.parse_dataclass(settings.chimed, *kinds)
    job.check()
    args, megatron_settings = parse(settings.megatron, stage.schedule(stage_config, settings.megatron))
    if stage.new_weights and (args.bf16 or args.fp16) and not args.use_distributed_optimizer:
        # Upstream's other optimizer cannot save the state of a float32 weight among 16-bit ones.
        raise InputError(f"the {stage.name} stage with --bf16 or --fp16 needs --use-distributed-optimizer")
    done = checkpoints.latest_iteration(args.save) if args.save else 0
    total = args.train_iters or args.train_samples // args.global_batch_size
    if done >= total:
        _say(f"{args.save} is trained to iteration {done}; raise --train-iters to continue")
        return
    model = model_config(args, stage, options)
    try:
        record = RunRecord(args.save, args.rank, args.world_size)
        line = start_line(args, stage, options)
        given = {"stage": stage.name, "megatron": megatron_settings, "chimed": settings.chimed}
        _begin(record, args, given, (done, total), line)
        log = _run_log(args, stage, done, total)
    except OSError as error:
        raise InputError(f"--save {args.save}: cannot be written ({error.strerror}); name another folder") from None
    _say(line)
    patches.install(without_cuda=cpu.is_needed(), log=log)
    patches.check_weights(stage.new_weights, stage.unused_weights)
    saving.install(job.keep_checkpoints, in_background=args.async_save)
    datasets: list = []  # filled by the provider, before the first forward step
    supervisor = Supervisor(job, datasets, _say)
    supervisor.install()
    try:
        with supervisor.running(functools.partial(patches.explain, args=args)):
            pretrain(
                pretrain_cfg_container_from_args(args, model),
                _iterators_provider(stage, stage_config, datasets),
                ModelType.encoder_or_decoder,
                _forward_step(stage, stage_config, datasets),
            )
    finally:
        record.end(sys.exception())
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _Parser(argparse.ArgumentParser):
    """Megatron's usage text has 4,000 lines; the message alone is what helps."""

    def error(self, message: str):
        raise InputError(f"Megatron's arguments: {message}")


def parse(
    settings: dict[str, Located], more: dict[str, Any] | None = None
) -> tuple[argparse.Namespace, dict[str, Located]]:
    """Settings through Megatron's own parser and validation, into its global arguments.

    more: defaults of the stage. Returns the arguments and the settings with all defaults. Raises InputError.
    """
    parser = add_megatron_arguments(_Parser(allow_abbrev=False))
    settings = arguments.with_defaults(_resume(settings), defaults(settings) | (more or {}), parser)
    words = arguments.to_words(settings, parser)
    parsed = parser.parse_args(words)
    _refuse(parsed)
    tracking.refuse(parsed)
    if cpu.is_needed():
        cpu.refuse(parsed)
    elif parsed.transformer_impl == "transformer_engine" and not has("transformer_engine"):
        raise InputError("--transformer-impl transformer_engine: Transformer Engine is not installed; see extra `gpu`")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron asks for it when TP > 1, also on a CPU
    sys.argv = [sys.argv[0], *words]
    try:
        args = parse_and_validate_args(args_defaults={})
        args.vocab_size = args.vocab_size or get_tokenizer().vocab_size  # checkpoints then know it without padding
        return args, settings
    except (AssertionError, ValueError, RuntimeError, OSError) as error:
        place = inspect.trace()[-1]
        reason = str(error) or f"{(place.code_context or ['?'])[0].strip()} (line {place.lineno} of its arguments)"
        raise InputError(f"Megatron refuses these arguments: {reason}") from None


def _refuse(parsed: argparse.Namespace) -> None:
    """Raise InputError for arguments that our loaders cannot serve, and for a start from nothing by mistake."""
    if parsed.dataloader_type != "external":
        raise InputError(f"--dataloader-type {parsed.dataloader_type}: the stages bring their own loader; leave it out")
    if parsed.full_validation or parsed.multiple_validation_sets:
        raise InputError("--full-validation is not supported; give --eval-iters (rows / global batch size)")
    if not (parsed.train_iters or parsed.train_samples):
        raise InputError("no length of the run is given; give --train-iters or --train-samples")
    if not parsed.micro_batch_size:
        raise InputError("no --micro-batch-size is given; give the rows that a rank takes at a time")
    decay = parsed.lr_decay_iters or parsed.train_iters
    if decay and parsed.lr_warmup_iters >= decay:
        raise InputError(
            f"--lr-warmup-iters {parsed.lr_warmup_iters}: the schedule ends after {decay} iterations; give fewer"
        )
    if parsed.eval_iters and not parsed.eval_interval:
        raise InputError("no --eval-interval is given; give the iterations between evaluations, or --eval-iters 0")
    for folder in (parsed.load, parsed.pretrained_checkpoint):
        if folder and folder != parsed.save and not (Path(folder) / checkpoints.TRACKER).is_file():
            raise InputError(
                f"--load {folder}: no checkpoint there ({checkpoints.TRACKER} is missing); give a run's --save"
            )


def _resume(settings: dict[str, Located]) -> dict[str, Located]:
    """The same command again continues: a checkpoint in --save wins over --load and what belongs to a first start."""
    save = settings.get("save")
    if save is None or not checkpoints.latest_iteration(str(save.value)):
        return settings
    first_start = ("load", "finetune", "pretrained-checkpoint", "no-load-optim", "no-load-rng")
    kept = {key: setting for key, setting in settings.items() if key not in first_start}
    return kept | {"load": Located(save.value, "checkpoint in --save")}


def _begin(record: RunRecord, args: argparse.Namespace, given: dict[str, Any], iterations: tuple, line: str) -> None:
    """Enter the attempt into the run's record: stage and configuration, first and last iteration, start line."""
    resolved = {
        name: {key: one.value for key, one in sorted(block.items())} if isinstance(block, dict) else block
        for name, block in given.items()
    }
    request = data_request(args, (0, 0, 0))
    blends = filter(None, [request.blend, *(request.blend_per_split or [])])
    record.begin(resolved, line, [path for paths, _ in blends for path in paths], iterations)


def _say(line: str) -> None:
    """One line on stderr, from rank 0."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"megatron_chimed: {line}", file=sys.stderr, flush=True)


def start_line(args: argparse.Namespace, stage: Stage, options: config.ModelOptions) -> str:
    """Which stage runs on what, and which package serves each part."""
    device = "CPU" if cpu.is_needed() else torch.cuda.get_device_name()
    parts = backends(args.transformer_impl, args.gradient_accumulation_fusion, options.attention)
    parts["Adam"] = Adam.__module__.split(".")[0]
    layout = (
        f"TP {args.tensor_model_parallel_size} x PP {args.pipeline_model_parallel_size} x DP {args.data_parallel_size}"
    )
    served = ", ".join(f"{part} {package}" for part, package in parts.items())
    return f"{stage.name} on {args.world_size} x {device} ({layout}, {args.distributed_backend}); {served}"


def _run_log(args: argparse.Namespace, stage: Stage, start: int, total: int) -> Any:
    """The run's log on the last rank, where the losses are; elsewhere one that keeps nothing."""
    if args.rank != args.world_size - 1:
        return patches.Log()
    track = Tracker(get_tensorboard_writer, get_wandb_writer, args.tensorboard_log_interval)
    return RunLog(args.save, start, total, args.global_batch_size * args.seq_length, stage.derive, track)


def model_config(args: argparse.Namespace, stage: Stage, options: config.ModelOptions) -> patches.StageModelConfig:
    """Megatron's model config from its arguments, with the stage's model.

    Raises InputError when the model is not LLaMA-shaped, or its attention kernel cannot run here.
    """
    made = gpt_config_from_args(args, model_config_cls=patches.StageModelConfig)
    made.rope_scaling_factor = args.rope_scaling_factor  # forgotten upstream
    made.num_ids = args.vocab_size
    try:
        check_llama_shape(made.transformer, made.position_embedding_type)
        choose_kernel(options.attention)
    except ValueError as error:
        raise InputError(str(error)) from None
    made.build = functools.partial(stage.build_model, options)
    return made


def _forward_step(stage: Stage, stage_config: Any, datasets: list) -> Callable:
    """The stage's forward step with the trainer's signature."""

    def forward_step(data_iterator, model):
        return stage.forward_step(stage_config, data_iterator, model, datasets)

    return forward_step


def _iterators_provider(stage: Stage, stage_config: Any, built: list) -> Callable:
    """The trainer's dataset provider. It returns iterators ("external" loaders), for two reasons: a loader of our own
    draws its seed from its own generator (upstream's draws from torch's, which dropout on a CPU uses, so that a resumed
    run would differ), and every rank reads its rows itself from the shared memory map, without a broadcast.
    The datasets are also put into `built`.
    """

    def provide(num_samples):
        args = get_args()
        datasets = stage.build_datasets(stage_config, data_request(args, num_samples))
        built[:] = datasets
        if datasets[1] is None and args.eval_iters:
            _say("no validation data: evaluation is left out")
            args.eval_iters = 0  # upstream would evaluate on None
        consumed = (args.consumed_train_samples, args.consumed_valid_samples, 0)
        batches = (args.micro_batch_size, args.eval_micro_batch_size, args.eval_micro_batch_size)
        return tuple(_iterator(*each, args) for each in zip(datasets, consumed, batches, strict=True))

    provide.is_distributed = True
    return provide


def data_request(args: argparse.Namespace, num_samples: tuple[int, int, int]) -> DataRequest:
    """What Megatron's arguments say about the data."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    return DataRequest(
        num_samples=tuple(num_samples),
        sequence_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        pipeline_parallel_size=args.pipeline_model_parallel_size,
        vocab_size=args.vocab_size,
        seed=args.seed,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        cache=args.data_cache_path,
    )


def _iterator(dataset: Any, consumed: int, micro_batch_size: int, args: argparse.Namespace):
    """Batches of this data-parallel rank's rows, from the first one that is not consumed."""
    if dataset is None or len(dataset) == 0:
        return None
    sampler = MegatronPretrainingSampler(
        total_samples=len(dataset),
        consumed_samples=consumed,
        micro_batch_size=micro_batch_size,
        data_parallel_rank=mpu.get_data_parallel_rank(),
        data_parallel_size=mpu.get_data_parallel_world_size(),
    )
    return iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=args.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(args.seed),
            persistent_workers=args.num_workers > 0,
        )
    )
