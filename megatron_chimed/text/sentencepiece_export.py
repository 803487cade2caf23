"""A SentencePiece model as a tokenizer of the tokenizers library, with its normalizer and symbols, proven on texts.

Whatever cannot be carried over shows in the ids of the probes, and is an error: a folder that gives other ids than the
model that it stands for is never written.
"""

import random
import shutil
from pathlib import Path
from typing import Any

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json
from megatron_chimed.text.comparison import first_difference
from megatron_chimed.text.probes import PROBES
from megatron_chimed.text.sentencepiece_json import SPACE, hugging_face_backend, parse_model, symbols_of
from megatron_chimed.text.tokenizer import load_tokenizer


def probe_texts(model: Any) -> list[str]:
    """The texts on which two forms of a SentencePiece model are compared: PROBES, texts of its pieces, its symbols.

    Not among them are the names of its special tokens and bytes ("<unk>", "<0x41>"), which tokenizers' unigram model
    finds in a text. model: a SentencePieceProcessor.
    """
    draw, pieces = random.Random(0), parse_model(model.serialized_model_proto()).pieces
    written = [piece.piece for piece in pieces if piece.type in (piece.NORMAL, piece.USER_DEFINED)]
    texts = [*PROBES, *("".join(draw.choices(written, k=12)).replace(SPACE, " ") for _ in range(200))]
    for symbol in symbols_of(pieces):
        texts += [symbol, f"a{symbol}b", f"{symbol} x", f"x {symbol}", symbol * 2, f" {symbol}\n{symbol}"]
    return texts


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
