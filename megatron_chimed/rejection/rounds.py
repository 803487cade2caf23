"""Rounds of rejection sampling: prompts, generate, score, select, pack, train, evaluate_heldout, report.

Round 0 only measures the starting checkpoint. Each step reads and writes files in the folder of its round, and is done
when its manifest says so (`megatron_chimed.steps`). A round starts from the checkpoint that the round before it has
trained on the selected answers; its random control starts there too, so that the two differ by the selection alone.
"""

from functools import partial
from types import ModuleType

from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.steps import evaluate_heldout, generate, pack, prompts, report, score, select, train
from megatron_chimed.steps import Step

STEPS = {
    "prompts": prompts,
    "generate": generate,
    "score": score,
    "select": select,
    "pack": pack,
    "train": train,
    "evaluate_heldout": evaluate_heldout,
    "report": report,
}

OLD_NAMES = {"sample": "evaluate_heldout"}
"""What --step also takes; manifests on disk keep the old names, so that a loop that was begun goes on."""

MADE_BY = "tools/rejection_sampling.py"


def steps_of(ctx: RoundContext) -> list[Step]:
    """A round's steps in order; of round 0 only the measuring."""
    names = STEPS if ctx.number else ["evaluate_heldout"]
    return [_step(ctx, name, STEPS[name]) for name in names]


def _step(ctx: RoundContext, name: str, module: ModuleType) -> Step:
    """The step of a module in a round."""
    on_disk = {new: old for old, new in OLD_NAMES.items()}.get(name, name)
    return Step(
        name,
        MADE_BY,
        ctx.file(f"{on_disk}.manifest.json"),
        module.inputs(ctx),
        {"round": ctx.number, **module.settings(ctx)},
        module.outputs(ctx),
        partial(module.run, ctx),
        partial(module.progress, ctx) if hasattr(module, "progress") else str,
    )
