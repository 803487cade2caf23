"""Find the manifest of a corpus, and check that its files have the sizes that it states."""

from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json, sha256_json


def find_corpus_manifest(dataset_prefix: str | Path) -> tuple[Path, dict]:
    """Find the manifest that lists ``dataset_prefix.bin``, for example PREFIX.manifest.json for PREFIX_text_document.

    Manifests of other things, whole or not, are passed over. Raises InputError when there is none, naming the tool
    that writes one.
    """
    dataset_prefix = Path(dataset_prefix)
    binary = f"{dataset_prefix.name}.bin"
    for path in sorted(dataset_prefix.parent.glob("*.manifest.json")):
        try:
            content = read_json(path)
        except (InputError, OSError):
            continue
        sizes = content.get("bytes") if isinstance(content, dict) else None
        if isinstance(sizes, dict) and binary in sizes:
            return path, content
    raise InputError(
        f"{dataset_prefix}: no manifest lists {binary}; build the corpus with chimed corpus, "
        f"or adopt a finished one with chimed verify corpus --write-manifest {dataset_prefix}"
    )


def check_corpus_sizes(dataset_prefix: str | Path) -> str:
    """Check quickly, at the start of a training: manifest present, .bin and .idx of the sizes that it states.

    Returns the corpus hash: a SHA-256 over the recorded hashes of both files. It does not read the files; the full
    check is `chimed verify corpus`. Raises InputError.
    """
    dataset_prefix = Path(dataset_prefix)
    manifest_path, content = find_corpus_manifest(dataset_prefix)
    names = [f"{dataset_prefix.name}.bin", f"{dataset_prefix.name}.idx"]
    for name in names:
        path = dataset_prefix.parent / name
        expected = content["bytes"].get(name)
        found = path.stat().st_size if path.is_file() else None
        if found is None or found != expected:
            state = "is missing" if found is None else f"has {found} bytes"
            raise InputError(f"{path}: {state}; {manifest_path.name} states {expected}: build the corpus again")
    return sha256_json([content["sha256"][name] for name in names])
