"""Tokenizers: one interface over a SentencePiece model and a Hugging Face tokenizer folder.

The two give the ids that Megatron's own tokenizers of the same kind give (`--tokenizer-type SentencePieceTokenizer`
and `HuggingFaceTokenizer`), with one difference in the defaults. Megatron lets a Hugging Face tokenizer turn the
characters "</s>" inside a document into the end-of-text id, and lets it put its own BOS in front of each text. Here
text is only text unless the caller says otherwise: a string that looks like a special token stays plain characters,
and nothing is added. `parse_special=True, add_special=True` gives Megatron's ids.

Tokenizer libraries are imported inside the functions, so that this module costs nothing to import.
"""

import copy
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import require_content, sha256_file
from megatron_chimed.text.bulk import BulkEncoder, flatten
from megatron_chimed.text.sentencepiece_json import byte_pair_json, drop_dummy_prefix
from megatron_chimed.text.tokenizer_folder import (
    HF_FILES,
    HF_OPTIONAL_FILES,
    complete_special_tokens,
    folder_fingerprint,
    has_tokenizer,
    load_by_transformers,
)

BRACKETED = re.compile(r"<\S+>|\[\S+\]")


class Tokenizer(ABC):
    """Tokenizer: text to token ids and back.

    vocab_size: every id is below it (not padded for tensor parallelism). bos_id, eos_id, pad_id: None where the
    tokenizer has none. fingerprint: hexadecimal SHA-256 over the files that define the tokenizer. Instances can be
    pickled, and so be sent to worker processes.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    fingerprint: str
    _bulk: BulkEncoder | None = None
    _knows_special = True  # whether parse_special and add_special change anything

    @staticmethod
    def load(path: str | Path) -> "Tokenizer":
        """Load the tokenizer at a path, a SentencePiece .model or a Hugging Face folder; see `load_tokenizer`.

        >>> import megatron_chimed as mc
        >>> tokenizer = mc.Tokenizer.load("tokenizer.model")
        >>> tokenizer.decode(tokenizer.encode("头痛三次。"))
        '头痛三次。'
        """
        return load_tokenizer(path)

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        """Encode one text; see `encode_batch`."""
        return list(map(int, self.encode_batch([text], parse_special=parse_special, add_special=add_special)[0]))

    def encode_batch(
        self, texts: list[str], *, parse_special: bool = False, add_special: bool = False
    ) -> list[Sequence[int]]:
        """Encode each text, as lists or as int32 arrays, whichever the library makes faster.

        parse_special: turn the strings of special tokens inside a text into their ids (never for untrusted text).
        add_special: add what the tokenizer's own template adds, as a rule BOS in front.
        Both are for Hugging Face folders; a SentencePiece model parses and adds nothing, in Megatron as well.

        Raises ValueError for add_special without parse_special: what was added could not be told from the text. Raises
        InputError if a text holds an unpaired surrogate (JSON's "\\ud800"), which UTF-8 cannot express.
        """
        if add_special and not parse_special:
            raise ValueError("add_special needs parse_special; or put bos_id in front of the ids yourself")
        try:
            return self._encode_batch(texts, parse_special, add_special)
        except (RuntimeError, TypeError, UnicodeEncodeError):
            for number, text in enumerate(texts):
                _require_utf8(text, number)
            raise

    def encode_flat(
        self, texts: list[str], *, parse_special: bool = False, add_special: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode many texts: the ids of `encode_batch` end to end, int32 [tokens], and their numbers, int32 [texts].

        It is much faster where a faster library is known to give the same ids (`BulkEncoder`). Raises what
        `encode_batch` does, and TokenizersDiffer where it does not: see `bulk.guarded`.
        """
        if self._bulk is None:
            self._bulk = BulkEncoder(self)
        mode = (parse_special, add_special) if self._knows_special else (False, False)
        try:
            return self._bulk.encode(texts, *mode)
        except UnicodeEncodeError:
            return flatten(self.encode_batch(texts, parse_special=parse_special, add_special=add_special))  # says where

    def to_json(self) -> str | None:
        """The content of a tokenizer.json with these ids; None where the kind is not byte-pair."""
        return None

    @abstractmethod
    def _encode_batch(self, texts: list[str], parse_special: bool, add_special: bool) -> list[Sequence[int]]:
        """`encode_batch` for texts that UTF-8 can express."""

    @abstractmethod
    def id_to_token(self, number: int) -> str:
        """Return the string of one id, such as "</s>"; "" for one that is none, as a larger embedding has."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Return the id of one token's string, such as "</s>"; None where there is no such token."""

    def between(self, markers: Iterable[str]) -> "Tokenizer":
        """Return a tokenizer, of the same ids, for the texts between the markers of a template, given as strings.

        It finds no marker in a text: a Hugging Face folder may have some, such as Qwen3's "<think>", that are tokens
        but not special ones, and are found in any text. So are words that were added to a vocabulary, which stay; what
        stands in angle or square brackets is taken for a marker, also if the template has it not. And no text is taken
        for the start of a whole one, so that a dummy prefix stands only where there is one behind a special token.
        """
        return self

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids; BOS, EOS, padding and ids that are none leave no trace in it."""


def _require_utf8(text: str, number: int) -> None:
    """Raise InputError if the text cannot be written as UTF-8; `number` is its place in the batch, from 0."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InputError(
            f"text {number} of the batch holds the unpaired surrogate U+{code:04X} at character {error.start}, "
            "which is no character; remove it"
        ) from None


