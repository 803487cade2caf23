"""The kinds of tasks, a record each in a file of its own."""

from megatron_chimed.evaluation.kinds import (
    answers,
    choice,
    cloze,
    entities,
    facts,
    label,
    letter,
    letters,
    report,
    rubric,
    scale,
)

KINDS = {
    module.KIND.name: module.KIND
    for module in (choice, cloze, letter, letters, entities, facts, label, answers, rubric, report, scale)
}
"""By name."""
