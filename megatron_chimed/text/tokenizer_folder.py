"""What makes a folder a Hugging Face tokenizer: its files and their hash, and the special tokens that they name."""

import hashlib
from pathlib import Path
from typing import Any

from megatron_chimed.backend.deferred import deferred
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import sha256_file

# The files of a Hugging Face folder that decide which ids a text becomes; one of the first three must be there.
HF_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")
HF_OPTIONAL_FILES = ("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt")


def complete_special_tokens(loaded, folder: str | Path) -> None:
    """Let EOS and SEP, and BOS and CLS, stand in for each other, as Megatron's HuggingFaceTokenizer does. Raises
    InputError for a special token without an id: transformers would take that of <unk>."""
    for name, token in loaded.special_tokens_map.items():
        if loaded.backend_tokenizer.token_to_id(token) is None:
            raise InputError(f"{folder}: its {name} is {token!r}, and no token of the vocabulary; mend the name")
    pairs = (("eos_token", "sep_token"), ("bos_token", "cls_token"))
    present = {name: getattr(loaded, name, None) for pair in pairs for name in pair}
    missing = {a: present[b] for pair in pairs for a, b in (pair, pair[::-1]) if present[b] and not present[a]}
    loaded.add_special_tokens(missing)


def fingerprint_of(path: str | Path) -> str:
    """The fingerprint of the tokenizer at a path, without loading it. Raises InputError for a missing file."""
    return folder_fingerprint(path) if Path(path).is_dir() else sha256_file(path)


def folder_fingerprint(folder: str | Path) -> str:
    """Hash (SHA-256) names and contents of a Hugging Face folder's tokenizer files."""
    names = sorted(name for name in (*HF_FILES, *HF_OPTIONAL_FILES) if (Path(folder) / name).is_file())
    lines = "".join(f"{name} {sha256_file(Path(folder) / name)}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a Hugging Face tokenizer."""
    return any((folder / name).is_file() for name in HF_FILES[:3])


def load_by_transformers(folder: str | Path) -> Any:
    """A folder's tokenizer as transformers reads it, from this disk alone. Raises InputError."""
    with deferred("torch"):  # which transformers imports for its models, and which takes longer than all of the rest
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # transformers raises nearly anything on a broken folder
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: not a Hugging Face tokenizer folder ({reason})") from None
