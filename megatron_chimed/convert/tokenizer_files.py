"""Files of the tokenizer that goes with a checkpoint: its files, and the ids that config.json repeats."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.convert.sizes import Head
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json, to_json, write_json
from megatron_chimed.text.jinja import CHAT_TEMPLATE, chat_template
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.sentencepiece_export import write_folder
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import Tokenizer, load_tokenizer
from megatron_chimed.text.tokenizer_folder import HF_FILES, HF_OPTIONAL_FILES

FILES = (*HF_FILES, *HF_OPTIONAL_FILES, CHAT_TEMPLATE)
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def tokenizer_folder(path: str | Path | None) -> Path | None:
    """Find the folder of a tokenizer that is given as a folder or as the SentencePiece model in one; a model that has
    no other files beside it stands for itself. None when there is nothing at the path."""
    if path is None or not Path(path).exists():
        return None
    path = Path(path)
    if path.is_file() and (path.parent / "tokenizer.json").is_file():
        return path.parent
    return path


def checkpoint_tokenizer(source: str | Path) -> Tokenizer:
    """Load the tokenizer of a Megatron checkpoint as its export has it. Raises InputError."""
    return load_tokenizer(tokenizer_folder(source) or source)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files into the existing folder `target`; of a bare SentencePiece model they are made.

    Raises InputError where these would give other ids.
    """
    if source.is_file():
        write_folder(source, target)
        return
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def require_loadable(copy: Path, source: Path) -> None:
    """Raise InputError where a tokenizer's files alone are none: transformers may have found its class elsewhere."""
    try:
        load_tokenizer(copy)
    except InputError as error:
        reason = str(error).removeprefix(f"{copy}: ")
        raise InputError(f"{source}: its tokenizer needs more than its own files; {reason}") from None


def export_tokenizer(
    source: Path, target: Path, template: Template | None, token_ids: dict[str, int | None], head: Head
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Write a tokenizer into the existing folder `target`, with the chat template of the training, if one is known.

    token_ids: as `vocabulary` has them; head: lm or reward. Returns the ids that config.json repeats, and those that
    end an answer, () for the tokenizer's own.
    """
    copy_tokenizer(source, target)
    stop_ids = () if template is None else write_chat_template(target, template)
    found: dict[str, Any] = give_own_pad(target, source, token_ids, stop_ids[:1]) if head == "reward" else token_ids
    return found | ({"eos_token_id": one_or_all(stop_ids)} if stop_ids else {}), stop_ids


def vocabulary(source: Path) -> tuple[int, dict[str, int | None]]:
    """Read (number of ids, {bos_token_id, eos_token_id, pad_token_id}) of a tokenizer. Raises InputError."""
    tokenizer = load_tokenizer(source)
    return tokenizer.vocab_size, dict(zip(IDS, (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id), strict=True))


def require_rows(source: Path, rows: int) -> None:
    """Raise InputError where a tokenizer has more ids than the model's embedding has rows."""
    size = vocabulary(source)[0]
    if size > rows:
        raise InputError(
            f"{source}: the tokenizer has {size} ids and the embedding {rows} rows, as after adding a token; make it "
            f"larger (transformers' resize_token_embeddings({size})), or take the added tokens out of the tokenizer"
        )


def give_own_pad(
    folder: Path, source: Path, token_ids: dict[str, int | None], ends: Sequence[int] = ()
) -> dict[str, int | None]:
    """Choose the ids of a reward model, whose pad must not be EOS: transformers scores the last token that is no pad,
    and that is an answer's EOS. Where the tokenizer pads with EOS, or not at all, its copy in `folder` then pads with
    BOS.

    source: the tokenizer; without a BOS the pad is None, and transformers takes one answer at a time. ends: the ids
    that end answers, where that is not EOS.
    """
    ends = ends or (token_ids["eos_token_id"],)
    if token_ids["pad_token_id"] not in (None, *ends):
        return token_ids
    number = token_ids["bos_token_id"]
    if number in (None, *ends):
        return token_ids | {"pad_token_id": None}
    pad_token = load_tokenizer(source).id_to_token(number)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            write_json(folder / name, read_json(folder / name) | {"pad_token": pad_token})
    return token_ids | {"pad_token_id": number}


def write_chat_template(folder: Path, template: Template) -> tuple[int, ...]:
    """Write a template as the chat template of a folder with a tokenizer's files, in the place of any that was there;
    returns the ids at which its answers end, () where the tokenizer has not the template's tokens.

    A tokenizer that it does not give the prompts of the training is left without one, which is said.
    """
    stop_ids, text = (), None
    try:
        stop_ids = Renderer(template, load_tokenizer(folder)).stop_ids
        text = chat_template(folder, template)
    except InputError as error:
        print(f"no {CHAT_TEMPLATE} is written: {error}", file=sys.stderr)
    path = folder / "tokenizer_config.json"
    if path.is_file() and "chat_template" in (content := read_json(path)):
        write_json(path, {key: value for key, value in content.items() if key != "chat_template"})
    (folder / CHAT_TEMPLATE).unlink(missing_ok=True)
    if text is not None:
        (folder / CHAT_TEMPLATE).write_text(text, encoding="utf-8")
    return stop_ids


def generation_config(
    source: Path | None, token_ids: dict[str, int | None], stop_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """Read the generation_config.json beside the tokenizer, or make one that states its ids; with the ids at which an
    answer ends in place of its own, where some are given. Raises InputError."""
    ends = {"eos_token_id": one_or_all(stop_ids)} if stop_ids else {}
    path = None if source is None else source / "generation_config.json"
    if path is not None and path.is_file():
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected a JSON object")
        to_json(content, path)  # or it could not be written
        return content | ends
    return {"_from_model_config": True} | {n: value for n, value in (token_ids | ends).items() if value is not None}


def one_or_all(stop_ids: Sequence[int]) -> int | list[int]:
    """Write ids at which an answer ends as transformers and vLLM read them: a number where there is one."""
    return stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
