"""Fine-tune the checkpoint of the round before on each set."""

from pathlib import Path

from megatron_chimed.checkpoints import latest_iteration
from megatron_chimed.rejection.context import RoundContext, folders_of
from megatron_chimed.rejection.training import fine_tune
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The packed rows, the model to start from, the recipe."""
    paths = ctx.config.paths
    found = {"packed": ctx.files("packed/{}"), "start": folders_of(ctx.previous.checkpoint)}
    return found | {"yaml": [Path(paths.model), Path(paths.stage)]}


def settings(ctx: RoundContext) -> dict:
    """The tokenizer; all else is in the recipe."""
    return {"tokenizer": ctx.rendering["tokenizer"]}


def outputs(ctx: RoundContext) -> list[Path]:
    """A run's folder for each set."""
    return ctx.files("train/{}")


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """One training after the other. Raises InputError when one fails."""
    iterations = {
        name: fine_tune(ctx.config, ctx.previous.checkpoint, ctx.file(f"packed/{name}"), folder, inputs_hash)
        for name, folder in zip(ctx.sets, outputs(ctx), strict=True)
    }
    return StepResult(iterations["selected"], {}, {"iterations": iterations})


def progress(ctx: RoundContext) -> str:
    """The newest checkpoint of each set."""
    done = {folder.name: latest_iteration(folder) for folder in outputs(ctx) if folder.exists()}
    return ", ".join(f"{name}: iteration {count}" for name, count in done.items())
