"""The commands behind `chimed`, a module each, with ``add_arguments(parser)`` and ``run(args)``."""
