"""Score answers by a reward model, the Megatron checkpoint or its Hugging Face export.

What is scored is the dialogue as the reward model was trained on it: the template's exchanges end to end, history,
question and answer, with EOS at the end, where the score is read (`renderer.Renderer.encode_exchanges`). The answer is
encoded from its text, as in training, and without what was thought before it. An answer that the limit on tokens cut
off gets the EOS as well, so that its reward can be told; selection drops it unless told otherwise. One that does not
fit into the reward model's context is not scored, and counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from megatron_chimed.errors import InputError
from megatron_chimed.inference.engine import Engine
from megatron_chimed.inference.open import open_engine
from megatron_chimed.records import Candidate, Prompt
from megatron_chimed.rejection.prompts import answered
from megatron_chimed.rejection.scorers.options import ScorerOptions
from megatron_chimed.rejection.store import CandidateStore
from megatron_chimed.text.exchange import join
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.workers import Bar


def open_scorer(options: ScorerOptions, path: str | Path) -> Engine:
    """The engine that scores. Raises InputError."""
    return open_engine(
        f"{options.engine}:{path}",
        flag="scorer",
        head="reward",
        tensor_parallel=options.tensor_parallel,
        dtype=options.dtype,
        batch_size=options.batch_size,
    )


def sequences_of(candidates: Sequence[Candidate], prompts: Mapping[str, Prompt], renderer: Renderer) -> list[list[int]]:
    """What is scored of each candidate."""
    dialogues = [answered(prompts[one.prompt], one.response) for one in candidates]
    return [join(exchanges, len(exchanges) - 1).tokens.tolist() for exchanges in renderer.encode_exchanges(dialogues)]


def score_into(
    store: CandidateStore,
    candidates: Sequence[Candidate],
    prompts: Mapping[str, Prompt],
    scorer: Engine,
    renderer: Renderer,
    batch_size: int,
) -> int:
    """Score all that the store lacks, batch by batch, sequences of like length together. Returns how many were too
    long, and so have no reward."""
    sequences = sequences_of(candidates, prompts, renderer)
    longest: dict[str, int] = {}
    for one, sequence in zip(candidates, sequences, strict=True):
        longest[one.prompt] = max(longest.get(one.prompt, 0), len(sequence))
    # Answers to one prompt together, which an engine then reads once, and prompts of like length.
    order = sorted(range(len(candidates)), key=lambda place: (longest[candidates[place].prompt], candidates[place].key))
    fitting = [place for place in order if len(sequences[place]) <= scorer.max_positions]
    with Bar(total=len(candidates), initial=len(store.candidates), desc="score", unit="answer") as bar:
        for start in range(0, len(fitting), batch_size):
            batch = fitting[start : start + batch_size]
            left = [place for place in batch if candidates[place].key not in store.candidates]
            if left:
                rewards = scorer.rewards([sequences[place] for place in left])
                if not all(map(math.isfinite, rewards)):
                    raise InputError("the reward model gives rewards that are no numbers; its training has failed")
                store.append([replace(candidates[p], reward=r) for p, r in zip(left, rewards, strict=True)])
                bar.update(len(left))
        too_long = [candidates[place] for place in order if len(sequences[place]) > scorer.max_positions]
        if left := [one for one in too_long if one.key not in store.candidates]:
            store.append(left)
            bar.update(len(left))
    return len(too_long)
