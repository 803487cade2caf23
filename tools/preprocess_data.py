"""JSON lines to Megatron's indexed dataset: a drop-in for Megatron's tool of this name, with byte-identical output."""

from megatron_chimed.corpus.arguments import parse_arguments, run_command
from megatron_chimed.errors import exit_cleanly


def main() -> None:
    args = parse_arguments()
    content = run_command(args)
    print(f"{args.output_prefix}: {content['documents']} documents, {content['tokens']} tokens")


if __name__ == "__main__":
    exit_cleanly(main)
