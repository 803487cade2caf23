"""Slurm's srun, played on one machine: a task for each node of the job, which ends as the real one's do.

- Every process of a task, in sessions of its own too, gets what is signalled to the step (SIGUSR1 here).
- With --kill-on-bad-exit the first code that is not 0 ends all processes of the other tasks: SIGTERM, later SIGKILL.
- The highest code wins, and a task that was killed counts 128 and its signal.

The real one in Slurm 22.05 was watched doing so; tests/slurm runs it.
"""

import os
import signal
import subprocess
import sys
import time

KILL_WAIT = 10


def processes(of: int) -> list[int]:
    """A process and all that it has started, from the last one to itself."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, listing.splitlines())}
    found = [of]
    for parent in found:
        found += [pid for pid, other in parents.items() if other == parent]
    return found[::-1]


def send(number: int, tasks: list[subprocess.Popen]) -> None:
    """Signal all processes of the tasks that still run."""
    for task in tasks:
        for pid in processes(task.pid) if task.poll() is None else ():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def main() -> int:
    """Run the tasks; the code of the step."""
    words = sys.argv[1:]
    options = []
    while words[0].startswith("-"):
        options.append(words.pop(0))
    nodes = 1 if "--nodes=1" in options else int(os.environ["SLURM_JOB_NUM_NODES"])
    tasks = [subprocess.Popen(words, env=os.environ | {"SLURM_NODEID": str(node)}) for node in range(nodes)]
    signal.signal(signal.SIGUSR1, lambda number, frame: send(number, tasks))
    ended: float | None = None
    while any(task.poll() is None for task in tasks):
        if "--kill-on-bad-exit=1" in options and any(task.poll() for task in tasks):
            if ended is None:
                ended = time.monotonic()
                send(signal.SIGTERM, tasks)
            elif time.monotonic() > ended + KILL_WAIT:
                send(signal.SIGKILL, tasks)
        time.sleep(0.02)
    return max(128 - task.returncode if task.returncode < 0 else task.returncode for task in tasks)


if __name__ == "__main__":
    sys.exit(main())
