"""Patch Megatron's trainer, so that a pip-only install trains and resumes to the bit.

What fails without each patch, and in which version, is in the ledger, `training.upstream`; with Transformer Engine or
apex installed their optimizer is used, and the patches of torch's Adam do nothing. What the trainer does about faults
is in saving.py and supervision.py.
"""

import argparse
import dataclasses
import errno
import functools
import inspect
from collections.abc import Callable
from typing import ClassVar

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel.utils import is_pp_first_stage, is_pp_last_stage
from megatron.core.utils import unwrap_model
from megatron.training import checkpointing, initialize, training
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from megatron_chimed.errors import InputError, LostRank
from megatron_chimed.training.state_dict import check_expert_layout
from megatron_chimed.training.state_dict import check_state_dict as compare_state_dict


def install(*, without_cuda: bool, log: "Log") -> None:
    """Mend the trainer and attach `log` to it. Once per process, before `pretrain`."""
    _skip_compilation()
    if without_cuda:
        _allow_no_cuda()
    _give_adam_its_state_before_loading()
    _load_optimizer_exactly()
    _number_weights_of_two_types_alike()
    _let_a_run_be_extended()
    _print_each_iteration_by_itself()
    _log_iterations(log)
    _log_evaluations(log)


class Log:
    """Receives the trainer's figures, in full precision, on every rank."""

    def training(self, iteration: int, losses: dict, learning_rate: float, grad_norm: float) -> None:
        """Called after each iteration; `losses` is {name: tensor} on the last pipeline stage, else empty."""

    def evaluation(self, split: str, iteration: int, losses: dict) -> None:
        """Called after each evaluation; split is "valid", "final_valid" or "test"."""


def explain(error: Exception, args: argparse.Namespace) -> InputError | None:
    """What the user can do about one of the trainer's own errors; None when it is none that we know."""
    text, place = str(error), inspect.trace()[-1]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return InputError(f"--save {args.save}: cannot be written ({error.strerror}); make space and run it again")
    if isinstance(error, torch.distributed.DistError) or "gloo/transport" in text:
        return LostRank(
            f"another rank has ended or does not answer ({text[:200]}); the same command continues from the newest "
            "checkpoint"
        )
    if text.startswith("OptimizerParamScheduler"):
        return InputError(
            f"the learning-rate schedule differs from that of the checkpoint in {args.load} ({text}); set "
            "--lr-decay-iters to the same value in every run, or give --override-opt-param-scheduler"
        )
    if "mismatch after resume" in text:
        return InputError(f"{args.load}: {text}; or start a new --save from it with --load {args.load} --finetune")
    if isinstance(error, IndexError) and place.filename.endswith("checkpointing.py"):
        return InputError(
            f"{args.load}: saved with fewer data-parallel ranks, so some have no dropout generator to restore; take as "
            "many ranks, or start a new --save from it with --load and --finetune"
        )
    if text.startswith("data_parallel_random_init value"):
        return InputError(f"{args.load}: saved without dropout, or with it: {text}; give the value of the checkpoint")
    return None


@dataclasses.dataclass(kw_only=True)
class StageModelConfig(GPTModelConfig):
    """Megatron's model config with a stage's builder; the trainer takes a model from nowhere else."""

    builder: ClassVar[str] = "megatron_chimed.training.patches.StageModelBuilder"
    build: Callable[..., torch.nn.Module] | None = None
    num_ids: int | None = None
    """Size of the vocabulary before padding."""


class StageModelBuilder(GPTModelBuilder):
    """Builds each pipeline stage with the stage's own hook."""

    def build_model(self, pg_collection, pre_process=None, post_process=None, vp_stage=None) -> torch.nn.Module:
        """This rank's part of the model."""
        if vp_stage is not None:
            raise InputError(
                "virtual pipeline parallelism is not supported; leave --num-layers-per-virtual-pipeline-stage out"
            )
        config = self._model_config
        return config.build(
            config,
            vocab_size=config.vocab_size,
            pre_process=is_pp_first_stage(pg_collection.pp) if pre_process is None else pre_process,
            post_process=is_pp_last_stage(pg_collection.pp) if post_process is None else post_process,
            pg_collection=pg_collection,
        )


def _skip_compilation() -> None:
    """Upstream runs `make` in a folder that the wheel lacks, and exits; the compiled helper is in the wheel."""
    from megatron.core.datasets import helpers_cpp  # noqa: F401  an ImportError here is a broken wheel

    initialize._compile_dependencies = lambda: None


def _allow_no_cuda() -> None:
    """Start Megatron without CUDA."""
    training.initialize_megatron = functools.partial(training.initialize_megatron, allow_no_cuda=True)


def _torch_adams(optimizer) -> list[torch.optim.Optimizer]:
    """The torch Adam optimizers inside one of Megatron's optimizers."""
    inner = [chained.optimizer for chained in getattr(optimizer, "chained_optimizers", [optimizer])]
    return [adam for adam in inner if isinstance(adam, torch.optim.Adam | torch.optim.AdamW)]


def _give_adam_its_state_before_loading() -> None:
    """DistributedOptimizer.state_dict asserts that all parameters share one step; torch's Adam has none before its
    first one, which is the situation of a resume."""
    original = DistributedOptimizer.state_dict

    @functools.wraps(original)
    def state_dict(self):
        for adam in _torch_adams(self):
            if not adam.state:
                for group in adam.param_groups:
                    for parameter in group["params"]:
                        adam.state[parameter] = {
                            "step": torch.tensor(0.0),
                            "exp_avg": torch.zeros_like(parameter),
                            "exp_avg_sq": torch.zeros_like(parameter),
                        }
        return original(self)

    DistributedOptimizer.state_dict = state_dict


