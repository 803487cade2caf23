#!/bin/sh
# export.sh CHECKPOINT FOLDER [--merge]: a checkpoint as a Hugging Face folder, unless it is there, and the comparison of
# both sides.
set -eu
cd "$(dirname "$0")/../.."
[ -d "$2" ] || python tools/convert_checkpoint.py megatron-to-hf --megatron "$1" --hf "$2" ${3:-}
python tools/verify_checkpoint.py --hf "$2" --megatron "$1" --tensor-parallel 2
