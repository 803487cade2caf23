"""Whether two models differ: for each task a paired test, corrected for the number of tests, and the items it takes.

The test is a permutation test: were the models alike, each item's two answers could change places, and the difference
of the metric with the places changed at random would be as large as the one that was found in a share `p` of all draws.
It holds for every metric here, as all are functions of sums over items (`statistics`). Holm's correction keeps the
chance of a single false claim in the whole table at 5 percent. Sources: Noreen, "Computer-Intensive Methods for Testing
Hypotheses", 1989; Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.catalog import TASKS
from megatron_chimed.evaluation.reports.compare import Difference, bootstrap_difference, item_values, read_samples

DRAWS = 10_000
LEVEL = 0.05
POWER = 0.8
ABOUT = (
    "Each model against the first, item by item. The difference has its 95% bootstrap interval; p is that of a paired "
    f"permutation test, corrected by Holm for all lines of the table: below {LEVEL:g} the models differ. The last "
    f"number is how many items would show a difference of so many points with a power of {POWER:.0%} on a task alone, "
    "given how these two models' answers vary."
)


class Comparison(NamedTuple):
    """Two models on a task. difference: of the first less the other, None where there is none, as `why` says; p: of the
    test, corrected: by Holm; items_needed: to see a difference of the asked points, None where that cannot be told."""

    task: str
    one: str
    other: str
    metric: str
    difference: Difference | None = None
    p: float = math.nan
    corrected: float = math.nan
    items_needed: int | None = None
    why: str = ""

    @property
    def verdict(self) -> str:
        """What may be said: which model scores higher (a bias scale's is the worse one), or that none is shown to."""
        if self.difference is None:
            return self.why
        if not self.corrected < LEVEL:
            return "no difference shown"
        return f"{self.one if self.difference.value > 0 else self.other} scores higher"


def compare_results(results: Sequence[dict], folders: Sequence[Path], points: float) -> list[Comparison]:
    """Each model against the first, on every task that both have.

    folders: where each of the results lies, with its samples; points: the difference for `items_needed`, in the units
    of the report. Raises InputError for points of 0 or fewer, and for samples that are damaged.
    """
    if not 0 < points < math.inf:
        raise InputError(f"--points is {points:g}; expected a number above 0")
    found = []
    for place in range(1, len(results)):
        names = [results[number]["model"]["name"] for number in (0, place)]
        for task in TASKS:
            both = [results[number]["tasks"].get(task) for number in (0, place)]
            if None not in both:
                found.append(_compare(task, names, (folders[0], folders[place]), both, points))
    corrected = iter(holm([one.p for one in found if one.difference]))
    return [one._replace(corrected=next(corrected)) if one.difference else one for one in found]


def _compare(task: str, names: list[str], folders: tuple[Path, Path], figures: list[dict], points: float) -> Comparison:
    """Two models on a task, not corrected yet."""
    metric = TASKS[task].main_metric
    blank = Comparison(task, *names, metric)
    runs = min(figure["runs"] for figure in figures)
    try:
        sides = [[read_samples(folder, task, run) for run in range(runs)] for folder in folders]
    except InputError as error:
        if "no such file" not in str(error):
            raise
        return blank._replace(why="no samples are kept")
    if any(run.keys() != sides[0][0].keys() for side in sides for run in side):
        return blank._replace(why="not the same items")
    values, ratio, scale = item_values(sides, task, metric)
    difference = bootstrap_difference(values, ratio, scale)
    if math.isnan(difference.value):
        return blank._replace(why="one of them has no value")
    needed = items_needed(difference, points)
    return blank._replace(difference=difference, p=permutation_p(values, ratio), items_needed=needed)


def permutation_p(values: np.ndarray, ratio: Callable[[np.ndarray], np.ndarray], *, seed: int = 0) -> float:
    """The two-sided p of a difference of two models, by `DRAWS` random changes of places.

    values: [2, items, k] numbers that are summed over items; ratio: sums [..., k] -> metric. The smallest p is
    1 / (`DRAWS` + 1). Draws in which one side has no value count as large ones.

    >>> permutation_p(np.ones((2, 9, 2)), lambda sums: sums[..., 0] / sums[..., 1])
    1.0
    """
    total, gap = values.sum(axis=0).sum(axis=0), values[0] - values[1]
    found = abs(float(np.subtract(*ratio(values.sum(axis=1)))))
    rng, large = np.random.default_rng(seed), 0
    for start in range(0, DRAWS, 500):  # in parts, as a matrix of all would be large
        signs = rng.integers(0, 2, size=(min(500, DRAWS - start), values.shape[1])) * 2.0 - 1.0
        half = signs @ gap / 2
        drawn = np.abs(ratio(total / 2 + half) - ratio(total / 2 - half))
        large += int((~(drawn < found - 1e-12)).sum())
    return (large + 1) / (DRAWS + 1)


def holm(values: Sequence[float]) -> list[float]:
    """p of several tests, corrected so that one false claim among all has at most the chance of one test.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order, corrected, so_far = sorted(range(len(values)), key=values.__getitem__), [0.0] * len(values), 0.0
    for place, number in enumerate(order):
        so_far = max(so_far, min(1.0, values[number] * (len(values) - place)))
        corrected[number] = so_far
    return corrected


def items_needed(difference: Difference, points: float) -> int | None:
    """How many items two models that differ by `points` need for a test at `LEVEL` to see it with `POWER`.

    From the spread of these two models' pairs of answers, by the normal approximation: (z + z)^2 x items x error^2 /
    points^2. The correction for other tasks is not in it. None where the pairs do not differ at all, or by no points.
    """
    if not difference.error or points <= 0:
        return None
    normal = NormalDist()
    z = normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)
    return math.ceil(z**2 * difference.n * difference.error**2 / points**2)


def table_rows(comparisons: Sequence[Comparison], points: float) -> list[list[str]]:
    """The table of a report, the header first."""
    rows = [["task", "metric", "models", "difference", "n", "p", "p (Holm)", f"n for {points:g}", "verdict"]]
    for one in comparisons:
        cells = [""] * 5
        if found := one.difference:
            needed = "cannot be told" if one.items_needed is None else f"{one.items_needed:,}"
            shown = f"{found.value:+.2f} [{found.low:.2f}, {found.high:.2f}]"
            cells = [shown, str(found.n), f"{one.p:.4f}", f"{one.corrected:.4f}", needed]
        rows.append([one.task, one.metric, f"{one.one} less {one.other}", *cells, one.verdict])
    return rows


def as_json(comparisons: Sequence[Comparison], points: float) -> dict[str, Any]:
    """What comparison.json holds."""
    rows = []
    for one in comparisons:
        row = {name: value for name, value in one._asdict().items() if name != "difference" and value == value}
        rows.append(row | (one.difference._asdict() if one.difference else {}) | {"verdict": one.verdict})
    return {"points": points, "level": LEVEL, "power": POWER, "draws": DRAWS, "comparisons": rows}


def verdict_lines(comparison: dict[str, Any]) -> list[str]:
    """What comparison.json says, a line for each task."""
    lines = []
    for one in comparison["comparisons"]:
        line = f"{one['task']} ({one['metric']}), {one['one']} against {one['other']}: {one['verdict']}"
        if "value" in one:
            line += f" ({one['value']:+.2f} [{one['low']:.2f}, {one['high']:.2f}], p {one['corrected']:.4f} by Holm)"
        if one["items_needed"]:
            line += (
                f"; {comparison['points']:g} points would take {one['items_needed']:,} items, there are {one['n']:,}"
            )
        lines.append(line)
    return lines
