"""What a rank imports, for the process that `ranks` forks them from."""

from megatron_chimed.backend.quiet import silence_import_warnings

silence_import_warnings()

from megatron_chimed.backend import cpu  # noqa: E402

cpu.install()

import megatron_chimed.training.trainer  # noqa: E402, F401
