"""Checkpoints that hold LoRA's adapters alone: which base they belong to, and the two as one model.

A checkpoint of adapters keeps in its arguments the settings of LoRA, the place of the base and the hash of the base's
weights. With another base they would be noise, so every reader compares the hash.
"""

import hashlib
import math
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from megatron_chimed.checkpoints import check_whole, has_manifest, resolve, split_adapter
from megatron_chimed.convert.architecture import Architecture
from megatron_chimed.convert.family import Entry
from megatron_chimed.convert.megatron_args import read_megatron
from megatron_chimed.convert.strict import OPTIMIZER
from megatron_chimed.convert.tensors import merge
from megatron_chimed.convert.torch_dist import TorchDistCheckpoint
from megatron_chimed.errors import InputError
from megatron_chimed.models.options import LORA_TARGETS, LoraOptions
from megatron_chimed.workers import count_cores

KEY = "chimed_lora"
"""Name in a checkpoint's arguments of what `Lora` holds."""

HASH_BYTES = 64 << 20
"""Weights that a thread reads at a time to hash them."""


@dataclass(frozen=True)
class Lora:
    """What a checkpoint of adapters says of itself."""

    options: LoraOptions
    base: str
    """Folder of the base's checkpoints, as it was given to the training."""

    sha256: str
    """`hash_weights` of the base."""

    def to_args(self) -> dict:
        """As the value of KEY."""
        return asdict(self)


def of_args(args: Namespace, where: str) -> Lora | None:
    """Read it from the arguments of a checkpoint; None for one that holds a whole model. Raises InputError."""
    row = getattr(args, KEY, None)
    if row is None:
        return None
    try:
        lora = Lora(LoraOptions(**row["options"]), row["base"], row["sha256"])
        problems = lora.options.problems()
    except (TypeError, KeyError) as error:  # of another version
        raise InputError(f"{where}: {KEY} is not as this version writes it ({error}); take another copy") from None
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")
    return lora


