"""A small random model with a tokenizer, whose answers are text: pieces of bytes are never the likeliest."""

from pathlib import Path

from safetensors.torch import save_file

from megatron_chimed.text.tokenizer_training import train_sentencepiece, write_tokenizer
from support.checkpoints import weights, write_hf
from support.corpora import make_texts

VOCAB, FIRST_PIECE = 420, 260  # below it: special tokens and bytes


def write_answering_hf(folder: Path, positions: int, rows: int = VOCAB, **changes) -> Path:
    """A Hugging Face folder of a model that says pieces of text.

    rows: of the embedding; those behind the tokenizer's ids are by far the likeliest. changes: of the config.
    """
    folder.mkdir(exist_ok=True)
    write_tokenizer(train_sentencepiece(make_texts(300), VOCAB), folder)
    write_hf(folder, vocab_size=rows, max_position_embeddings=positions, bos_token_id=1, eos_token_id=2, **changes)
    tensors = weights(folder)
    tensors["lm_head.weight"][:FIRST_PIECE] *= 0.1
    tensors["lm_head.weight"][VOCAB:] *= 100
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
