"""`chimed COMMAND ...`: finds the command, reads its flags, runs it. Nothing is imported but what the command needs."""

import argparse
import os
import sys
from importlib import import_module

from megatron_chimed import __version__
from megatron_chimed.errors import exit_cleanly

COMMANDS = {
    "corpus": ("preprocess_data", "JSON lines to Megatron's indexed dataset"),
    "documents": ("make_documents", "rows of a table or of JSON to documents for a corpus"),
    "tokenizer": ("train_tokenizer", "train a SentencePiece BPE tokenizer"),
    "sft-data": ("prepare_sft", "raw sources to dialogues for fine-tuning"),
    "reward-data": ("prepare_rewards", "raw sources to ranked answers for the reward model"),
    "augment": ("augment_rewards", "answers of models between the better and the worse of a pair"),
    "pack sft": ("pack_sft", "dialogues to packed rows"),
    "pack rewards": ("pack_rewards", "ranked answers to packed rows"),
    "reference": ("compute_reference", "what a model thinks of packed answers, for the stage dpo"),
    "show": ("show_batch", "a packed row as text, with boundaries and loss mask"),
    "train": ("train", "a stage of training on this machine's ranks"),
    "rejection": ("rejection_sampling", "rounds of rejection-sampling fine-tuning"),
    "convert": ("convert_checkpoint", "Hugging Face folder to Megatron checkpoint, and back"),
    "verify checkpoint": ("verify_checkpoint", "do a folder and a checkpoint hold one model"),
    "verify corpus": ("verify_corpus", "is a corpus whole and unaltered"),
    "evaluate": ("evaluate", "a model on tasks, with intervals and a report"),
    "human": ("human_evaluation", "a blinded form for annotators, and the report on their files"),
    "chat": ("chat", "talk to a model, or serve it"),
    "plan": ("plan", "will a training fit, how long will it take, does the trainer take it"),
    "plot": ("plot_runs", "curves of several runs"),
}
"""{name: (its module here, what it does)}. Of two words that have the first in common the second chooses."""


def usage() -> str:
    """What `chimed --help` says."""
    lines = [f"  chimed {name:<19}{what}" for name, (_, what) in COMMANDS.items()]
    example = "example:\n  chimed pack sft --input dialogues.jsonl --tokenizer tokenizer.model --output packed"
    return "\n".join(["usage: chimed COMMAND ...", "", *lines, "", "Each has its own --help.", "", example])


def find_command(argv: list[str]) -> tuple[str, list[str]] | None:
    """(a command's name, the words behind it) of what is given; None where there is no such command."""
    for count in (2, 1):
        name = " ".join(argv[:count])
        if len(argv) >= count and name in COMMANDS:
            return name, argv[count:]
    return None


def make_parser(name: str, program: str) -> argparse.ArgumentParser:
    """The parser of a command's flags. program: how it was called, for its messages."""
    module = import_module(f"megatron_chimed.commands.{COMMANDS[name][0]}")
    called = f"python tools/{program}" if program.endswith(".py") else program
    parser = argparse.ArgumentParser(
        prog=program,
        description=module.__doc__,
        epilog=module.EXAMPLE.replace(f"chimed {name}", called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def run_command(name: str, argv: list[str], program: str) -> int | None:
    """Run a command. program: how it was called, for its messages."""
    module = import_module(f"megatron_chimed.commands.{COMMANDS[name][0]}")
    parser = make_parser(name, program)
    if hasattr(module, "run_with_rest"):  # takes flags that are not its own
        return module.run_with_rest(*parser.parse_known_args(argv))
    parser.set_defaults(usage_error=parser.error)
    return module.run(parser.parse_args(argv))


def run_tool(name: str) -> None:
    """Run a command as the script that was called, and exit."""
    exit_cleanly(lambda: run_command(name, sys.argv[1:], os.path.basename(sys.argv[0])))


def main() -> None:
    """Run the command line, and exit: 2 for an unknown command, else as `errors.exit_cleanly`."""
    argv = sys.argv[1:]
    if argv == ["--version"]:
        print(__version__)
    elif not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
    elif (found := find_command(argv)) is None:
        group = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
        expected = " or ".join(f"chimed {name}" for name in group) or "one of those in chimed --help"
        wanted = bool(group) and {"-h", "--help"} & set(argv[1:2])
        print(f"chimed: {'' if wanted else 'error: '}{' '.join(argv[:2])}: expected {expected}", file=sys.stderr)
        sys.exit(0 if wanted else 2)
    else:
        name, rest = found
        exit_cleanly(lambda: run_command(name, rest, f"chimed {name}"), program=f"chimed {name}")
    sys.exit(0)


if __name__ == "__main__":
    main()
