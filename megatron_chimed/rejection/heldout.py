"""Figures of a model's fresh answers to held-out prompts, and its likelihood of reference answers.

Every model of the loop answers the same prompts with the same seeds, so that two of them are compared prompt by prompt.
HELDOUT.NAME.jsonl holds the answers with their rewards, rows of `Candidate` whose ``prompt`` is the id of the held-out
prompt, for any other grader.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from megatron_chimed.errors import InputError
from megatron_chimed.inference.engine import Engine
from megatron_chimed.jsonl import read_records
from megatron_chimed.records import Candidate, Dialogue, Prompt
from megatron_chimed.rejection.config import LoopConfig
from megatron_chimed.rejection.keys import keyed_draw
from megatron_chimed.rejection.prompts import read_prompts
from megatron_chimed.text.exchange import join
from megatron_chimed.text.renderer import Renderer


class Mean(NamedTuple):
    """A mean over prompts and its standard error, which is 0 for a single prompt."""

    mean: float
    error: float
    prompts: int


def mean_over_prompts(values: Mapping[str, Sequence[float]]) -> Mean:
    """Of values by prompt: the mean of the prompts' means. Answers to one prompt are alike, so that prompts are what
    is independent, and the standard error is that of their means. Raises InputError without a value."""
    means = [statistics.fmean(each) for each in values.values() if each]
    if not means:
        raise InputError("no rewards to average")
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return Mean(statistics.fmean(means), error, len(means))


def by_prompt(candidates: Sequence[Candidate]) -> dict[str, list[float]]:
    """The rewards of each prompt's answers; answers without one are passed over."""
    values = defaultdict(list)
    for one in candidates:
        if one.reward is not None:
            values[one.prompt].append(one.reward)
    return dict(values)


def difference(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> Mean:
    """How much more `one` gets than `other`: the mean over the prompts that both have, pair by pair."""
    shared = one.keys() & other.keys()
    pairs = {name: [statistics.fmean(one[name]) - statistics.fmean(other[name])] for name in sorted(shared)}
    return mean_over_prompts(pairs)


def read_heldout(config: LoopConfig, renderer: Renderer, max_positions: int) -> tuple[list[Prompt], int]:
    """(Held-out prompts, as many as are asked for, drawn by seed, less those that leave no room; how many these are).

    Raises InputError as `read_prompts`, and when none is left.
    """
    fitting, too_long = [], 0
    room = max_positions - config.sampling.max_tokens
    seed, count = config.paths.seed, config.heldout_sampling.count
    for prompt in sorted(read_prompts(config.paths.heldout), key=lambda one: keyed_draw(seed, "heldout", one.id))[
        :count
    ]:
        if len(renderer.render_prompt(prompt.turns)) <= room:
            fitting.append(prompt)
        else:
            too_long += 1
    if not fitting:
        raise InputError(f"{config.paths.heldout[0]}: no held-out prompt that leaves room for an answer")
    return fitting, too_long


def reference_nll(config: LoopConfig, engine: Engine, renderer: Renderer, max_positions: int) -> dict:
    """{"nll": mean negative log-likelihood in nats per token, "tokens": their number} of the last answers, with EOS, of
    fixed dialogues; nll is None where nothing fits or the engine does not tell."""
    pairs = []
    dialogues = [row for path in config.paths.reference_nll for _, row in read_records(path, Dialogue)]
    dialogues.sort(key=lambda one: keyed_draw(config.paths.seed, "drift", one.id))
    for dialogue in dialogues[: config.heldout_sampling.reference_nll_count]:
        exchanges = renderer.encode_exchanges([dialogue.turns])[0]
        answer = exchanges[-1].response.tolist()
        context = join(exchanges, len(exchanges) - 1).tokens.tolist()[: -len(answer)]
        if context and len(context) + len(answer) <= max_positions:
            pairs.append((context, answer))
    can_tell = engine.kind != "openai"
    scores = [score for score, _ in engine.loglikelihoods(pairs)] if pairs and can_tell else None
    tokens = sum(len(answer) for _, answer in pairs)
    return {"nll": -sum(scores) / tokens if scores else None, "tokens": tokens if scores else 0}
