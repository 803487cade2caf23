#!/bin/sh
# Train one stage with NPROC ranks on this machine (default: its GPUs, else 2 on the CPU).
#   launch/torchrun.sh STAGE MODEL.yaml STAGE.yaml [--megatron-arg value ...]
#   NPROC=2 launch/torchrun.sh pretrain examples/quickstart/model.yaml examples/quickstart/pretrain.yaml --train-iters 20
# On NNODES machines, the same command on each, with its own NODE_RANK from 0 and the MASTER_ADDR of machine 0:
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.1.2.3 launch/torchrun.sh ...      (MASTER_PORT: 29500)
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3

gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
ranks=${NPROC:-$((gpus > 0 ? gpus : 2))}
cores=$(($(getconf _NPROCESSORS_ONLN) / ranks))

export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}"
export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore}" # upstream's deprecation notes; set it to "default" to see them

if [ "${NNODES:-1}" = 1 ]; then
  exec "$python" -m megatron_chimed.training.launch --standalone --nproc-per-node "$ranks" -m megatron_chimed.training.rank "$@"
fi
for name in NODE_RANK MASTER_ADDR; do
  eval "value=\${$name:-}"
  [ -n "$value" ] || { echo "torchrun.sh: error: NNODES is $NNODES but no $name is given; set it" >&2; exit 1; }
done
exec "$python" -m megatron_chimed.training.launch --nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" \
  --master-port "${MASTER_PORT:-29500}" --nproc-per-node "$ranks" -m megatron_chimed.training.rank "$@"
