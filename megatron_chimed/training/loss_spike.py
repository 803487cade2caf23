"""Detect spikes of the training loss."""

import math
import statistics
from collections import deque

WINDOW = 100  # losses in the median
FEWEST = 10  # losses in the window before a spike can be found


class LossSpikeDetector:
    """Says when the loss was above `limit` times its recent median for `iterations` on end.

    The median is over the last 100 losses that were not above it, and needs 10. limit: 0 never says so. A process
    begins with an empty window.
    """

    def __init__(self, limit: float, iterations: int):
        self.limit, self.iterations = limit, iterations
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.above = 0

    def update(self, loss: float) -> str | None:
        """Take one iteration's loss; what is wrong with it, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self.limit and len(self.recent) >= FEWEST and loss > self.limit * statistics.median(self.recent):
            self.above += 1
            if self.above >= self.iterations:
                times = f"{self.above} iteration{'s' * (self.above > 1)}"
                median = statistics.median(self.recent)
                return f"the loss is {loss:.4g}, above {self.limit:g} times its median of {median:.4g} for {times}"
        else:
            self.recent.append(loss)
            self.above = 0
        return None
