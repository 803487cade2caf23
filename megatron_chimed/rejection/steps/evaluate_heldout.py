"""Measure the models of a round on held-out prompts."""

from dataclasses import replace
from pathlib import Path

from megatron_chimed.config import as_written
from megatron_chimed.jsonl import sha256_json, write_json
from megatron_chimed.rejection.context import RoundContext, as_paths, describe_stored, folders_of
from megatron_chimed.rejection.engines import describe_sampling, open_generator
from megatron_chimed.rejection.generator import build_requests, generate_into
from megatron_chimed.rejection.heldout import read_heldout, reference_nll
from megatron_chimed.rejection.prompts import TOO_LONG
from megatron_chimed.rejection.scorers.options import describe, files_of, is_plain
from megatron_chimed.rejection.store import CandidateStore, write_candidates
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The models, what the scorers read, held-out prompts and reference dialogues."""
    paths = ctx.config.paths
    models = [folder for checkpoint in _checkpoints(ctx) for folder in folders_of(checkpoint)]
    found = {"models": models} | files_of(ctx.config.scorer, paths.reward)
    return found | as_paths({"heldout": paths.heldout, "drift": paths.reference_nll})


def settings(ctx: RoundContext) -> dict:
    """What decides the answers and their rewards."""
    config = ctx.config
    found = describe_sampling(config.generator, config.sampling) | as_written(config.heldout_sampling)
    scorer = config.scorer[0].engine if is_plain(config.scorer) else describe(config.scorer)
    return found | {"scorer": scorer, "seed": config.paths.seed, **ctx.rendering}


def outputs(ctx: RoundContext) -> list[Path]:
    """heldout.MODEL.jsonl and drift.MODEL.json, the likelihood of the reference dialogues."""
    return ctx.files("heldout.{}.jsonl", ctx.models) + ctx.files("drift.{}.json", ctx.models)


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """One model after the other. Raises InputError."""
    results = [
        evaluate_model(ctx, name, checkpoint, inputs_hash)
        for name, checkpoint in zip(ctx.models, _checkpoints(ctx), strict=True)
    ]
    figures = {name: one.figures["scorers"] for name, one in zip(ctx.models, results, strict=True)}
    return StepResult(sum(one.rows for one in results), results[0].dropped, {"scorers": figures})


def evaluate_model(ctx: RoundContext, name: str, checkpoint: Path, inputs_hash: str) -> StepResult:
    """Sample and score the held-out prompts with one model, and measure the likelihood of the reference answers."""
    config, renderer, options = ctx.config, ctx.renderer, ctx.config.generator
    prompts, too_long = read_heldout(config, renderer, ctx.shape.max_positions)
    if options.engine == "openai":  # a server has one model, and several are to be measured
        options = replace(options, engine="megatron")
    inputs_hash = sha256_json([inputs_hash, name])
    files = config.paths.tokenizer
    seed, n = (config.paths.seed, "heldout"), config.heldout_sampling.n
    requests = build_requests(prompts, renderer, round=ctx.number, n=n, seed=seed)
    with CandidateStore(ctx.file(f"heldout.{name}.sampled.store"), inputs_hash) as store:
        if len(store.candidates) < len(requests):
            with open_generator(options, checkpoint, ctx.file(f"hf.{name}"), renderer.tokenizer, files) as generator:
                # First, so that there is none of another model once the answers are whole.
                likelihood = reference_nll(config, generator, renderer, ctx.shape.max_positions)
                write_json(ctx.file(f"drift.{name}.json"), likelihood)
                generate_into(store, requests, generator, config.sampling, renderer, options.batch_size)
        sampled = list(store.candidates.values())
    by_id = {prompt.id: prompt for prompt in prompts}
    scored = ctx.scoring.score(sampled, by_id, ctx.file(f"heldout.{name}.scored"))
    count = write_candidates(ctx.file(f"heldout.{name}.jsonl"), scored.candidates)
    return StepResult(count, {TOO_LONG: too_long} if too_long else {}, {"scorers": scored.figures})


def progress(ctx: RoundContext) -> str:
    """What an unfinished run has sampled."""
    return describe_stored(ctx.files("heldout.{}.sampled.store", ctx.models))


def _checkpoints(ctx: RoundContext) -> list[Path]:
    """The models that are measured."""
    return ctx.files("train/{}") if ctx.number else [ctx.checkpoint]
