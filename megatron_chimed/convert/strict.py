"""Check the tensors of a checkpoint against those that the model needs, both ways; all differences are one error."""

import re
from typing import Any

import torch

from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.hf_folder import HuggingFaceFolder
from megatron_chimed.convert.plan import FLOATS
from megatron_chimed.errors import InputError

OTHER_OBJECTS = re.compile(r"common_state/|rng_state|rerun_state|.*_extra_state|(chained_\d+\.)?optimizer\.")
"""Objects of a Megatron checkpoint that are no weights."""

OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")
"""Tensors of a Megatron checkpoint that are the optimizer's; they are not converted."""


def check_hf_tensors(model: Architecture, source: HuggingFaceFolder, dtype: torch.dtype | None) -> None:
    """Raise InputError listing damaged files, missing, unknown and misshapen tensors, and wrong types.

    dtype: what all weights become; None keeps types, and then the layers of one tensor must agree.
    """
    expected = dict(model.family.hf_tensors(model.head, model.tied, model.sizes))
    problems = list(source.problems)
    for name, shape in expected.items():
        found = source.tensors.get(name)
        if found is None:
            if not source.unreadable:  # else it may be in the file that could not be read
                problems.append(f"{name} is missing")
        elif found.shape != shape:
            problems.append(f"{name} has shape {list(found.shape)}, config.json makes it {list(shape)}")
        elif found.dtype not in FLOATS:
            problems.append(f"{name} is {found.dtype}; expected bfloat16, float16 or float32")
    for name in sorted(source.tensors.keys() - expected.keys()):
        if not re.fullmatch(model.family.buffers, name) and not _is_tied_copy(name, model, source, expected):
            problems.append(f"{name} is in {source.tensors[name].file}, and no tensor of this model")
    if not problems and dtype is None:
        problems = _mixed_types(model, source)
    if problems:
        raise InputError(f"{source.folder}: {len(problems)} faults: " + "; ".join(problems))


def _is_tied_copy(name: str, model: Architecture, source: HuggingFaceFolder, expected: dict) -> bool:
    """Whether a tensor is the output layer of a model with tied embeddings, stored although it is the embedding."""
    entry, embedding = model.family.heads["lm"], model.family.body[0].hf[0]
    if not model.tied or model.head != "lm" or name != entry.hf[0] or embedding not in source.tensors:
        return False
    copy, original = source.tensors[name], source.tensors[embedding]
    return copy.shape == original.shape == expected[embedding] and torch.equal(copy.read(), original.read())


def _mixed_types(model: Architecture, source: HuggingFaceFolder) -> list[str]:
    """List tensors whose layers have several types: Megatron stores them as one."""
    problems = []
    for entry in model.family.entries(model.head, model.tied):
        places = entry.places(model.sizes)
        types = {str(source.tensors[name].dtype) for place in places for name in entry.hf_names(place)}
        if len(types) > 1:
            problems.append(f"{', '.join(entry.hf)} have {' and '.join(sorted(types))}; give --dtype to make them one")
    return problems


def check_megatron_tensors(model: Architecture, source: Any) -> None:
    """Raise InputError listing missing, unknown and misshapen tensors and wrong types of a Megatron checkpoint."""
    problems, known = [], set()
    for entry in model.family.entries(model.head, model.tied):
        known.add(entry.megatron)
        shape = (*entry.stack(model.sizes), *entry.megatron_shape(model.sizes))
        found = source.tensors.get(entry.megatron)
        if found is None:
            problems.append(f"{entry.megatron} is missing")
            continue
        padded = entry.has_vocabulary and found.size[0] >= shape[0] and tuple(found.size[1:]) == shape[1:]
        if tuple(found.size) != shape and not padded:
            problems.append(f"{entry.megatron} has shape {list(found.size)}, the arguments make it {list(shape)}")
        if found.properties.dtype not in FLOATS:
            problems.append(f"{entry.megatron} is {found.properties.dtype}; expected bfloat16, float16 or float32")
    unknown = [name for name in source.tensors if name not in known and not OPTIMIZER.match(name)]
    unknown += [name for name in source.objects if not OTHER_OBJECTS.match(name)]
    problems += [f"{name} is no weight of this model" for name in sorted(unknown)]
    if problems:
        raise InputError(f"{source.folder}: {len(problems)} faults: " + "; ".join(problems))
