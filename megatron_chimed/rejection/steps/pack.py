"""Pack the selected answers, and those of the control, for fine-tuning."""

from pathlib import Path

from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.steps import StepResult


def inputs(ctx: RoundContext) -> dict[str, list[Path]]:
    """The dialogues of each set."""
    return {"dialogues": ctx.files("{}.dialogues.jsonl")}


def settings(ctx: RoundContext) -> dict:
    """What decides the rows."""
    found = {"sequence_length": ctx.shape.sequence_length, "seed": ctx.config.paths.seed, **ctx.rendering}
    return found | ({"thinking": ctx.renderer.thinking} if ctx.renderer.template.thinking else {})


def outputs(ctx: RoundContext) -> list[Path]:
    """A folder of packed rows for each set."""
    return ctx.files("packed/{}")


def run(ctx: RoundContext, inputs_hash: str) -> StepResult:
    """Raises InputError where nothing fits."""
    paths, rows = ctx.config.paths, {}
    options = DialogueRowOptions(ctx.shape.sequence_length, paths.seed, progress=False, mode="last")
    for name, path in zip(ctx.sets, inputs(ctx)["dialogues"], strict=True):
        output = ctx.file(f"packed/{name}")
        rows[name] = pack_dialogues([str(path)], output, ctx.renderer, options, paths.tokenizer)["rows"]
    return StepResult(rows["selected"], {}, {"packed": rows})
