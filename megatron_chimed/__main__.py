"""``python -m megatron_chimed`` is the command `chimed`."""

from importlib import import_module

if __name__ == "__main__":
    import_module("megatron_chimed.commands.main").main()
