"""One rank of a training with a fault: as ``python -m megatron_chimed.training.rank``, with the variable FAULT as JSON.

{"kind", "iteration", "rank"}: from that iteration on, on that rank or with null on all of them,
gradient: the gradients of the loss are NaN, the loss is not; explosion: the loss is 100 times what it is;
full: no file grows beyond 100 kB, as on a full disk (the system says EFBIG in the place of ENOSPC);
pause: no step begins before the file "until" is there.
"""

import json
import os
import resource
import signal
import time

LIMIT = 100_000  # bytes: more than loss.csv, less than a shard of a checkpoint


def main() -> None:
    """Put the fault into the trainer, and run the rank."""
    from megatron_chimed.backend import cpu
    from megatron_chimed.training import rank

    cpu.install()
    from megatron.training import training

    from megatron_chimed.stages import pretrain

    fault = json.loads(os.environ["FAULT"])
    here = fault["rank"] is None or fault["rank"] == int(os.environ["RANK"])
    train_step, masked_nll = training.train_step, pretrain.masked_nll
    active = False

    def step(*args, iteration, **kwargs):
        nonlocal active
        active = here and iteration + 1 >= fault["iteration"]
        if active and fault["kind"] == "full":
            assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python's own: writing fails instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
        while active and fault["kind"] == "pause" and not os.path.exists(fault["until"]):
            time.sleep(0.05)
        try:
            return train_step(*args, iteration=iteration, **kwargs)
        finally:
            active = False  # an evaluation comes next

    def loss(mask, nll):
        if active and fault["kind"] == "gradient":
            nll.register_hook(lambda gradient: gradient * float("nan"))
        if active and fault["kind"] == "explosion":
            nll = nll * 100
        return masked_nll(mask, nll)

    training.train_step, pretrain.masked_nll = step, loss
    rank.main()


if __name__ == "__main__":
    main()
