"""Random groups of ranked answers for the tests of the reward model."""

import json
import random
from pathlib import Path

from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.records import ABSENT, RankedGroup, Turn
from support.corpora import WORDS


def make_groups(count: int, seed: int = 0, most_words: int = 6, places: int = 4) -> list[RankedGroup]:
    """Groups of `places` answers; some are absent, some tied, and some prompts have a history. Better answers say more
    of one word, so that there is something to learn; the first group is tied throughout and makes no pair."""
    draw = random.Random(seed)

    def text(most: int) -> str:
        return "".join(draw.choices(WORDS, k=draw.randint(1, most)))

    groups = []
    for number in range(count):
        ranks = list(range(places)) if number else [1] * places
        if draw.random() < 0.3:
            ranks[draw.randrange(1, places)] = ABSENT
        if draw.random() < 0.3:
            ranks[1] = ranks[0]
        responses = [None if rank == ABSENT else WORDS[0] * (places - rank) + text(most_words) for rank in ranks]
        turns = [Turn(("user", "assistant")[i % 2], text(4)) for i in range(draw.choice((1, 1, 3)))]
        groups.append(
            RankedGroup(f"made:{number}", draw.choice(("cmd", "own")), tuple(turns), tuple(responses), tuple(ranks))
        )
    return groups


def write_groups(path: Path, groups: list[RankedGroup]) -> Path:
    """Write groups as JSON lines."""
    path.write_text(
        "".join(json.dumps(group.to_row(), ensure_ascii=False) + "\n" for group in groups), encoding="utf-8"
    )
    return path


def whole_answers(packed: PackedRows) -> dict[int, list[tuple[list[int], int]]]:
    """{group: [(tokens of prompt and answer, rank)]}, in the order of a group's segments: of rows whose answers share
    a prompt, the first segment's prompt in front of the others, which repeat its last token."""
    found: dict[int, list[tuple[list[int], int]]] = {}
    prompts: dict[int, list[int]] = {}
    for segment, group in enumerate(packed.arrays["segment_group"].tolist()):
        tokens = packed.tokens[packed.segment_offsets[segment] : packed.segment_offsets[segment + 1]].tolist()
        if packed.manifest["shared_prompt"]:
            size = int(packed.arrays["segment_answer"][segment])
            prompt = prompts.setdefault(group, tokens[:-size])
            assert tokens[:-size] in (prompt, prompt[-1:])
            tokens = prompt + tokens[-size:]
        found.setdefault(group, []).append((tokens, int(packed.arrays["segment_rank"][segment])))
    return found
