"""Checkpoints of a run on disk: which one is the newest, whether its files are whole, and which are kept.

A run's folder holds ``iter_0000005``, ``iter_0000010``, ... and a tracker file that names the newest one. Each holds a
manifest of the sizes and hashes of its files, in the form of Megatron's --verify-integrity and with sizes, which is
written after all of them. A checkpoint of another tool has none, and is taken as it is.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import atomic_output, read_json, sha256_file, write_json

TRACKER = "latest_checkpointed_iteration.txt"
MANIFEST = "integrity.json"
DAMAGED, DELETED = "damaged_", ".deleted_"


def path_of(folder: str | Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration lies in a run's folder."""
    return Path(folder) / f"iter_{iteration:07d}"


def split_adapter(place: str | Path) -> tuple[Path, Path | None]:
    """(folder of a model or of adapters, folder of their base if it is named) of a folder or ``BASE+ADAPTER``.

    >>> split_adapter("runs/base+runs/lora")
    (PosixPath('runs/lora'), PosixPath('runs/base'))
    """
    base, plus, adapter = str(place).rpartition("+")
    return (Path(adapter), Path(base)) if plus and not Path(place).exists() else (Path(place), None)


def iterations(folder: str | Path) -> list[int]:
    """The iterations of which there is a folder, whole or not, ascending."""
    numbers = (path.name.removeprefix("iter_") for path in Path(folder).glob("iter_*") if path.is_dir())
    return sorted(int(number) for number in numbers if number.isdecimal())


def latest_iteration(folder: str | Path) -> int:
    """The iteration of the newest checkpoint in a run's folder, 0 when there is none.

    Upstream rewrites its tracker file in place, so that a kill can leave it empty; then the checkpoints themselves
    tell, of which metadata.json is written last, and the tracker is mended. Raises InputError when it holds anything
    else than a number.
    """
    tracker = Path(folder) / TRACKER
    if not tracker.is_file():
        return 0
    text = tracker.read_text(encoding="utf-8").strip()
    if text == "release":
        return 0
    if not text:
        whole = [number for number in iterations(folder) if (path_of(folder, number) / "metadata.json").is_file()]
        text = str(max(whole, default=0))
        write_tracker(folder, text)
    if not text.isdecimal():
        raise InputError(f"{tracker}: holds {text!r}; expected an iteration number. Remove it or write the right one")
    return int(text)


def resolve(folder: str | Path, iteration: int | None = None) -> Path:
    """The folder of one checkpoint: the newest one of a run's folder, or that of an iteration, or the folder itself.

    Without a tracker file the only checkpoint there is taken. Raises InputError when there is none, with those that
    there are, and for Megatron's older format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of Megatron checkpoints")
    if iteration is None and re.fullmatch(r"release|iter_\d{7,}", folder.name) and not (folder / TRACKER).exists():
        return _in_our_format(folder)
    there = sorted(path.name for path in (*folder.glob("iter_*"), folder / "release") if path.is_dir())
    name = _newest(folder, there) if iteration is None else path_of(folder, iteration).name
    if name not in there:
        raise InputError(f"{folder}: has no {name}; there is {', '.join(there) or 'no checkpoint'}")
    return _in_our_format(folder / name)


def _newest(folder: Path, there: list[str]) -> str:
    """The name of the checkpoint that the tracker file names, or the only one. Raises InputError."""
    tracker = folder / TRACKER
    text = tracker.read_text(encoding="utf-8", errors="replace").strip() if tracker.is_file() else ""
    if text == "release":
        return text
    if text.isdecimal():
        return path_of(folder, int(text)).name
    if not there:
        raise InputError(f"{folder}: holds no checkpoint (no iter_..., no release); give a run's folder")
    if len(there) == 1 and not tracker.is_file():
        return there[0]
    state = f"holds {text[:40]!r}, no iteration" if tracker.is_file() else "is missing"
    names = ", ".join(name for name in there if name != "release")
    choices = [f"give --iteration, one of {names}"] if names else []
    choices += [f"give {folder / 'release'}"] if "release" in there else []
    raise InputError(f"{tracker}: {state}; {', or '.join(choices)}")


def _in_our_format(folder: Path) -> Path:
    """The folder of one checkpoint. Raises InputError for Megatron's older format, of one file for each rank."""
    older = next(folder.glob("mp_rank_*/*.pt"), None)
    if older is not None and not (folder / "metadata.json").is_file():
        raise InputError(f"{older}: Megatron's older format (torch); save it with --ckpt-format torch_dist")
    return folder


def require_loadable(folder: str | Path, advice: str = "give a run's --save") -> None:
    """Raise InputError unless the trainer can --load from a folder: it has a tracker file."""
    folder = Path(folder)
    if (folder / TRACKER).is_file():
        return
    if match := re.fullmatch(r"iter_(\d{7,})", folder.name):
        advice = f"give --load {folder.parent} --ckpt-step {int(match[1])}"
    raise InputError(f"--load {folder}: no checkpoint there ({TRACKER} is missing); {advice}")


