"""torchrun without its traceback: when a rank fails, its own message is the last word.

``python -m megatron_chimed.training.launch [torchrun options] -m megatron_chimed.training.rank STAGE ...``

SIGTERM or SIGUSR1, to this process or to any rank, lets the ranks finish their iteration, save and end with code 75;
the same command continues. A second signal, or MEGATRON_CHIMED_STOP_SECONDS (600) after the first, kills them. In a
Slurm job, which may get several in a row and ends by Slurm's hand, a second signal is passed over, and the ranks have
what is left of the job's time. `errors.stopped_code` says what the code is there.

With MEGATRON_CHIMED_END_WITH_STDIN set, the job ends so when its standard input does: whoever holds the other end of
that pipe takes the job along, even when killed.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from megatron_chimed.errors import STOP_SIGNALS, STOPPED, InputError, one_line, stopped_code
from megatron_chimed.training import slurm
from megatron_chimed.training.job import is_trained, prepare

OWN_SIGNALS = "SIGINT,SIGHUP,SIGQUIT"  # torchrun's share: it ends its ranks within 30 seconds
STOP_SECONDS = "MEGATRON_CHIMED_STOP_SECONDS"
BEFORE_RANKS = "stopped before the ranks had started; nothing new to save"
DEAF = 2  # seconds


class Stop:
    """Passes the first signal on to the ranks; the second one, or the deadline, kills them.

    seconds: the deadline; None for what is left of a Slurm job, or 600.
    """

    def __init__(self, seconds: int | None):
        self.seconds = seconds
        self.first: int | None = None
        self.killed = False
        self.saves = True
        for number in (*STOP_SIGNALS, signal.SIGALRM):
            signal.signal(number, self.receive)
        waked, waker = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._end_if_deaf, args=(waked, waker), daemon=True).start()

    def _end_if_deaf(self, waked: socket.socket, waker: socket.socket) -> None:
        """End this process after a signal that `receive` does not get to see: torch's code, in which it waits for the
        first machine, lets no handler run. waker: kept open."""
        while waked.recv(1)[0] not in STOP_SIGNALS:
            pass
        time.sleep(DEAF)
        if self.first is None and not children():
            _say(BEFORE_RANKS)
            os._exit(stopped_code())

    def receive(self, number: int, frame: object) -> None:
        """A signal's handler."""
        ranks = children()
        if self.first is None:
            self.first = number
            if not ranks:
                _say(BEFORE_RANKS)
                sys.exit(stopped_code())
            seconds = self.seconds or slurm.seconds_to_save(os.environ) or 600
            _say(f"{signal.Signals(number).name}: waiting up to {seconds} s for the ranks to save")
            signal.alarm(seconds)
        elif number != signal.SIGALRM and slurm.is_job():
            return
        else:
            self.killed = True
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL if self.killed else number)

    def code(self, failure: int) -> int:
        """The job's exit code after a rank has ended with `failure` (negative: by that signal)."""
        if self.killed:
            return 128 + self.first
        if self.first is not None and -failure in STOP_SIGNALS:
            _say("stopped before the first iteration; nothing new to save")
            return STOPPED
        return failure if failure > 0 else 128 - failure


def children() -> list[int]:
    """Process ids of this process's children: the ranks."""
    lists = (path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return [int(number) for text in lists for number in text.split()]


def end_with_stdin() -> None:
    """Ask this process to end, and with it its ranks, when the standard input ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run torchrun; exit with the failing rank's code."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if os.environ.get("MEGATRON_CHIMED_END_WITH_STDIN"):
        threading.Thread(target=end_with_stdin, daemon=True).start()
    words = sys.argv[1:]
    try:
        stop = Stop(_stop_seconds())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # `chimed train` has held them back
        rank_argv = words[words.index("-m") + 2 :] if "-m" in words else []
        # Settled once, on the first machine: torchrun starts no rank before all machines are ready.
        is_first = "--node-rank" not in words or words[words.index("--node-rank") + 1] == "0"
        _check_address(words, is_first)
        lock = prepare(rank_argv) if is_first else None  # held as long as this process lives
        stop.saves = bool(lock) or not is_first
        if line := is_trained(rank_argv):  # now that the newest checkpoint is known to be whole
            _say(line)
            return
    except InputError as error:
        _say(f"error: {one_line(error)}")
        sys.exit(1)
    try:
        torchrun(["--signals-to-handle", OWN_SIGNALS, *words])
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = stop.code(failure.exitcode)
        if code not in (1, STOPPED):  # a rank that exits with 1 has said why
            _say(f"rank {rank} ended with code {failure.exitcode}")
        sys.exit(stopped_code() if code == STOPPED and stop.saves else code)


def _check_address(words: list[str], is_first: bool) -> None:
    """See that the machines will find each other. words: of torchrun. Raises InputError."""
    if "--master-addr" in words:
        host, port = (words[words.index(name) + 1] for name in ("--master-addr", "--master-port"))
        slurm.check_address(host, int(port), is_first=is_first)


def _stop_seconds() -> int | None:
    """The time that ranks get to save, if the user says it. Raises InputError."""
    text = os.environ.get(STOP_SECONDS)
    if not text:
        return None
    if not text.isdecimal() or not int(text):
        raise InputError(f"{STOP_SECONDS} is {text!r}; expected a whole number of seconds above 0")
    return int(text)


def _say(line: str) -> None:
    print(f"megatron_chimed: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
