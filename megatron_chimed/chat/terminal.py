"""The conversation in a terminal, or over a pipe: answers on stdout, everything else on stderr."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from megatron_chimed.chat.conversation import Conversation
from megatron_chimed.errors import InputError, one_line

DISCLAIMER = "What this model says is no medical advice: it may be wrong, and it cannot examine anybody."
HELP = """/reset          forget the conversation
/undo           forget the last question and its answer
/system [TEXT]  tell the model this before all else, from an empty conversation on; without a text, nothing
/exit           leave, as Ctrl-D
Ctrl-C          stop an answer; what was said of it stays"""

CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])
"""Characters by which a text could command a terminal; line feed and tabulator are none."""


def talk(conversation: Conversation) -> int:
    """Answer line after line of stdin until it ends; the exit code.

    At a terminal a wrong question is a line and the conversation goes on, and Ctrl-C stops an answer and not the
    program. Otherwise, for a pipe or a file, InputError and Ctrl-C end it, and nothing but answers is printed.
    """
    for file in (sys.stdin, sys.stdout):
        file.reconfigure(encoding="utf-8", errors="surrogateescape")
    person = sys.stdin.isatty()
    say(DISCLAIMER)
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines with it; nothing of them goes to a file
        say("Ctrl-D leaves, /help says what else there is.")
    told = False
    for line in lines(person):
        if line.startswith("/"):
            if not command(conversation, line):
                return 0
        elif line:
            told = answer(conversation, line, person, told)
    return 0


def say(text: str) -> None:
    """A line that is no answer."""
    print(text, file=sys.stderr, flush=True)


def lines(person: bool) -> Iterator[str]:
    """What is asked, without white space around it."""
    prompt = "> " if person and sys.stdout.isatty() else ""
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            if person:
                say("")
            return
        except KeyboardInterrupt:
            if not person:
                raise
            say("\n(Ctrl-D or /exit leaves)")


def command(conversation: Conversation, line: str) -> bool:
    """Do what a line with a slash says; whether the conversation goes on."""
    name, _, text = line.partition(" ")
    match name:
        case "/exit":
            return False
        case "/help":
            say(HELP)
        case "/reset":
            conversation.reset()
            say("(a new conversation)")
        case "/undo":
            say("(the last exchange is forgotten)" if conversation.undo() else "(there is nothing to undo)")
        case "/system":
            conversation.reset()
            conversation.system = text.strip()
            say("(a new conversation, with this system text)" if text.strip() else "(a new conversation)")
        case _:
            say(f"({name} is no command; /help lists them)")
    return True


def answer(conversation: Conversation, question: str, person: bool, told: bool) -> bool:
    """Print the answer as it comes; whether it has been told that old turns are left out."""
    thought = 0
    try:
        with interruptible(person) as interrupts, contextlib.closing(conversation.answer(question)) as pieces:
            for piece in pieces:
                if person:
                    thought = show_thinking(conversation.thinking, thought, ended=bool(piece))
                print(piece.translate(CONTROLS) if sys.stdout.isatty() else piece, end="", flush=True)
                if interrupts:
                    break
    except InputError as error:
        if not person:
            raise
        say(f"({one_line(error)})")
        return told
    print(flush=True)
    if conversation.left_out and not told:
        say("(the conversation has outgrown the model's context: from now on it does not see the oldest turns)")
    if interrupts:
        say("(stopped)")
    elif conversation.cut:
        say("(cut off here; --max-new-tokens and the model's context limit an answer)")
    return bool(conversation.left_out)


def show_thinking(thinking: str, shown: int, ended: bool) -> int:
    """Print on stderr what is new of the thinking, and a line break when it has ended; how much is shown then, -1 for
    all that there will be."""
    if shown < 0 or not thinking:
        return shown
    print(thinking[shown:].translate(CONTROLS), end="\n\n" if ended else "", file=sys.stderr, flush=True)
    return -1 if ended else len(thinking)


@contextlib.contextmanager
def interruptible(person: bool) -> Iterator[list[int]]:
    """At a terminal Ctrl-C adds to this list in place of an exception; one that is not heeded for a while can be
    pressed again, and is an exception then."""
    interrupts: list[int] = []
    if not person:
        yield interrupts
        return

    def note(number: int, frame) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