def hash_weights(source: TorchDistCheckpoint) -> str:
    """Hash (SHA-256) names, types, shapes and bytes of a checkpoint's weights, whatever chunks they are saved in,
    without the optimizer's state and the padding of the vocabulary. Raises InputError."""
    vocab = getattr(source.args, "vocab_size", None)
    pieces, lines = [], []
    for name in sorted(name for name in source.tensors if not OPTIMIZER.match(name)):
        entry = source.tensors[name]
        shape = list(entry.size)
        if vocab and name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            shape[0] = min(shape[0], vocab)
        row = math.prod(shape[1:]) * entry.properties.dtype.itemsize
        step = max(1, HASH_BYTES // max(1, row))
        for start in range(0, shape[0], step):
            sizes = (min(step, shape[0] - start), *shape[1:])
            pieces.append((name, (start, *(0 for _ in shape[1:])), sizes))
        lines.append(f"{name} {entry.properties.dtype} {shape}")

    def one(piece: tuple) -> str:
        tensor = source.read(*piece)
        return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()

    with ThreadPoolExecutor(min(8, count_cores())) as threads:  # reading and hashing leave Python's lock to others
        lines += threads.map(one, pieces)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_on_one_rank(source: TorchDistCheckpoint) -> str:
    """As `hash_weights`, which of the ranks of torch.distributed, where there are some, one does for all."""
    if not torch.distributed.is_initialized():
        return hash_weights(source)
    found: list[str | InputError | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            found = [hash_weights(source)]
        except InputError as error:  # the others wait for an answer
            found = [error]
    torch.distributed.broadcast_object_list(found)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]


@dataclass(frozen=True)
class Opened:
    """A checkpoint that can be read: a whole model, or adapters and their base."""

    source: TorchDistCheckpoint
    model: Architecture
    lora: Lora | None = None
    base: TorchDistCheckpoint | None = None


def open_checkpoint(
    place: str | Path, iteration: int | None = None, check_bytes: bool = False, check_base: bool = True
) -> Opened:
    """Open the newest checkpoint of a folder, or that of an iteration; a checkpoint of adapters with its base, whose
    hash is compared.

    place: a folder, or ``BASE+ADAPTER``, where the base is elsewhere than it was. check_bytes: hold the checkpoint's
    files against its manifest, if it has one. check_base: False where another process has just compared the hash, which
    reads all of the base. Raises InputError.
    """
    folder, given = split_adapter(place)
    found = resolve(folder, iteration)
    if check_bytes and has_manifest(found):
        check_whole(found)
    source = TorchDistCheckpoint(found)
    lora = of_args(source.args, str(source.folder))
    if lora is None:
        if given is not None:
            raise InputError(f"{source.folder}: holds a whole model, no adapters; give one of the two")
        return Opened(source, read_megatron(source))
    return Opened(source, read_megatron(source), lora, open_base(lora, source.folder, given, check_base))


def holds_adapters(place: str | Path) -> bool:
    """Whether the newest checkpoint of a folder, or of ``BASE+ADAPTER``, holds adapters alone. Raises InputError."""
    source = TorchDistCheckpoint(resolve(split_adapter(place)[0]))
    return of_args(source.args, str(source.folder)) is not None


def open_base(lora: Lora, where: Path, given: Path | None = None, check: bool = True) -> TorchDistCheckpoint:
    """Open the base of adapters, `given` or where it was. Raises InputError for another one, by its hash unless `check`
    is False. where: the adapters."""
    folder = given or Path(lora.base)
    if not folder.is_dir():
        raise InputError(f"{where}: its base {folder} is not there; give its place, BASE+ADAPTER")
    base = TorchDistCheckpoint(resolve(folder))
    if check and (found := hash_on_one_rank(base)) != lora.sha256:
        raise InputError(
            f"{base.folder}: not the base of {where}: its weights have the hash {found[:12]}, expected "
            f"{lora.sha256[:12]}; give BASE+ADAPTER with the base of the training"
        )
    return base


def hash_model(place: str | Path) -> str:
    """The hash of a model's weights: of a whole one `hash_weights`, of adapters theirs with their base's.

    place: as of `open_checkpoint`. Raises InputError.
    """
    opened = open_checkpoint(place)
    return model_hash(opened.source, opened.lora)


def model_hash(source: TorchDistCheckpoint, lora: Lora | None) -> str:
    """The same of a checkpoint that is open; lora: what it says of itself, its base being the right one."""
    weights = hash_on_one_rank(source)
    return weights if lora is None else hashlib.sha256(f"{lora.sha256} {weights}".encode()).hexdigest()


def adapter_name(target: str, letter: str) -> str:
    """Name in a checkpoint of A [layers, rank, in] or B [layers, out, rank] of a target, as `models.lora` saves it."""
    return f"adapters.{target}.{letter}"


def adapter_shapes(model: Architecture, options: LoraOptions) -> dict[str, tuple[int, ...]]:
    """{name: shape [layers, ...]} of the tensors of a checkpoint of adapters, but for a head."""
    found = {}
    for target, _, (rows, columns) in targets_of(model):
        if target in options.targets:
            found[adapter_name(target, "A")] = (model.sizes.layers, options.rank, columns)
            found[adapter_name(target, "B")] = (model.sizes.layers, rows, options.rank)
    return found


def targets_of(model: Architecture) -> list[tuple[str, str, tuple[int, int]]]:
    """(target, Hugging Face name of its weight with {layer}, shape [out, in]) of all that a model can have."""
    found = []
    for entry in model.family.body:
        if entry.per_layer and not entry.per_expert:
            for name, shape in zip(entry.hf, entry.hf_shapes(model.sizes), strict=True):
                target = name.split(".")[-2]
                if name.endswith(".weight") and target in LORA_TARGETS:
                    found.append((target, name, shape))
    return found


def check_adapters(opened: Opened) -> None:
    """Raise InputError listing the tensors of a checkpoint of adapters that are missing, unknown or misshapen."""
    source, model = opened.source, opened.model
    wanted = adapter_shapes(model, opened.lora.options)
    if model.head == "reward":
        wanted["reward_head.weight"] = (1, model.sizes.hidden)
    found = {name: tuple(entry.size) for name, entry in source.tensors.items() if not OPTIMIZER.match(name)}
    both = [name for name in wanted if name in found and wanted[name] != found[name]]
    wrong = [f"{name} has shape {list(found[name])}, expected {list(wanted[name])}" for name in both]
    wrong += [f"{name} is missing" for name in wanted.keys() - found.keys()]
    wrong += [f"{name} is no adapter of this model" for name in found.keys() - wanted.keys()]
    if wrong:
        raise InputError(f"{source.folder}: {len(wrong)} faults: " + "; ".join(sorted(wrong)))


class MergedCheckpoint:
    """Base and adapters read as the one model that they make: W + scaling * B A, computed in float32, rounded once.

    It has what a converter needs of a TorchDistCheckpoint, whole layers at a time.
    """

    def __init__(self, opened: Opened):
        """opened: adapters and base. Raises InputError where there are none, or not those of the model."""
        if opened.lora is None:
            raise InputError(f"{opened.source.folder}: holds a whole model, nothing to merge; leave --merge out")
        check_adapters(opened)
        self.folder, self.args, self._opened = opened.source.folder, opened.source.args, opened
        entries = opened.model.family.entries(opened.model.head, opened.model.tied)
        self._entries = {entry.megatron: entry for entry in entries}
        own = {name: entry for name, entry in opened.source.tensors.items() if name in self._entries}
        other = opened.model.family.heads["lm"].megatron if opened.model.head == "reward" else None
        base = {name: entry for name, entry in opened.base.tensors.items() if name != other}
        self.tensors, self.objects, self._own = base | own, opened.base.objects, own

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """As `TorchDistCheckpoint.read`; of a tensor of the layers, one whole layer."""
        if name in self._own:
            return self._opened.source.read(name, offsets, sizes)
        tensor, entry = self._opened.base.read(name, offsets, sizes), self._entries[name]
        change = self._change(entry, offsets[0]) if entry.per_layer and not entry.per_expert else None
        return tensor if change is None else (tensor.float() + change.view(tensor.shape)).to(tensor.dtype)

    def _change(self, entry: Entry, layer: int) -> torch.Tensor | None:
        """What the adapters add to Megatron's tensor [rows, in] of one layer, float32; None where they add nothing."""
        targets = [name.split(".")[-2] if name.endswith(".weight") else "" for name in entry.hf]
        options, sizes = self._opened.lora.options, self._opened.model.sizes
        if not set(targets) & set(options.targets):
            return None
        changes = [
            options.scaling * product(self._opened.source, target, layer, (rows, columns), options.rank)
            if target in options.targets
            else torch.zeros(rows, columns)
            for target, (rows, columns) in zip(targets, entry.hf_shapes(sizes), strict=True)
        ]
        return merge(entry, changes, sizes)


Source = TorchDistCheckpoint | MergedCheckpoint
"""What a converter reads."""


def product(source: TorchDistCheckpoint, target: str, layer: int, shape: tuple[int, int], rank: int) -> torch.Tensor:
    """B A of one target in one layer, float32 of `shape` [out, in]."""
    rows, columns = shape
    second = source.read(adapter_name(target, "B"), (layer, 0, 0), (1, rows, rank))[0].float()
    return second @ source.read(adapter_name(target, "A"), (layer, 0, 0), (1, rank, columns))[0].float()
