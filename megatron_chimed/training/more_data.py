"""Data beside a run's blend: earlier data that are mixed in as replay, and validation sets by name."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from megatron_chimed.datasets.packed_dataset import mixed_templates
from megatron_chimed.datasets.replay import OtherKind, ReplayMix
from megatron_chimed.errors import InputError
from megatron_chimed.stages import pretrain, sft
from megatron_chimed.stages.options import PretrainConfig, SftConfig
from megatron_chimed.stages.stage import Data, DataRequest
from megatron_chimed.training.options import JobOptions, Replay

ORDER_SEED = 0
"""Of named sets: the rows that are taken of a large one are the same in runs of other seeds."""


def with_replay(config: Any, request: DataRequest, data: Data, replay: Replay | None) -> Data:
    """The data with a share of replay among the samples of train.

    config: the stage's, of pre-training or fine-tuning. Raises InputError as the stage does for its own data, and where
    there is nothing to mix it into, and for rows of another template.
    """
    if replay is None:
        return data
    if data.train is None:
        raise InputError("replay: there are no training data to mix it into; give --train-data-path")
    most = int(request.num_samples[0] * replay.share) + 1
    earlier = _read("replay", config, request, replay.data, most)
    templates = {"the training data": data.facts.get("template"), replay.data: earlier.facts.get("template")}
    if wrong := mixed_templates(templates):
        raise InputError(f"replay: {'; '.join(wrong)}")
    return dataclasses.replace(data, train=ReplayMix(data.train, earlier.train, replay.share))


def named_sets(config: Any, request: DataRequest, data: Data, options: JobOptions) -> Mapping[str, Dataset]:
    """{name: its rows, at most options.valid_rows}. Raises InputError likewise, and for a name that a source has."""
    found = {}
    request = dataclasses.replace(request, seed=ORDER_SEED)
    for name, path in options.valid.items():
        if name in data.facts.get("sources", ()):
            raise InputError(
                f"valid: {name} is also a source of the data, whose loss is logged by that name; choose another"
            )
        rows = _read(f"valid: {name}", config, request, path, options.valid_rows).train
        found[name] = Subset(rows, range(min(options.valid_rows, rows.rows_of_epoch)))
    return found


def _read(key: str, config: Any, request: DataRequest, path: str, samples: int) -> Data:
    """So many samples of one corpus or packed folder, all of it, as rows of the stage of `config`, whichever it is."""
    request = dataclasses.replace(
        request, num_samples=(samples, 0, 0), blend=([path], None), blend_per_split=None, split="1,0,0"
    )
    is_packed, wants_packed = Path(path).is_dir(), isinstance(config, SftConfig)
    try:
        if is_packed == wants_packed:
            return (sft if is_packed else pretrain).build_datasets(config, request)
        if is_packed:
            data = sft.build_datasets(SftConfig(isolate_instances=config.isolate_documents), request)
        else:
            data = pretrain.build_datasets(PretrainConfig(isolate_documents=config.isolate_instances), request)
    except InputError as error:
        raise InputError(f"{key}: {error}") from None
    return dataclasses.replace(data, train=OtherKind(data.train, has_source=wants_packed))
