"""The whole loop: all steps of all rounds, one job at a time in a folder, and a table of where it stands."""

from megatron_chimed.convert.trained_template import choose
from megatron_chimed.errors import InputError
from megatron_chimed.inference.thinking import with_think
from megatron_chimed.rejection.config import LoopConfig
from megatron_chimed.rejection.context import RoundContext
from megatron_chimed.rejection.rounds import steps_of
from megatron_chimed.steps import locked, run_step, state_of
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.tokenizer import load_tokenizer


def make_rounds(config: LoopConfig) -> list[RoundContext]:
    """All rounds, the first of them round 0. Raises InputError when tokenizer or template cannot be read."""
    paths = config.paths
    template = choose(f"megatron:{paths.start}", paths.template, paths.tokenizer)
    template = with_think(template, paths.think, "think")
    if template.thinking and template.think and config.training.method == "dpo":
        raise InputError("think: true with training.method dpo, whose pairs hold no thinking; say think: false, or sft")
    renderer = Renderer(template, load_tokenizer(paths.tokenizer), paths.thinking)
    return [RoundContext(config, renderer, number) for number in range(config.paths.rounds + 1)]


def run_loop(config: LoopConfig, step: str | None = None, number: int | None = None) -> None:
    """Run all steps of all rounds in order, or those of one name or one round, except what is done.

    Raises InputError as the steps do, and when another job is at work in the same folder.
    """
    if number is not None and not 0 <= number <= config.paths.rounds:
        raise InputError(f"--round {number}: the configuration has {config.paths.rounds}")
    rounds = make_rounds(config)
    with locked(config.output):
        for one in rounds:
            if number in (None, one.number):
                for todo in steps_of(one):
                    if step in (None, todo.name):
                        run_step(todo, f"round {one.number}")


def status(config: LoopConfig) -> str:
    """A table of all steps: round, step, done, stale, partial or to do, and counts. It changes nothing."""
    lines = [f"{'round':5}  {'step':16}  {'state':7}  what there is"]
    for one in make_rounds(config):
        for step in steps_of(one):
            state = state_of(step)
            lines.append(f"{one.number:5}  {step.name:16}  {state.name:7}  {state.detail}".rstrip())
    return "\n".join(lines)
