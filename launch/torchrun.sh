#!/bin/sh
# `chimed train`, for a clone that is not installed and for jobs: what it takes is in `chimed train --help`.
#   NPROC=2 launch/torchrun.sh pretrain examples/quickstart/model.yaml examples/quickstart/pretrain.yaml --train-iters 20
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3
exec "$python" -m megatron_chimed train "$@"
