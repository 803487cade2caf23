#!/usr/bin/env bash
# Train one stage with NPROC ranks on this machine (default: its GPUs, else 2 on the CPU).
#   launch/torchrun.sh STAGE MODEL.yaml STAGE.yaml [--megatron-arg value ...]
#   NPROC=2 launch/torchrun.sh pretrain examples/quickstart/model.yaml examples/quickstart/pretrain.yaml --train-iters 20
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3

gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
ranks=${NPROC:-$((gpus > 0 ? gpus : 2))}

export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores = $(getconf _NPROCESSORS_ONLN) / ranks) > 0 ? cores : 1))}
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore} # upstream's deprecation notes; set it to "default" to see them

exec "$python" -m megatron_chimed.launch --standalone --nproc-per-node "$ranks" -m megatron_chimed "$@"
