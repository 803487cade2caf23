"""Packed rows in which sequences share their beginning: a prompt that is read once, and answers that branch from it.

A row holds segments end to end. The first segment of a document is a whole sequence; a later one, a branch, goes on
from the document's first p tokens, which it sees as if they stood before it: its positions start at p, and it sees
nothing else. So the positions of a row say all of this: 0 starts a document, and any other number that is not one more
than the number before it starts a branch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass
class BranchedSeqParams(PackedSeqParams):
    """Megatron's description of a packed row, as one document, and what our layers go by instead."""

    positions: torch.Tensor | None = None
    """Of each token in its sequence, int64 [t], on the model's device."""

    bounds: np.ndarray | None = None
    """Where segments start, and the row's end, int64 [k + 1]."""

    prefixes: np.ndarray | None = None
    """Where the tokens [start, end) that a segment sees before its own lie, int64 [k, 2]; empty for a document."""

    def sees(self):
        """The mask of the row as torch's `mask_mod`: a token sees its prefix, itself and the earlier of its segment."""
        device, lengths = self.positions.device, np.diff(self.bounds)
        segment, starts, ends = (
            torch.from_numpy(np.repeat(values, lengths)).to(device, non_blocking=True)
            for values in (np.arange(len(lengths)), self.prefixes[:, 0], self.prefixes[:, 1])
        )

        def sees(batch, head, query, key):
            own = (query >= key) & (segment[query] == segment[key])
            return own | ((key >= starts[query]) & (key < ends[query]))

        return sees


def describe_row(position_ids: torch.Tensor, device: str | torch.device = "cuda") -> PackedSeqParams:
    """Positions [B, S] on the CPU -> the description of the packed row [1, B * S] on the model's device.

    Raises ValueError when a branch goes on from more than the first segment of its document has.

    >>> row = describe_row(torch.tensor([[0, 1, 2, 3, 2, 3, 0, 1]]), "cpu")  # one prompt of 2, two answers; a document
    >>> row.bounds.tolist(), row.prefixes.tolist()
    ([0, 4, 6, 8], [[0, 0], [0, 2], [6, 6]])
    """
    positions = position_ids.reshape(-1).numpy()
    documents = np.flatnonzero(positions == 0)
    if not len(documents) or documents[0] != 0:
        raise ValueError("position_ids must start with 0: attention needs a first document")
    starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1)  # of documents too: nothing is -1
    if len(starts) == len(documents):
        return _of_documents(documents, len(positions), device)
    bounds = np.append(starts, len(positions))
    first = documents[np.searchsorted(documents, starts, side="right") - 1]
    prefixes = np.stack([first, first + positions[starts]], axis=1)
    if (prefixes[:, 1] > bounds[np.searchsorted(bounds, first, side="right")]).any():
        raise ValueError("position_ids: a branch goes on from more tokens than the first sequence has")
    whole = torch.tensor([0, len(positions)], dtype=torch.int32).to(device, non_blocking=True)
    longest = int(positions.max()) + 1
    return BranchedSeqParams(
        "thd", whole, whole, max_seqlen_q=longest, max_seqlen_kv=longest,
        positions=position_ids.reshape(-1).to(device, non_blocking=True), bounds=bounds, prefixes=prefixes,
    )  # fmt: skip


def _of_documents(starts: np.ndarray, tokens: int, device: str | torch.device) -> PackedSeqParams:
    """The description of documents that start at `starts`, [k]."""
    bounds = torch.from_numpy(np.append(starts, tokens).astype(np.int32))
    longest = int(bounds.diff().max())
    bounds = bounds.to(device, non_blocking=True)
    return PackedSeqParams("thd", bounds, bounds, max_seqlen_q=longest, max_seqlen_kv=longest)
