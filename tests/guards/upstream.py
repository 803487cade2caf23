"""The page about upstream, made of the ledger.

PYTHONPATH=tests python -m guards.upstream        # writes docs/upstream.md
"""

from guards import tree
from megatron_chimed.training.upstream import PATCHES, PRIVATE_NAMES

DOCUMENT = "docs/upstream.md"
KINDS = {
    "fault": "Faults that are mended",
    "hook": "What upstream offers no way for",
    "cpu": "What lets Megatron run on a CPU",
}


def page() -> str:
    """The page's text."""
    lines = [
        "# What is changed in torch and Megatron",
        "",
        "Each change is in the ledger, `megatron_chimed/training/upstream.py`, of which this page is made by",
        "`PYTHONPATH=tests python -m guards.upstream`. `tests/upstream/` shows for each what fails without it, and",
        "fails by its name when upstream has mended it.",
    ]
    for kind, title in KINDS.items():
        lines += ["", f"## {title}", "", "| patch | made by | without it | needed up to |", "|---|---|---|---|"]
        for one in PATCHES:
            if one.kind == kind:
                module, _, function = one.where.partition(":")
                lines.append(f"| {one.name} | `{function}` of `{module}` | {one.without} | {one.until} |")
    lines += ["", "## Private names", "", "Reached outside of `training/` and `models/`:", ""]
    lines += ["| file | name | why |", "|---|---|---|"]
    lines += [f"| `{one.path}` | `{one.name}` | {one.why} |" for one in PRIVATE_NAMES]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    (tree.ROOT / DOCUMENT).write_text(page(), encoding="utf-8")
