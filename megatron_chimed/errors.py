"""Errors that a user can act on, and the one place that turns them into a line and an exit code.

A message says what was wrong, where, what was expected and what to do, in one line:
``rank.jsonl:812: field 'ranks' has 3 entries for 4 responses; give one rank per response (0 = best).``
"""

import os
import sys
from collections.abc import Callable

STOPPED = os.EX_TEMPFAIL
"""Exit code 75 of a training that was asked to stop: it has saved, and the same command continues."""


class InputError(ValueError):
    """Bad input: a file, a flag or a value that the user can mend. The message is one full line."""


class LostRank(InputError):
    """Another rank of the job has ended or hangs; what that one has said is more to the point."""


def exit_cleanly(main: Callable[[], int | None], program: str | None = None) -> None:
    """Run a command's `main` and exit: 0, or what it returned; 1 on bad input; 130 when interrupted.

    program: its name in messages, that of the script if not given. Bad input and faults of the disk become one line on
    stderr; a traceback is left for our own mistakes.
    """
    program = program or os.path.basename(sys.argv[0])
    try:
        code = main() or 0
        sys.stdout.flush()
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has left: nothing more to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; what is finished is kept, run the command again to continue", file=sys.stderr)
        code = 130
    sys.exit(code)


def one_line(error: BaseException) -> str:
    """The error's text with line breaks folded to spaces; an OSError as ``path: reason``."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
