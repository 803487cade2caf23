"""Train a SentencePiece byte-pair tokenizer and write it as a Hugging Face folder too, with the same ids.

Everything is kept: no normalisation, no added leading space, white space as it is, and a character outside the
vocabulary becomes its UTF-8 bytes. So any text decodes to itself, but for one character: U+2581, by which
SentencePiece marks a space inside its pieces, decodes to a space.
"""

import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import (
    atomic_folder,
    expand,
    manifest,
    read_json,
    read_json_lines,
    read_lines,
    sha256_file,
    write_json,
)
from megatron_chimed.text.sentencepiece_export import hugging_face_backend

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"  # ids 0 to 3
MANIFEST = "manifest.json"
TRAINING = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": 3,
    "max_sentence_length": 1 << 30,  # the default drops documents above 4,192 bytes without a word
    "num_threads": 4,  # written into the model file: fixed, so that every machine writes the same bytes
    "minloglevel": 2,
}


def read_documents(path: Path, json_keys: Sequence[str]) -> Iterator[str]:
    """Read the texts of a file: each key's string of each row of JSON lines, or each line of a .txt (or .txt.gz) file.

    Raises InputError as ``file:line: reason``.
    """
    if path.name.endswith((".txt", ".txt.gz")):
        for number, line in read_lines(path):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}:{number}: invalid UTF-8 at byte {error.start}") from None
        return
    for number, row in read_json_lines(path):
        for key in json_keys:
            text = row.get(key)
            if not isinstance(text, str):
                found = "is missing" if key not in row else f"is {type(text).__name__}, expected a string"
                raise InputError(f"{path}:{number}: field '{key}' {found}; name the text's field with --json-key")
            # An unpaired surrogate can stand in JSON, but SentencePiece takes UTF-8: it has no place in a vocabulary.
            yield text.encode("utf-8", "ignore").decode("utf-8")


def sample(texts: Iterable[str], limit: int) -> tuple[list[str], int]:
    """Sample at most `limit` of the texts that are not blank, drawn evenly with a fixed seed; and the number of all
    texts.

    Source: reservoir sampling, algorithm R (Vitter 1985). SentencePiece's own sampling differs between processes.
    """
    generator, kept, eligible, number = random.Random(0), [], 0, 0
    for number, text in enumerate(texts, start=1):  # noqa: B007
        if not text.strip():
            continue
        eligible += 1
        if len(kept) < limit:
            kept.append(text)
        elif (place := generator.randrange(eligible)) < limit:
            kept[place] = text
    return kept, number


def train_sentencepiece(texts: Iterable[str], vocab_size: int, *, character_coverage: float = 0.9995) -> bytes:
    """Train a SentencePiece model; returns the bytes of its .model file; the same texts give the same bytes.

    character_coverage: share of the text's characters that get a piece of their own; the rest become bytes.

    Raises InputError if vocab_size is too small or too large for the text, or there is no text.
    """
    import sentencepiece

    if vocab_size <= 260:
        raise InputError(f"vocab size {vocab_size} is too small: bytes and special tokens alone are 260 pieces")
    if not 0.98 <= character_coverage <= 1:
        raise InputError(f"character coverage {character_coverage} is out of range; give a share from 0.98 to 1")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text.replace("\0", " ") for text in texts),  # a text with NUL would be dropped
            model_writer=model,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            **TRAINING,
        )
    except RuntimeError as error:
        raise InputError(_explain(str(error), vocab_size)) from None
    return model.getvalue()


def _explain(message: str, vocab_size: int) -> str:
    """Explain SentencePiece's message about the vocabulary in a line that says what is possible."""
    if too_small := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocab size {vocab_size} is too small: this text needs at least {too_small[1]} (one piece per character, "
            "and 260 for bytes and special tokens); raise --vocab-size or lower --character-coverage"
        )
    if too_large := re.search(r"too high \(\d+\).*<= (\d+)", message):
        return f"vocab size {vocab_size} is too large for this text: at most {too_large[1]}; lower it or give more text"
    if "sentences_.empty()" in message:
        return "the input holds no text to train on; give files with at least one text that is not blank"
    return f"SentencePiece could not train: {message}"


def write_tokenizer(model: bytes, folder: Path) -> None:
    """Write tokenizer.model, tokenizer.vocab and the Hugging Face files of the LLaMA layout into an existing folder."""
    import sentencepiece

    source = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [f"{source.id_to_piece(i)}\t{source.get_score(i):g}\n" for i in range(source.get_piece_size())]
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer.vocab").write_text("".join(pieces), encoding="utf-8", newline="\n")
    hugging_face_backend(model).save(str(folder / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    write_json(folder / "special_tokens_map.json", special)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        **special,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 1_000_000_000,
        "padding_side": "right",
    }
    write_json(folder / "tokenizer_config.json", config)


def train_tokenizer(
    inputs: Sequence[str],
    vocab_size: int,
    output: str | Path,
    *,
    json_keys: Sequence[str] = ("text",),
    character_coverage: float = 0.9995,
    max_documents: int = 1_000_000,
) -> dict:
    """Train on files or globs and write the folder `output`, which appears only when it is whole.

    max_documents: a larger input is sampled down to this many texts. A folder that was made from the same inputs with
    the same settings is left as it is. Returns its manifest.

    Raises InputError for missing or bad inputs, for a vocabulary that does not fit the text, or if `output` exists
    and was made from something else.
    """
    from tqdm import tqdm

    if max_documents < 1:
        raise InputError(f"max documents {max_documents} is out of range; give at least 1")
    output, files = Path(output), list(dict.fromkeys(map(Path, expand(inputs))))
    settings = {"vocab_size": vocab_size, "character_coverage": character_coverage, "max_documents": max_documents}
    hashes = {str(file): sha256_file(file) for file in files}
    parents = {"settings": {**settings, "json_keys": list(json_keys)}, "inputs": hashes}
    if (finished := _finished(output, parents)) is not None:
        return finished
    texts = (text for file in files for text in read_documents(file, json_keys))
    kept, rows = sample(tqdm(texts, unit=" texts", leave=False, disable=None), max_documents)
    model = train_sentencepiece(kept, vocab_size, character_coverage=character_coverage)
    with atomic_folder(output) as folder:
        write_tokenizer(model, folder)
        hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        made_by = "tools/train_tokenizer.py"
        content = manifest(made_by=made_by, rows=rows, sha256=hashes, parents=parents, dropped={})
        write_json(folder / MANIFEST, content)
    return content


def _finished(output: Path, parents: dict) -> dict | None:
    """Find the manifest of a finished output with these parents; None if there is nothing yet."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    content = read_json(output / MANIFEST) if (output / MANIFEST).is_file() else {}
    # Through JSON, as the manifest went: tuples and lists are the same thing there.
    if not isinstance(content, dict) or content.get("parents") != json.loads(json.dumps(parents)):
        raise InputError(f"{output}: exists, and not from these inputs and settings; remove it or choose another")
    return content
