"""A SentencePiece model as a tokenizer of the tokenizers library, with its normalizer and symbols, proven on texts.

Whatever cannot be carried over shows in the ids of the probes, and is an error: a folder that gives other ids than the
model that it stands for is never written.
"""

import random
import re
import shutil
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json
from megatron_chimed.text.comparison import PROBES, first_difference
from megatron_chimed.text.tokenizer import load_tokenizer

SPACE = "\u2581"


def probe_texts(model: Any) -> list[str]:
    """The texts on which two forms of a SentencePiece model are compared: PROBES, texts of its pieces, its symbols.

    Not among them are the names of its special tokens and bytes ("<unk>", "<0x41>"), which tokenizers' unigram model
    finds in a text. model: a SentencePieceProcessor.
    """
    draw, pieces = random.Random(0), _proto(model.serialized_model_proto()).pieces
    written = [piece.piece for piece in pieces if piece.type in (piece.NORMAL, piece.USER_DEFINED)]
    texts = [*PROBES, *("".join(draw.choices(written, k=12)).replace(SPACE, " ") for _ in range(200))]
    for symbol in _symbols(pieces):
        texts += [symbol, f"a{symbol}b", f"{symbol} x", f"x {symbol}", symbol * 2, f" {symbol}\n{symbol}"]
    return texts


def _proto(model: bytes) -> Any:
    """Parse a model file."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)


def _symbols(pieces: Any) -> list[str]:
    """The user-defined symbols of a model, which are found in a text before anything else."""
    return [piece.piece for piece in pieces if piece.type == piece.USER_DEFINED]


def hugging_face_backend(model: bytes):
    """Make the `tokenizers.Tokenizer` that gives the ids of a SentencePiece model, byte-pair or unigram.

    In a byte-pair model every pair of pieces whose union is a piece becomes a merge, in the order of the unions'
    scores: that is SentencePiece's own rule (join the neighbours whose union scores best). Raises InputError for
    another kind of model.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    proto = _proto(model)
    trainer, pieces = proto.trainer_spec, proto.pieces
    fallback = trainer.byte_fallback
    unknown = next((number for number, piece in enumerate(pieces) if piece.type == piece.UNKNOWN), None)
    if trainer.model_type == trainer.UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in pieces]
        backend = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=fallback))
    elif trainer.model_type == trainer.BPE:
        ids = {piece.piece: number for number, piece in enumerate(pieces)}
        unk = None if unknown is None else pieces[unknown].piece
        whole = {"ignore_merges": True} if _symbols(pieces) else {}  # a symbol is a word of its own, found as a whole
        backend = Tokenizer(
            models.BPE(vocab=ids, merges=_merges(pieces), unk_token=unk, fuse_unk=True, byte_fallback=fallback, **whole)
        )
    else:
        raise InputError("a SentencePiece model of words or characters; expected byte-pair or unigram")
    if normalizer := _normalizer(proto.normalizer_spec):
        backend.normalizer = normalizer
    before = [pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)]
    if symbols := sorted((symbol.replace(" ", SPACE) for symbol in _symbols(pieces)), key=len, reverse=True):
        before.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), "isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(before) if len(before) > 1 else before[0]
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    prefix = proto.normalizer_spec.add_dummy_prefix
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    special = [piece.piece for piece in pieces if piece.type in (piece.UNKNOWN, piece.CONTROL)]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return backend


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """The merges of a byte-pair model, the best first."""
    scores = {piece.piece: (-piece.score, number) for number, piece in enumerate(pieces) if piece.type == piece.NORMAL}
    merges = []
    for piece in sorted(scores, key=scores.__getitem__):
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
        merges.extend(sorted(known, key=lambda pair: (scores[pair[0]][1], scores[pair[1]][1])))
    return merges


def _normalizer(spec: Any) -> Any:
    """The normalizer of a model: its table of characters, and what it adds to and takes from white space; or None."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(steps) if steps else None


def write_folder(model: Path, folder: Path) -> None:
    """Write a SentencePiece model's file and its Hugging Face files into an existing folder, and prove these.

    Raises InputError naming the first text whose ids would be others.
    """
    import sentencepiece

    tokenizer = load_tokenizer(model)
    hugging_face_backend(model.read_bytes()).save(str(folder / "tokenizer.json"))
    shutil.copyfile(model, folder / "tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    if processor.unk_id() >= 0:
        ids["unk_token"] = processor.unk_id()
    special = {name: tokenizer.id_to_token(number) for name, number in ids.items() if number is not None}
    write_json(folder / "special_tokens_map.json", special)
    # A class of its own, such as LlamaTokenizer, would make another tokenizer of the model than tokenizer.json says.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", config | {"model_max_length": 1_000_000_000, "padding_side": "right"})
    if difference := first_difference(tokenizer, load_tokenizer(folder), probe_texts(processor)):
        raise InputError(f"{model}: as a Hugging Face folder it would give other ids: {difference}; give a folder")
