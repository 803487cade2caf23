"""Sample answers to the prompts of a round from the checkpoint of the round before."""

from pathlib import Path

from megatron_chimed.rejection.context import RoundContext, describe_stored, folders_of
from megatron_chimed.rejection.engines import describe_sampling, open_generator
from megatron_chimed.rejection.generator import build_requests, generate_into
from megatron_chimed.rejection.store import CandidateStore
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The prompts and the model."""
    return {"prompts": [ctx.file("prompts.jsonl")], "model": folders_of(ctx.previous.checkpoint)}


def settings(ctx: RoundContext) -> dict:
    """What decides the answers."""
    sampling = describe_sampling(ctx.config.generator, ctx.config.sampling)
    return sampling | {"seed": ctx.config.paths.seed, **ctx.rendering}


def outputs(ctx: RoundContext) -> list[Path]:
    """candidates.jsonl."""
    return [ctx.file("candidates.jsonl")]


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Sample what the store lacks, and publish all. Raises InputError."""
    options, sampling, seed = ctx.config.generator, ctx.config.sampling, ctx.config.paths.seed
    requests = build_requests(
        list(ctx.prompts.values()), ctx.renderer, round=ctx.number, n=sampling.n, seed=(seed, "sample", ctx.number)
    )
    with CandidateStore(_store(ctx), inputs_hash) as store:
        if len(store.candidates) < len(requests):
            tokenizer, files = ctx.renderer.tokenizer, ctx.config.paths.tokenizer
            with open_generator(options, ctx.previous.checkpoint, ctx.file("hf"), tokenizer, files) as generator:
                generate_into(store, requests, generator, sampling, ctx.renderer, options.batch_size)
        return StepResult(store.publish(ctx.file("candidates.jsonl")))


def progress(ctx: RoundContext) -> str:
    """What an unfinished run has sampled."""
    return describe_stored([_store(ctx)])


def _store(ctx: RoundContext) -> Path:
    return ctx.file("candidates.store")
