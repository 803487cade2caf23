"""The ledger of what this project changes or reaches in torch and Megatron; no torch: a docs page is made of it.

A test in tests/upstream shows for each patch what fails without it, and fails by the patch's name when upstream has
mended that: then the patch goes. Another test compares the table with the code.
"""

from dataclasses import dataclass
from typing import Literal

NEWEST = "megatron-core 0.19.2, torch 2.11.0"


@dataclass(frozen=True)
class Patch:
    """One change of torch or Megatron in a running process."""

    name: str
    kind: Literal["fault", "hook", "cpu"]
    """Mends a fault; adds what upstream offers no way for; or lets Megatron run on a CPU."""

    where: str
    """``module:function`` below megatron_chimed that makes the change."""

    targets: tuple[str, ...]
    """The attributes that are changed."""

    without: str
    """What fails without it."""

    until: str = NEWEST
    """The newest version that needs it, as far as was seen."""


_TRAINING = "megatron.training.training"
_DISTRIBUTED = "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer"

PATCHES = (
    Patch(
        "skip_compilation",
        "fault",
        "training.patches:_skip_compilation",
        ("megatron.training.initialize._compile_dependencies",),
        "Upstream runs `make` in a folder that the wheel lacks, and exits; the compiled helper is in the wheel.",
    ),
    Patch(
        "adam_state_before_loading",
        "fault",
        "training.patches:_give_adam_its_state_before_loading",
        (f"{_DISTRIBUTED}.state_dict",),
        "A resume with the distributed optimizer and torch's Adam ends with an assertion.",
    ),
    Patch(
        "optimizer_loaded_exactly",
        "fault",
        "training.patches:_load_optimizer_exactly",
        (f"{_TRAINING}.load_checkpoint",),
        "After a resume Adam's step is 0 or shared by all parameters: the losses are others than without the break.",
    ),
    Patch(
        "weights_of_two_types",
        "fault",
        "training.patches:_number_weights_of_two_types_alike",
        (f"{_DISTRIBUTED}._build_optimizer_group_ranges",),
        "In a bf16 model with a float32 weight the optimizer saves one weight's state as another's.",
    ),
    Patch(
        "extendable_schedule",
        "fault",
        "training.patches:_let_a_run_be_extended",
        ("megatron.core.optimizer_param_scheduler.OptimizerParamScheduler.load_state_dict",),
        "A run with constant rates cannot be made longer: the checkpoint is refused.",
    ),
    Patch(
        "first_iteration_logged_once",
        "fault",
        "training.patches:_print_each_iteration_by_itself",
        (f"{_TRAINING}.training_log",),
        "The second iteration that a process prints is the mean of its first two.",
    ),
    Patch(
        "log_iterations",
        "hook",
        "training.patches:_log_iterations",
        (f"{_TRAINING}.training_log",),
        "The figures of an iteration are printed with seven digits and kept nowhere.",
    ),
    Patch(
        "log_evaluations",
        "hook",
        "training.patches:_log_evaluations",
        (f"{_TRAINING}.evaluate", f"{_TRAINING}.evaluate_and_print_results"),
        "The figures of an evaluation go to TensorBoard alone.",
    ),
    Patch(
        "check_state_dict",
        "fault",
        "training.patches:check_state_dict",
        (f"{_TRAINING}.load_checkpoint",),
        "A checkpoint of another model is loaded as far as it fits, in silence.",
    ),
    Patch(
        "load_base_and_adapters",
        "hook",
        "training.lora:install",
        (f"{_TRAINING}.load_checkpoint",),
        "A checkpoint of adapters alone cannot be continued: what it lacks, the base, comes from nowhere.",
    ),
    Patch(
        "keep_model",
        "hook",
        "training.patches:keep_model",
        (f"{_TRAINING}.setup_model_and_optimizer",),
        "The trainer gives its model and optimizer to nobody; the dry run counts their bytes.",
    ),
    Patch(
        "save_without_another_process",
        "fault",
        "training.saving:_save_without_another_process",
        ("megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue",),
        "Each rank starts a process of 300 MB for its saves, which a signal to the job ends, and with it the save.",
    ),
    Patch(
        "save_with_manifest",
        "fault",
        "training.saving:_save_with_manifest",
        ("megatron.training.checkpointing.dist_checkpointing.save",),
        "What a save that was cut off has left under a checkpoint's name stays in it; no hash tells if it is whole.",
    ),
    Patch(
        "keep_the_newest",
        "hook",
        "training.saving:_keep_the_newest",
        (f"{_TRAINING}.save_checkpoint",),
        "All checkpoints stay; --save-retain-interval deletes the one before, whole or not.",
    ),
    Patch(
        "supervise",
        "hook",
        "training.supervision:Supervisor.install",
        (f"{_TRAINING}.train_step", f"{_TRAINING}.checkpoint_and_decide_exit"),
        "A signal ends the ranks without a checkpoint; a loss that is no number ends one rank, and the others wait.",
    ),
    Patch(
        "allow_no_cuda",
        "cpu",
        "training.patches:_allow_no_cuda",
        (f"{_TRAINING}.initialize_megatron",),
        "Megatron refuses to start without CUDA.",
    ),
    Patch(
        "no_compiler",
        "cpu",
        "backend.cpu:without_compiler",
        ("torch.compile",),
        "A few elementwise functions are compiled at each start, 15 s, for nothing.",
    ),
    Patch(
        "cuda_means_cpu",
        "cpu",
        "backend.cpu:_replace_devices",
        (
            "torch.cuda",  # setattr of names in a list: synchronize, empty_cache, memory counters
            *(
                f"torch.cuda.{name}"
                for name in (
                    *("current_device", "device_count", "get_device_capability", "get_device_properties"),
                    *("device_memory_used", "memory_stats", "is_current_stream_capturing"),
                    *("Stream", "Event", "current_stream", "default_stream", "stream"),
                )
            ),
        ),
        "Megatron asks for CUDA devices, streams, events and memory counters everywhere.",
    ),
    Patch(
        "cuda_generator",
        "cpu",
        "backend.cpu:_replace_generator",
        (
            *(f"torch.cuda.{name}" for name in ("get_rng_state", "set_rng_state", "manual_seed")),
            "torch.cuda.random.get_rng_state",
        ),
        "Saving and restoring the CUDA generator's state raises.",
    ),
    Patch(
        "fused_adam",
        "cpu",
        "backend.cpu:_fuse_adam",
        ("torch.optim.adam.adam",),
        "torch's Adam goes twelve times over each weight where it could once: 4% of a small model's step.",
    ),
    Patch(
        "rng_tracker",
        "cpu",
        "backend.cpu:_replace_megatron_generator",
        ("megatron.core.tensor_parallel.random._set_cuda_rng_state",),
        "The RNG tracker queues its states for ever and sets none: tensor-parallel ranks draw apart.",
    ),
    Patch(
        "sizes_as_numbers",
        "cpu",
        "backend.cpu:_give_sizes_as_numbers",
        ("megatron.core.transformer.moe.token_dispatcher.maybe_move_tensor_to_cpu",),
        "Expert parallelism with --moe-token-dispatcher-type alltoall ends: gloo is given tensors for sizes.",
    ),
)


