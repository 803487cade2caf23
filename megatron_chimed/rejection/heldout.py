"""How good a model's fresh answers to held-out prompts are by the reward, and how far it has moved from where it was.

Every model of the loop answers the same prompts with the same seeds, so that two of them are compared prompt by prompt.
HELDOUT.NAME.jsonl holds the answers with their rewards, rows of `Candidate` whose ``prompt`` is the id of the held-out
prompt, for any further yardstick.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json_lines, sha256_json, write_json
from megatron_chimed.records import Candidate, Dialogue, Prompt
from megatron_chimed.rejection.config import LoopConfig
from megatron_chimed.rejection.engines import open_generator
from megatron_chimed.rejection.generator import Generator, ask, generate_into
from megatron_chimed.rejection.keys import draw
from megatron_chimed.rejection.prompts import TOO_LONG, read_prompts
from megatron_chimed.rejection.scorers import open_scorer, score_into
from megatron_chimed.rejection.steps import Made
from megatron_chimed.rejection.store import CandidateStore
from megatron_chimed.text.template import Renderer, join


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
    for prompt in sorted(read_prompts(config.paths.heldout), key=lambda one: draw(seed, "heldout", one.id))[:count]:
        if len(renderer.render_prompt(prompt.turns)) <= room:
            fitting.append(prompt)
        else:
            too_long += 1
    if not fitting:
        raise InputError(f"{config.paths.heldout[0]}: no held-out prompt that leaves room for an answer")
    return fitting, too_long


def measure(
    config: LoopConfig,
    checkpoint: Path,
    folder: Path,
    name: str,
    renderer: Renderer,
    *,
    round: int,
    made_from: str,
    max_positions: int,
) -> Made:
    """Sample and score the held-out prompts with one model, and the likelihood of fixed answers.

    Writes heldout.NAME.jsonl and drift.NAME.json in `folder`.
    """
    prompts, too_long = read_heldout(config, renderer, max_positions)
    options = config.generator
    if options.engine == "openai":  # a server has one model, and several are to be measured
        options = replace(options, engine="megatron")
    made_from = sha256_json([made_from, name])
    asked = ask(prompts, renderer, round=round, n=config.heldout_sampling.n, seed=(config.paths.seed, "heldout"))
    stored = folder / f"heldout.{name}.sampled.store"
    with CandidateStore(stored, made_from) as store:
        if len(store.candidates) < len(asked):
            with open_generator(options, checkpoint, folder / f"hf.{name}", renderer) as generator:
                # First, so that there is none of another model once the answers are whole.
                drift = nll(config, generator, renderer, max_positions)
                write_json(folder / f"drift.{name}.json", drift)
                generate_into(store, asked, generator, config.sampling, options.batch_size)
        sampled = list(store.candidates.values())
    with CandidateStore(folder / f"heldout.{name}.scored.store", made_from) as store:
        if len(store.candidates) < len(sampled):
            by_id = {prompt.id: prompt for prompt in prompts}
            with open_scorer(config.scorer, config.paths.reward) as scorer:
                score_into(store, sampled, by_id, scorer, renderer, config.scorer.batch_size)
        count = store.publish(folder / f"heldout.{name}.jsonl")
    return Made(count, {TOO_LONG: too_long} if too_long else {})


def nll(config: LoopConfig, generator: Generator, renderer: Renderer, max_positions: int) -> dict:
    """{"nll": mean negative log-likelihood in nats per token, "tokens": their number} of the last answers, with EOS, of
    fixed dialogues; nll is None where nothing fits or the engine does not tell."""
    pairs = []
    dialogues = [_dialogue(*row, path) for path in config.paths.drift for row in read_json_lines(path)]
    dialogues.sort(key=lambda one: draw(config.paths.seed, "drift", one.id))
    for dialogue in dialogues[: config.heldout_sampling.drift_count]:
        exchanges = renderer.encode_exchanges([dialogue.turns])[0]
        answer = exchanges[-1].response.tolist()
        context = join(exchanges).tokens.tolist()[: -len(answer)]
        if context and len(context) + len(answer) <= max_positions:
            pairs.append((context, answer))
    scores = generator.loglikelihoods(pairs) if pairs else None
    tokens = sum(len(answer) for _, answer in pairs)
    return {"nll": -sum(scores) / tokens if scores else None, "tokens": tokens if scores else 0}


def _dialogue(number: int, row: dict, path: str) -> Dialogue:
    """The dialogue of a row. Raises InputError as ``file:line: reason``."""
    try:
        return Dialogue.from_row(row)
    except InputError as error:
        raise InputError(f"{path}:{number}: {error}") from None
