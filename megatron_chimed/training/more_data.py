"""Data beside a run's blend: earlier data that are mixed in as replay, and validation sets by name."""

import dataclasses
from collections.abc import Callable, Mapping

from torch.utils.data import Dataset, Subset

from megatron_chimed.datasets.packed_dataset import mixed_templates
from megatron_chimed.datasets.replay import ReplayMix
from megatron_chimed.errors import InputError
from megatron_chimed.stages.stage import Data, DataRequest
from megatron_chimed.training.options import JobOptions, Replay

Build = Callable[[DataRequest], Data]
"""A stage's `build_datasets` behind its options."""

ORDER_SEED = 0
"""Of named sets: the rows that are taken of a large one are the same in runs of other seeds."""


def with_replay(build: Build, request: DataRequest, data: Data, replay: Replay | None) -> Data:
    """The data with a share of replay among the samples of train. Raises InputError as `build`, where there is nothing
    to mix it into, and for rows of another template."""
    if replay is None:
        return data
    if data.train is None:
        raise InputError("replay: there are no training data to mix it into; give --train-data-path")
    most = int(request.num_samples[0] * replay.share) + 1
    earlier = build(_alone(request, replay.data, most))
    templates = {"the training data": data.facts.get("template"), replay.data: earlier.facts.get("template")}
    if wrong := mixed_templates(templates):
        raise InputError(f"replay: {'; '.join(wrong)}")
    return dataclasses.replace(data, train=ReplayMix(data.train, earlier.train, replay.share))


def named_sets(build: Build, request: DataRequest, data: Data, options: JobOptions) -> Mapping[str, Dataset]:
    """{name: its rows, at most options.valid_rows}. Raises InputError as `build`, and for a name that a source has."""
    found = {}
    for name, path in options.valid.items():
        if name in data.facts.get("sources", ()):
            raise InputError(
                f"valid: {name} is also a source of the data, whose loss is logged by that name; choose another"
            )
        rows = build(dataclasses.replace(_alone(request, path, options.valid_rows), seed=ORDER_SEED)).train
        found[name] = Subset(rows, range(min(options.valid_rows, rows.rows_of_epoch)))
    return found


def _alone(request: DataRequest, path: str, samples: int) -> DataRequest:
    """A request for so many samples of one corpus or folder, all of it."""
    return dataclasses.replace(
        request, num_samples=(samples, 0, 0), blend=([path], None), blend_per_split=None, split="1,0,0"
    )
