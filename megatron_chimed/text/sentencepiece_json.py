"""A SentencePiece model as an object of the tokenizers library: its merges or scores, its normalizer, its symbols."""

import re
from typing import Any

from megatron_chimed.errors import InputError

SPACE = "\u2581"


def parse_model(model: bytes) -> Any:
    """Parse a model file."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)


def symbols_of(pieces: Any) -> list[str]:
    """The user-defined symbols of a model, which are found in a text before anything else."""
    return [piece.piece for piece in pieces if piece.type == piece.USER_DEFINED]


def hugging_face_backend(model: bytes):
    """Make the `tokenizers.Tokenizer` that gives the ids of a SentencePiece model, byte-pair or unigram.

    In a byte-pair model every pair of pieces whose union is a piece becomes a merge, in the order of the unions'
    scores: that is SentencePiece's own rule (join the neighbours whose union scores best). Raises InputError for
    another kind of model.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    proto = parse_model(model)
    trainer, pieces = proto.trainer_spec, proto.pieces
    fallback = trainer.byte_fallback
    unknown = next((number for number, piece in enumerate(pieces) if piece.type == piece.UNKNOWN), None)
    if trainer.model_type == trainer.UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in pieces]
        backend = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=fallback))
    elif trainer.model_type == trainer.BPE:
        ids = {piece.piece: number for number, piece in enumerate(pieces)}
        unk = None if unknown is None else pieces[unknown].piece
        whole = {"ignore_merges": True} if symbols_of(pieces) else {}  # a symbol is a word of its own, found as a whole
        backend = Tokenizer(
            models.BPE(vocab=ids, merges=_merges(pieces), unk_token=unk, fuse_unk=True, byte_fallback=fallback, **whole)
        )
    else:
        raise InputError("a SentencePiece model of words or characters; expected byte-pair or unigram")
    if normalizer := _normalizer(proto.normalizer_spec):
        backend.normalizer = normalizer
    before = [pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)]
    if symbols := sorted((symbol.replace(" ", SPACE) for symbol in symbols_of(pieces)), key=len, reverse=True):
        before.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), "isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(before) if len(before) > 1 else before[0]
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    prefix = proto.normalizer_spec.add_dummy_prefix
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    special = [piece.piece for piece in pieces if piece.type in (piece.UNKNOWN, piece.CONTROL)]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return backend


def byte_pair_json(model: bytes) -> str | None:
    """The content of a tokenizer.json with the ids of a SentencePiece model, of one that is byte-pair; else None."""
    trainer = parse_model(model).trainer_spec
    return hugging_face_backend(model).to_str() if trainer.model_type == trainer.BPE else None


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


def drop_dummy_prefix(settings: dict) -> bool:
    """Let a pre-tokenizer's settings put no dummy prefix in front of a whole text; whether they did so before."""
    parts = [settings, *settings.get("pretokenizers", ())]
    found = [part for part in parts if part.get("prepend_scheme") == "first"]
    for part in found:
        part["prepend_scheme"] = "never"
    return bool(found)
