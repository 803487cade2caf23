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


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Rows of lengths: each sample, the longest first, goes into the fullest row that holds it, else into a new one."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


def fewest_rows(lengths: list[int], capacity: int) -> int:
    """The least number of rows that hold all samples, by trying every way. For some ten samples."""
    best = len(lengths)

    def place(number: int, spaces: list[int]) -> None:
        nonlocal best
        if len(spaces) >= best:
            return
        if number == len(lengths):
            best = len(spaces)
            return
        for row in range(len(spaces)):
            if spaces[row] >= lengths[number]:
                place(number + 1, [space - lengths[number] * (r == row) for r, space in enumerate(spaces)])
        place(number + 1, [*spaces, capacity - lengths[number]])

    place(0, [])
    return best


def chi_square_z(counts: list[int], expected: list[float]) -> float:
    """How far counts are from what is expected, as a standard normal deviate: chi-square by Wilson and Hilferty.

    Cells with less than 5 expected are joined.
    """
    cells = [(c, e) for c, e in zip(counts, expected, strict=True) if e >= 5]
    rest = (sum(counts) - sum(c for c, _ in cells), sum(expected) - sum(e for _, e in cells))
    cells += [rest] if rest[1] >= 1 else []
    free = len(cells) - 1
    chi_square = sum((c - e) ** 2 / e for c, e in cells)
    return ((chi_square / free) ** (1 / 3) - (1 - 2 / (9 * free))) / (2 / (9 * free)) ** 0.5