@dataclass(frozen=True)
class PrivateName:
    """A private name of torch or Megatron that is reached outside of training/ and models/, where that is free."""

    path: str
    name: str
    why: str


PRIVATE_NAMES = (
    PrivateName(
        "megatron_chimed/backend/cpu.py",
        "megatron.core.tensor_parallel.random._set_cuda_rng_state",
        "the patch rng_tracker",
    ),
    PrivateName(
        "megatron_chimed/convert/torch_dist.py",
        "torch.distributed.checkpoint.utils._create_file_view",
        "torch's reader copies what it reads: a part of a file by itself, whose tensor is mapped",
    ),
    PrivateName(
        "megatron_chimed/inference/decode.py",
        "torch._C",
        "DisableTorchFunction: without the mode that maps devices a small model decodes twice as fast",
    ),
    PrivateName(
        "benchmarks/gpu/training.py",
        "torch._C",
        "DisableTorchFunction: what transformers does on a CPU is timed without the mode that maps devices",
    ),
    PrivateName(
        "megatron_chimed/convert/torch_dist.py",
        "megatron.core.safe_globals.SafeUnpickler._SAFE_CLASSES",
        "the classes of a checkpoint's metadata, so that no other is loaded",
    ),
    PrivateName(
        "megatron_chimed/datasets/blend.py",
        "megatron.core.datasets.blended_dataset.BlendedDataset._build_indices",
        "a blend with a safe cache, whose corpora never run out",
    ),
    PrivateName(
        "megatron_chimed/datasets/packed_dataset.py",
        "megatron.core.datasets.blended_megatron_dataset_builder.BlendedMegatronDatasetBuilder"
        "._build_megatron_dataset_splits",
        "a split of few rows is rounded to none, and the evaluation of it ends in an IndexError",
    ),
)
