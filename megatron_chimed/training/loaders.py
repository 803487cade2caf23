"""Build the datasets of a stage, and iterate over the batches of this data-parallel rank."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import mpu
from megatron.training import get_args
from megatron.training.datasets.data_samplers import MegatronPretrainingSampler
from megatron.training.utils import get_blend_and_blend_per_split
from torch.utils.data import Dataset

from megatron_chimed.checkpoints import TRACKER
from megatron_chimed.convert import trained_template
from megatron_chimed.errors import InputError
from megatron_chimed.stages.stage import Data, DataRequest, Stage
from megatron_chimed.training.more_data import named_sets, with_replay
from megatron_chimed.training.options import JobOptions
from megatron_chimed.training.reference import check_reference
from megatron_chimed.training.runlog import log_rank0


class DataProvider:
    """The trainer's dataset provider: builds the stage's data and gives iterators over it.

    It returns iterators ("external" loaders), for two reasons: a loader of our own draws its seed from its own
    generator (upstream's draws from torch's, which dropout on a CPU uses, so that a resumed run would differ), and
    every rank reads its rows itself from the shared memory map, without a broadcast.
    """

    is_distributed = True

    def __init__(self, stage: Stage, config: Any, job: JobOptions):
        self.stage, self.config, self.job = stage, config, job
        self.named: Mapping[str, Dataset] = {}
        """The validation sets by name, once they are built."""
        self._data: Data | None = None

    @property
    def data(self) -> Data:
        """What was built; the trainer asks for it before the first forward step."""
        assert self._data is not None, "no data was asked for yet"
        return self._data

    def __call__(self, num_samples: tuple[int, int, int]) -> tuple[Iterator | None, Iterator | None, Iterator | None]:
        """Iterators of train, valid and test from the first sample that is not consumed."""
        args = get_args()
        request = data_request(args, num_samples)
        data = self.stage.build_datasets(self.config, request)
        if not args.fake_process_group:  # a dry run has data of its own
            data = with_replay(self.config, request, data, self.job.replay)
            self.named = named_sets(self.config, request, data, self.job)
        self._data = data
        _record_template(args, data)
        if reference := data.facts.get("reference"):
            check_reference(args, reference)
        if data.valid is None and args.eval_iters:
            log_rank0("no validation data: evaluation is left out")
            args.eval_iters = 0  # upstream would evaluate on None
        return (
            _iterator(data.train, args.consumed_train_samples, args.micro_batch_size, args),
            _iterator(data.valid, args.consumed_valid_samples, args.eval_micro_batch_size, args),
            _iterator(data.test, 0, args.eval_micro_batch_size, args),
        )


def _record_template(args: argparse.Namespace, data: Data) -> None:
    """Add the template of the data, else that of the checkpoint that was loaded, to what every checkpoint keeps."""
    template = data.facts.get("template")
    if template is None:
        folders = (folder for folder in (args.load, args.pretrained_checkpoint) if folder)
        loaded = next((folder for folder in folders if (Path(folder) / TRACKER).is_file()), None)
        with contextlib.suppress(InputError):  # Megatron's older format, in which nothing of ours is written
            found = loaded and trained_template.of_checkpoint(loaded, args.ckpt_step)
            template = found and found.to_row()
    if template is not None:
        setattr(args, trained_template.KEY, template)


def data_request(args: argparse.Namespace, num_samples: tuple[int, int, int]) -> DataRequest:
    """What Megatron's arguments say about the data."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    return DataRequest(
        num_samples=tuple(num_samples),
        sequence_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        pipeline_parallel_size=args.pipeline_model_parallel_size,
        transformer_impl=args.transformer_impl,
        vocab_size=args.vocab_size,
        seed=args.seed,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        cache=args.data_cache_path,
    )


def _iterator(dataset: Dataset | None, consumed: int, micro_batch_size: int, args: argparse.Namespace):
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
