"""The table of docs/lora.md and its twin: what fits, of fine-tuning with and without LoRA, made by the plan.

PYTHONPATH=tests python -m guards.lora_table        # writes it into both
"""

from dataclasses import replace

from guards import tree
from megatron_chimed.config import Located, load_settings
from megatron_chimed.plan.choices import choices
from megatron_chimed.plan.memory import GIB
from megatron_chimed.plan.settings import read_plan

WORDS = {
    "docs/lora.md": ("| model | trained | GPUs | ", "all", "LoRA"),
    "docs/lora.zh.md": ("| 模型 | 训练什么 | GPU 数 | ", "全部", "LoRA 适配器"),
}
"""{page: (how its table begins, the words for all weights, and for adapters)}."""

BEGIN, END = "<!-- made by guards.lora_table -->", "<!-- end -->"
MODELS = {"ziya2_13b": "13B", "qwen3_8b": "Qwen3-8B"}
GPUS, MEMORY = (1, 2, 4, 8), (24, 48, 80)
FREE = 0.9
"""Share of a GPU's memory that a plan may fill."""


def cell(name: str, adapters: bool, gpus: int, memory: int) -> str:
    """The fastest layout that fits, with its GiB; a dash where none does."""
    folder = tree.ROOT / "examples" / name
    settings = load_settings(folder / "model.yaml", folder / "sft.yaml", [])
    if adapters:
        lora = {"rank": Located(16, "here"), "alpha": Located(32, "here")}
        settings = replace(settings, chimed=settings.chimed | {"lora": Located(lora, "here")})
    plan = read_plan("sft", settings, gpus)
    found = choices(plan.model, plan.layout, int(memory * FREE * GIB))
    if not found:
        return "-"
    layout = found[0].layout
    pipeline = f" PP {layout.pp}" if layout.pp > 1 else ""
    again = "" if layout.recompute == "none" else f", {layout.recompute}"
    return f"TP {layout.tp}{pipeline}{again}: {found[0].memory.total / GIB:.0f}"


def table(begin: str, everything: str, lora: str) -> str:
    """The table in Markdown."""
    lines = [begin + " | ".join(f"{memory} GB" for memory in MEMORY) + " |"]
    lines += ["|" + "---|" * (3 + len(MEMORY))]
    for name, title in MODELS.items():
        for adapters in (False, True):
            for gpus in GPUS:
                cells = [cell(name, adapters, gpus, memory) for memory in MEMORY]
                lines.append(f"| {title} | {lora if adapters else everything} | {gpus} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str, words: tuple[str, str, str]) -> str:
    """The page with the table of today."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table(*words)}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for name, words in WORDS.items():
        (tree.ROOT / name).write_text(page(tree.read(name), words), encoding="utf-8")
