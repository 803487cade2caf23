"""What `check.py` measures, what each needs, and its share of the time. No torch."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MEGATRON = ("torch", "megatron.core")
PACKAGES = {
    "torch": "torch", "megatron.core": "megatron-core", "transformers": "transformers", "pytest": "pytest",
    "flash_attn": "flash-attn", "transformer_engine": "Transformer Engine",
}  # fmt: skip
"""Of what is imported, the name for people."""


@dataclass(frozen=True)
class Measurement:
    """One line of the results, measured in a process of its own."""

    part: str
    """tests, training, dialogues or generation."""

    title: str
    needs: tuple[str, ...]
    """Packages, as they are imported."""

    weight: float
    """Its share of the time against the others': the seconds that it may take of eight minutes."""

    gpu: bool = False
    """Whether it cannot run on a CPU."""


def _training(title: str, *needs: str, gpu: bool = False, weight: float = 30) -> Measurement:
    return Measurement("training", title, needs, weight, gpu)


MEASUREMENTS = {
    "tests": Measurement("tests", "tests/gpu", ("pytest", *MEGATRON), 150),
    "stock": _training("Megatron, local layers as they come", *MEGATRON, weight=40),
    "ours": _training("ours, whole rows", *MEGATRON),
    "flash": _training("ours, packed, flash-attn", *MEGATRON, "flash_attn", gpu=True),
    "varlen": _training("ours, packed, torch's varlen", *MEGATRON, gpu=True),
    "flex": _training("ours, packed, FlexAttention", *MEGATRON, weight=45),
    "sdpa": _training("ours, packed, SDPA for each document", *MEGATRON),
    "transformers": _training("transformers, {dtype} weights and moments", "torch", "transformers"),
    "transformers_packed": _training("the same, packed, each document by itself", "torch", "transformers"),
    "amp": _training("transformers, float32 weights under autocast", "torch", "transformers", gpu=True),
    "te": _training("ours on Transformer Engine, whole rows", *MEGATRON, "transformer_engine", gpu=True),
    "dialogues": Measurement("dialogues", "Short dialogues, packed against padded", MEGATRON, 25),
    "generation": Measurement("generation", "Generation, ours against transformers", (*MEGATRON, "transformers"), 60),
}
"""By name, in their order: the tests before the figures. stock may need several tries, and flex is compiled."""

KERNELS = ("flash", "varlen", "flex", "sdpa")
"""Ways of training that are named after the kernel of packed rows."""

PACKED = (*KERNELS, "transformers_packed")
"""Ways of training that keep the documents of a row apart."""


def absent(one: Measurement, machine: Mapping[str, Any]) -> str | None:
    """Why a measurement cannot run on a machine, as check.py's `probe` describes it; None if it can."""
    missing = [PACKAGES[package] for package in one.needs if not machine["packages"][package]]
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
    return "needs a GPU" if one.gpu and machine["name"] == "CPU" else None


class Budget:
    """Seconds for all measurements, from now on. Each may take its share of what is left, so that what one leaves over
    is the others', and the last has its share too."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic, reserve: float = 0):
        """reserve: seconds of them that are nobody's, to end what is late."""
        self.seconds, self._now = seconds, now
        self._end = now() + seconds - reserve

    def left(self) -> float:
        """Seconds."""
        return self._end - self._now()

    def share(self, weight: float, others: Iterable[float]) -> float:
        """Seconds for a measurement of this weight before others of those."""
        return max(0.0, self.left()) * weight / (weight + sum(others))
