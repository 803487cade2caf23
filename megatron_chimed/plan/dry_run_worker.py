"""Rank 0 of a dry run: ``python -m megatron_chimed.plan.dry_run_worker JSON STAGE MODEL.yaml STAGE.yaml ...``.

JSON: [changed settings, those left out]. Prints the bytes that the trainer has allocated after one step.
"""

import inspect
import json
import os
import sys

from megatron_chimed.backend.quiet import silence_import_warnings
from megatron_chimed.errors import InputError, one_line


def main() -> None:
    """Run one step; bad input becomes one line."""
    from megatron_chimed.backend import cpu

    cpu.install()
    from megatron_chimed import config
    from megatron_chimed.plan.dry_run import ERROR, RESULT
    from megatron_chimed.plan.settings import change_settings
    from megatron_chimed.training import patches, trainer

    changes, left_out = json.loads(sys.argv[1])
    stage, *files = sys.argv[2:]
    try:
        settings = change_settings(config.load_settings(files[0], files[1], files[2:]), changes, left_out)
        settings = change_settings(settings, {"fake-process-group": True, "exit-interval": 1, "log-interval": 1})
        kept = patches.keep_model()
        trainer.run(trainer.STAGES[stage], settings)
    except InputError as error:
        print(f"\n{ERROR}{one_line(error)}", flush=True)
        os._exit(1)
    except (AssertionError, ValueError, RuntimeError) as error:  # the trainer's own checks, often without a word
        place = inspect.trace()[-1]
        reason = one_line(error) or (place.code_context or ["?"])[0].strip()
        print(f"\n{ERROR}the trainer stops: {reason} (line {place.lineno} of {place.filename})", flush=True)
        os._exit(1)
    except SystemExit as end:  # how the trainer ends at --exit-interval
        if end.code:
            raise
    print(f"\n{RESULT}{json.dumps(allocated(*kept))}", flush=True)
    os._exit(0)


def allocated(parts: list, optimizer) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state of this rank; scalars, such as Adam's step, are not counted."""
    buffers = [buffer for part in parts for buffer in [*part.buffers, *part.expert_parallel_buffers]]
    frozen = [weight for part in parts for weight in part.parameters() if not weight.requires_grad]
    weights = frozen + [
        tensor
        for buffer in buffers
        for tensor in ([buffer.param_data] if buffer.param_data is not None else buffer.params)
    ]
    known = {tensor.untyped_storage().data_ptr() for tensor in weights}
    inner = [one.optimizer for one in getattr(optimizer, "chained_optimizers", [optimizer])]
    copies = [parameter for adam in inner for group in adam.param_groups for parameter in group["params"]]
    copies = [one for one in copies if one.untyped_storage().data_ptr() not in known]
    moments = [value for adam in inner for state in adam.state.values() for value in state.values()]
    moments = [value for value in moments if hasattr(value, "dim") and value.dim()]
    return {
        "weights": sum(one.nbytes for one in weights),
        "gradients": sum(buffer.grad_data.nbytes for buffer in buffers),
        "optimizer": sum(one.nbytes for one in [*copies, *moments]),
    }


if __name__ == "__main__":
    silence_import_warnings()
    main()
