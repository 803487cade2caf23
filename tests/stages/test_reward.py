"""What the routers of a reward model are told of a micro batch."""

import torch

from megatron_chimed.stages.reward import micro_batch


def test_pairs_are_counted_and_what_is_behind_the_answers_is_padding():
    """Two rows of 8: three ranked answers and padding; two answers of which one ties, without padding."""
    none = -1
    batch = {
        "position_ids": torch.tensor([[0, 1, 0, 1, 0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]]),
        "rank": torch.tensor([[none, 0, none, 1, 2, none, none, none, none, none, 1, none, none, none, none, 1]]),
        "group": torch.tensor([[none, 0, none, 0, 0, none, none, none, none, none, 8, none, none, none, none, 8]]),
    }
    told = micro_batch(batch, "adjacent")
    assert told.counted == 2 and micro_batch(batch, "all").counted == 3
    assert told.padding.tolist() == [[False] * 5 + [True] * 3 + [False] * 8]


def test_a_blank_row_is_padding():
    blank = torch.full((1, 4), -1)
    told = micro_batch({"position_ids": torch.tensor([[0, 1, 2, 0]]), "rank": blank, "group": blank}, "adjacent")
    assert told.counted == 0 and told.padding.all()