def _load_optimizer_exactly() -> None:
    """After loading, Adam's step is 0, or one tensor shared by all parameters, which then advances once per parameter.
    The saved value arrives in the parameter groups. And in float32 the distributed optimizer's weights are views of
    the model's, which upstream overwrites in place without leaving autograd."""
    original = training.load_checkpoint

    @functools.wraps(original)
    @torch.no_grad()
    def load_checkpoint(model, optimizer, *args, **kwargs):
        result = original(model, optimizer, *args, **kwargs)
        for adam in _torch_adams(optimizer) if optimizer is not None else []:
            for group in adam.param_groups:
                step = group.pop("step", None)
                for parameter in group["params"]:
                    state = adam.state.get(parameter)
                    if state:
                        state["step"] = torch.tensor(float(state["step"] if step is None else step))
        return result

    training.load_checkpoint = load_checkpoint


def _number_weights_of_two_types_alike() -> None:
    """In a bf16 model with a float32 weight (the reward head) upstream's optimizer holds float32 weights first, but
    numbers all of them in the buffers' order, and so saves one weight's state as another's."""
    original = DistributedOptimizer._build_optimizer_group_ranges

    @functools.wraps(original)
    def build(param_groups, gbuf_ranges):
        places, groups = original(param_groups, gbuf_ranges)
        for number, group in enumerate(groups):
            group["params"].sort(key=lambda parameter: parameter.dtype != torch.float32)
            places |= {parameter: (number, place) for place, parameter in enumerate(group["params"])}
        return places, groups

    DistributedOptimizer._build_optimizer_group_ranges = staticmethod(build)


def check_state_dict(missing_keys: tuple[str, ...], unexpected_keys: tuple[str, ...]) -> None:
    """Compare a checkpoint's weights with the model's before they are loaded; see `state_dict.check_state_dict`."""
    original = training.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(ddp_model, *args, load_arg="load", **kwargs):
        settings, model = training.get_args(), unwrap_model(ddp_model)
        folder = checkpointing.get_load_checkpoint_path_by_args(settings, load_arg)
        check_expert_layout(folder, settings)
        init_missing = compare_state_dict(folder, model, missing_keys if settings.finetune else (), unexpected_keys)
        for part in model:
            part.init_missing = init_missing
        try:
            return original(ddp_model, *args, load_arg=load_arg, **kwargs)
        finally:
            for part in model:
                part.init_missing = False

    training.load_checkpoint = load_checkpoint


def keep_model() -> list:
    """The list that will hold (model parts, optimizer) of the trainer in this process, for what looks at them later."""
    original, kept = training.setup_model_and_optimizer, []

    @functools.wraps(original)
    def setup_model_and_optimizer(*args, **kwargs):
        result = original(*args, **kwargs)
        kept[:] = result[:2]
        return result

    training.setup_model_and_optimizer = setup_model_and_optimizer
    return kept


def _let_a_run_be_extended() -> None:
    """Upstream refuses a checkpoint whose schedules have another length, which follows --train-iters, even of those
    that are constant and so have none."""
    original = OptimizerParamScheduler.load_state_dict

    @functools.wraps(original)
    def load_state_dict(self, state_dict):
        state_dict = dict(state_dict)
        if state_dict.get("lr_decay_style") == self.lr_decay_style == "constant":
            state_dict["lr_decay_steps"] = self.lr_decay_steps
        if state_dict.get("wd_incr_style") == self.wd_incr_style == "constant":
            state_dict["wd_incr_steps"] = self.wd_incr_steps
        return original(self, state_dict)

    OptimizerParamScheduler.load_state_dict = load_state_dict


def _print_each_iteration_by_itself() -> None:
    """Upstream prints the first iteration of a process but does not reset its sums, so that the second one after a
    resume shows the mean of both."""
    original = training.training_log

    @functools.wraps(original)
    def training_log(loss_dict, total_loss_dict, learning_rate, iteration, *args, is_first_iteration=False, **kwargs):
        first = is_first_iteration and iteration % training.get_args().log_interval != 0
        return original(loss_dict, total_loss_dict, learning_rate, iteration, *args, is_first_iteration=first, **kwargs)

    training.training_log = training_log


def _log_iterations(log: Log) -> None:
    """Pass the figures of each iteration to the log."""
    original = training.training_log

    @functools.wraps(original)
    def training_log(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs):
        grad_norm = args[3]
        log.training(iteration, loss_dict, learning_rate, grad_norm)
        return original(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs)

    training.training_log = training_log


def _log_evaluations(log: Log) -> None:
    """Pass the figures of each evaluation to the log."""
    evaluate, evaluate_and_print = training.evaluate, training.evaluate_and_print_results
    results: list[dict] = []  # of the evaluation that is under way

    @functools.wraps(evaluate)
    def evaluate_and_keep(*args, **kwargs):
        result = evaluate(*args, **kwargs)
        results.extend(filter(None, result[:1]))
        return result

    @functools.wraps(evaluate_and_print)
    def evaluate_and_log(prefix, forward_step, iterator, model, iteration, *args, **kwargs):
        split = "test" if "test set" in prefix else "final_valid" if "validation set" in prefix else "valid"
        printed = evaluate_and_print(prefix, forward_step, iterator, model, iteration, *args, **kwargs)
        while results:
            log.evaluation(split, iteration, results.pop())
        return printed

    training.evaluate, training.evaluate_and_print_results = evaluate_and_keep, evaluate_and_log