def write_tracker(folder: str | Path, text: str) -> None:
    """Name the newest checkpoint of a run's folder: the digits of its iteration, or ``release``."""
    with atomic_output(Path(folder) / TRACKER) as file:
        file.write(text)


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """(bytes, SHA-256) of files of a checkpoint, read side by side."""

    def one(name: str) -> tuple[int, str]:
        return (folder / name).stat().st_size, sha256_file(folder / name)

    names = sorted(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # hashing leaves Python's lock to others
        return dict(zip(names, threads.map(one, names), strict=True))


def write_manifest(folder: Path, files: dict[str, tuple[int, str]]) -> None:
    """Write what `hash_files` has found, of all files of a checkpoint, as its manifest."""
    content = {
        "algorithm": "sha256",
        "files": {name: found for name, (_, found) in sorted(files.items())},
        "bytes": {name: size for name, (size, _) in sorted(files.items())},
    }
    write_json(folder / MANIFEST, content)


def has_manifest(folder: Path) -> bool:
    """Whether a checkpoint was finished by us."""
    return (folder / MANIFEST).is_file()


def find_damage(folder: Path) -> str | None:
    """What is wrong with one checkpoint; None when it is whole: sizes first, and then every byte.

    Without a manifest only a save in torch_dist format that was cut off is found.
    """
    if not folder.is_dir():
        return "it is missing"
    if not has_manifest(folder):
        cut = any(folder.glob("*.distcp")) and not (folder / "metadata.json").is_file()
        return "its save was cut off" if cut or not any(folder.iterdir()) else None
    try:
        content = read_json(folder / MANIFEST)
        hashes, sizes = dict(content["files"]), dict(content.get("bytes", {}))
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return f"{MANIFEST} is no manifest"
    for name in hashes:
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found is None or found != sizes.get(name, found):
            return f"{name} " + ("is missing" if found is None else f"has {found} bytes instead of {sizes[name]}")
    changed = [name for name, (_, found) in hash_files(folder, hashes).items() if found != hashes[name]]
    return f"{changed[0]} has other bytes than {MANIFEST} states" if changed else None


def fall_back(folder: str | Path) -> str | None:
    """Make the newest whole checkpoint of a run's folder the latest one.

    Damaged ones on the way are renamed, and the returned line tells of it; None when the latest one is whole or there
    is none. Raises InputError when none is whole. No other process may write the folder meanwhile.
    """
    latest = latest_iteration(folder)
    damage = find_damage(path_of(folder, latest)) if latest else None
    if damage is None:
        return None
    older = [number for number in reversed(iterations(folder)) if number < latest]
    good = next((number for number in older if find_damage(path_of(folder, number)) is None), None)
    name = path_of(folder, latest)
    if good is None:
        raise InputError(
            f"{name}: {damage}, and there is no whole checkpoint before it; bring a copy back, or remove "
            f"{Path(folder) / TRACKER} to start anew"
        )
    write_tracker(folder, str(good))
    for number in (latest, *(number for number in older if number > good)):
        _set_aside(path_of(folder, number))
    return f"{name}: {damage}; set aside as {DAMAGED}{name.name}, continuing from iteration {good}"


def _set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that nobody takes it for one."""
    for number in range(1000):
        target = folder.with_name(f"{DAMAGED}{folder.name}" + (f"_{number}" if number else ""))
        if not target.exists():
            with contextlib.suppress(FileNotFoundError):
                folder.rename(target)
            return


def check_whole(folder: Path) -> None:
    """Raise InputError unless one checkpoint is whole, as far as its manifest tells."""
    if damage := find_damage(folder):
        others = [number for number in iterations(folder.parent) if path_of(folder.parent, number) != folder]
        advice = f"there is also iteration {', '.join(map(str, others))}" if others else "take another copy"
        raise InputError(f"{folder}: {damage}; {advice}")


def discard(folder: Path) -> None:
    """Delete a checkpoint; at no moment does a part of it stand under its name."""
    gone = folder.with_name(f"{DELETED}{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def retain(folder: str | Path, keep: int, interval: int | None = None) -> None:
    """Delete checkpoints with a manifest that are older than the `keep` newest ones up to the latest; 0 keeps all.

    Multiples of `interval` (--save-retain-interval), links and checkpoints of other tools stay.
    """
    if not keep:
        return
    for left in Path(folder).glob(f"{DELETED}*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    latest = latest_iteration(folder)
    ours = [number for number in iterations(folder) if number <= latest and has_manifest(path_of(folder, number))]
    for number in ours[:-keep]:
        path = path_of(folder, number)
        if number != latest and not path.is_symlink() and not (interval and number % interval == 0):
            discard(path)
