"""Errors that a user can act on, and the one place that turns them into a line and an exit code.

A message says what was wrong, where, what was expected and what to do, in one line:
``rank.jsonl:812: field 'ranks' has 3 entries for 4 responses; give one rank per response (0 = best).``
"""

import os
import reprlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

short = reprlib.Repr(maxstring=80, maxlong=80, maxother=80, maxdict=6).repr
"""The repr of a value from a file, of which any length of a message may come."""

MAX_MESSAGE = 2500
"""Characters of a message: names in a file may be of any length, and a model has hundreds of tensors."""

STOPPED = os.EX_TEMPFAIL
"""Exit code 75 of a training that was asked to stop: it has saved, and the same command continues."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED_FILE = "MEGATRON_CHIMED_STOPPED_FILE"
"""The variable by which a job of several machines names a file: see `stopped_code`."""


class InputError(ValueError):
    """Bad input: a file, a flag or a value that the user can mend. The message is one full line."""


class LostRank(InputError):
    """Another rank of the job has ended or hangs; what that one has said is more to the point."""


class Stopped(KeyboardInterrupt):
    """A job is asked to end; the same command continues."""


def stopped_code() -> int:
    """The exit code of what was asked to stop, has saved, and continues by the same command: STOPPED.

    In a job that names a file by MEGATRON_CHIMED_STOPPED_FILE: 0, and the file is there. Slurm kills all machines of a
    job at the first code that is not 0, while they still save, and counts the highest code: one that a fault has must
    be above that of a stop.
    """
    if not (file := os.environ.get(STOPPED_FILE)):
        return STOPPED
    Path(file).touch()
    return 0


def end_with_job() -> None:
    """In a job that names such a file, have its signals raise Stopped here; workers that are forked leave it to us."""
    if not os.environ.get(STOPPED_FILE):
        return
    this = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() != this:
            return
        for one in STOP_SIGNALS:
            signal.signal(one, signal.SIG_IGN)  # a second one finds us leaving
        raise Stopped

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def _stopped_meanwhile() -> bool:
    """Whether a job's signal comes now: the processes get it one after another, and the first to end may be missed."""
    try:
        time.sleep(1 if os.environ.get(STOPPED_FILE) else 0)
    except Stopped:
        return True
    return False


def exit_cleanly(main: Callable[[], int | None], program: str | None = None) -> None:
    """Run a command's `main` and exit: 0, or what it returned; 1 on bad input; 130 when interrupted; `stopped_code`.

    program: its name in messages, that of the script if not given. Bad input and faults of the disk become one line on
    stderr; a traceback is left for our own mistakes.
    """
    program = program or os.path.basename(sys.argv[0])
    end_with_job()
    try:
        code = main() or 0
        sys.stdout.flush()
    except (InputError, OSError) as error:
        if _stopped_meanwhile():
            sys.exit(stopped_code())
        if isinstance(error, BrokenPipeError):  # the reader of our output has left: nothing more to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt as error:
        print(f"{program}: interrupted; what is finished is kept, run the command again to continue", file=sys.stderr)
        code = stopped_code() if isinstance(error, Stopped) else 130
    sys.exit(code)


def one_line(error: BaseException) -> str:
    """The error's text with line breaks folded to spaces, its middle left out where it is long; an OSError as ``path:
    reason``."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    left_out = len(text) - MAX_MESSAGE
    return text if left_out <= 0 else f"{text[: -500 - left_out]} ({left_out} characters left out) {text[-500:]}"