class SentencePieceTokenizer(Tokenizer):
    """Tokenizer of a SentencePiece .model file.

    Control symbols such as </s> are never found in text: SentencePiece sees to that.
    """

    _knows_special = False

    def __init__(self, path: str | Path):
        """Raises InputError if there is no such file or it is not a SentencePiece model."""
        import sentencepiece

        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; expected a SentencePiece model")
        require_content(path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise InputError(f"{path}: not a SentencePiece model; give the .model file of its trainer") from None
        self.vocab_size = self._processor.get_piece_size()
        ids = (self._processor.bos_id(), self._processor.eos_id(), self._processor.pad_id())
        self.bos_id, self.eos_id, self.pad_id = (number if number >= 0 else None for number in ids)
        self.fingerprint = sha256_file(path)

    def _encode_batch(self, texts: list[str], parse_special: bool, add_special: bool) -> list[Sequence[int]]:
        # Arrays cost a quarter less time than Python lists once the ids are converted to the corpus's type.
        return self._processor.encode(texts, return_type="numpy", num_threads=1)

    def to_json(self) -> str | None:
        """The content of a tokenizer.json with these ids."""
        return byte_pair_json(self._processor.serialized_model_proto())

    def id_to_token(self, number: int) -> str:
        """Return the string of one id."""
        return self._processor.id_to_piece(int(number)) if 0 <= number < self.vocab_size else ""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of one token's string."""
        number = self._processor.piece_to_id(token)
        return number if self._processor.id_to_piece(number) == token else None

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids."""
        return self._processor.decode([int(number) for number in ids if 0 <= number < self.vocab_size])


class HuggingFaceTokenizer(Tokenizer):
    """Tokenizer of a Hugging Face folder on this disk, read by transformers.AutoTokenizer; never from a hub."""

    def __init__(self, folder: str | Path):
        """Raises InputError if transformers cannot read the folder, or reads it into a slow (Python) tokenizer."""
        for name in (*HF_FILES, *HF_OPTIONAL_FILES):
            require_content(Path(folder) / name)
        loaded = load_by_transformers(folder)
        if not getattr(loaded, "is_fast", False):
            raise InputError(f"{folder}: only a slow tokenizer; save it with a tokenizer.json (a fast tokenizer)")
        complete_special_tokens(loaded, folder)
        # Only the Rust object is kept: it can be pickled, and is twice as fast as going through transformers.
        self._backend = loaded.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id, self.eos_id, self.pad_id = loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id
        self.fingerprint = folder_fingerprint(folder)
        specials = zip(loaded.all_special_tokens, loaded.all_special_ids, strict=True)
        # <unk> is also what a character outside the vocabulary becomes, and it ends or pads nothing: it may stay.
        self._spelled_out = self._spell_out((token, number) for token, number in specials if token != loaded.unk_token)

    def _spell_out(self, specials: Iterable[tuple[str, int]]) -> dict[int, list[int]]:
        """Map ids of each special token that its string becomes even as plain text, to the ids of its characters.

        It is empty for byte-pair tokenizers. A unigram model keeps "</s>" among its pieces and finds it in any text.
        """
        spelled = {}
        for string, number in specials:
            if number in self._rust_encode([string], parse_special=False, add_special=False)[0]:
                parts = [self._backend.model.tokenize(character) for character in string]
                spelled[number] = [token.id for part in parts for token in part]
        return spelled

    def _rust_encode(self, texts: list[str], parse_special: bool, add_special: bool) -> list[list[int]]:
        self._backend.encode_special_tokens = not parse_special
        return [one.ids for one in self._backend.encode_batch_fast(texts, add_special_tokens=add_special)]

    def _encode_batch(self, texts: list[str], parse_special: bool, add_special: bool) -> list[Sequence[int]]:
        rows = self._rust_encode(texts, parse_special, add_special)
        if parse_special or not self._spelled_out:
            return rows
        return [[part for number in row for part in self._spelled_out.get(number, (number,))] for row in rows]

    def to_json(self) -> str | None:
        """The content of a tokenizer.json with these ids."""
        is_byte_pair = type(self._backend.model).__name__ == "BPE" and not self._spelled_out
        return self._backend.to_str() if is_byte_pair else None

    def id_to_token(self, number: int) -> str:
        """Return the string of one id."""
        return self._backend.id_to_token(int(number)) or ""

    def token_to_id(self, token: str) -> int | None:
        """Return the id of one token's string."""
        return self._backend.token_to_id(token)

    def between(self, markers: Iterable[str]) -> Tokenizer:
        """Return the tokenizer of texts between markers: a copy with these as special tokens, if it must differ."""
        added, markers = self._backend.get_added_tokens_decoder().values(), set(markers)
        found = [
            token
            for token in added
            if not token.special and (token.content in markers or BRACKETED.fullmatch(token.content))
        ]
        before = self._backend.pre_tokenizer
        settings = json.loads(before.__getstate__()) if before is not None else {}
        if not drop_dummy_prefix(settings) and not found:
            return self
        other = copy.copy(self)
        other._bulk = None
        other._backend = copy.deepcopy(self._backend)
        for token in found:
            token.special = True
        other._backend.add_special_tokens(found)
        if settings:
            content = json.loads(other._backend.to_str()) | {"pre_tokenizer": settings}
            other._backend = type(self._backend).from_str(json.dumps(content))
        return other

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids; an id that is not below vocab_size leaves no trace."""
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=True)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer at a path: a .model file (SentencePiece) or a Hugging Face folder.

    Raises InputError if it is neither.
    """
    path = Path(path)
    if path.is_dir():
        if has_tokenizer(path):
            return HuggingFaceTokenizer(path)
        raise InputError(f"{path}: no tokenizer here; expected one of {', '.join(HF_FILES[:3])}")
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    state = "not a tokenizer" if path.exists() else "no such file or folder"
    raise InputError(f"{path}: {state}; give a SentencePiece .model file or a Hugging Face tokenizer folder")
