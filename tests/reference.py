"""Slow, obvious twins of fast algorithms, for tests."""

import struct


def indexed_dataset(documents: list[list[list[int]]], vocab_size: int) -> tuple[bytes, bytes]:
    """The .bin and .idx of documents [documents][sequences][ids], written one number after the other."""
    code, letter, width = (8, "H", 2) if vocab_size < 65500 else (4, "i", 4)
    binary, lengths, starts, boundaries, position = b"", b"", b"", struct.pack("<q", 0), 0
    sequences = 0
    for document in documents:
        for sequence in document:
            for number in sequence:
                binary += struct.pack("<" + letter, number)
            lengths += struct.pack("<i", len(sequence))
            starts += struct.pack("<q", position)
            position += width * len(sequence)
            sequences += 1
        boundaries += struct.pack("<q", sequences)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, sequences, len(documents) + 1)
    return binary, header + lengths + starts + boundaries
