"""`chimed reference`, as a script."""

from megatron_chimed.commands.main import run_tool

if __name__ == "__main__":
    run_tool("reference")
