#!/bin/sh
# All stages of a recipe in their order. Run it again at any time: what is finished is not done again, and a training
# that was interrupted continues.
#   launch/pipeline.sh examples/ziya2_13b runs/ziya2_13b Ziya2-13B-Base
#   launch/pipeline.sh examples/qwen3_8b runs/qwen3_8b Qwen3-8B
# The folder of the run, which the recipe's YAML files name, holds what the data tools have made:
#   documents/{train,heldout}.jsonl   tools/make_documents.py
#   sft/{train,heldout}.jsonl         tools/prepare_sft.py
#   reward/{train,valid,test}.jsonl   tools/prepare_rewards.py, tools/augment_rewards.py
# Trainings go through LAUNCH (launch/torchrun.sh); on a Slurm cluster, each as a job that is waited for, and then all
# else is a job of one machine too, by sbatch with the same options:
#   LAUNCH='sbatch --wait --nodes=2 launch/slurm.sbatch' launch/pipeline.sh ...
# TOOL and GPU_TOOL say otherwise: what stands before a command of chimed that wants cores or GPUs.
# SFT_MODE: per-turn, the paper's, or whole.
set -eu

[ $# = 3 ] || { echo "pipeline.sh: error: expected RECIPE RUN BASE_MODEL; see the head of $0" >&2; exit 1; }
recipe=$1 run=$2 base=$3
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
launch=${LAUNCH:-launch/torchrun.sh}
case $launch in
*slurm.sbatch)
  one="${launch% *} --nodes=1"
  TOOL=${TOOL:-$one --gpus-per-node=0 ${launch##* }} GPU_TOOL=${GPU_TOOL:-$one ${launch##* }}
  ;;
esac
cores=${TOOL:-$python -m megatron_chimed} gpus=${GPU_TOOL:-$python -m megatron_chimed}
where=$cores

say() {
  echo "pipeline: $*" >&2
}

# The number of a key in a stage's YAML.
number() {
  sed -n "s/^ *$2: *\([0-9][0-9]*\).*/\1/p" "$recipe/$1.yaml"
}

chimed() {
  # shellcheck disable=SC2086 # several words
  $where "$@"
}

train() {
  say "training $1"
  ! "$python" -m megatron_chimed.training.job "$1" "$recipe/model.yaml" "$recipe/$1.yaml" >&2 || return 0
  # shellcheck disable=SC2086 # LAUNCH may hold options
  $launch "$1" "$recipe/model.yaml" "$recipe/$1.yaml"
}

for file in documents/train documents/heldout sft/train sft/heldout reward/train reward/valid reward/test; do
  [ -f "$run/$file.jsonl" ] || { echo "pipeline.sh: error: $run/$file.jsonl: no such file; see $0" >&2; exit 1; }
done

say "converting $base"
[ -d "$run/base" ] || chimed convert hf-to-megatron --hf "$base" --megatron "$run/base"
tokenizer=$run/base/tokenizer
template=$(sed -n 's/^template: *\([^ ]*\).*/\1/p' "$recipe/rejection.yaml")
template=${template:-chimed}

say "building the corpora"
for part in train heldout; do
  chimed corpus --input "$run/documents/$part.jsonl" --output-prefix "$run/corpus/$part" \
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$tokenizer" --append-eod --clean --dedup near
done
train pretrain

say "packing dialogues"
for part in train heldout; do
  chimed pack sft --input "$run/sft/$part.jsonl" --tokenizer "$tokenizer" --mode "${SFT_MODE:-per-turn}" \
    --template "$template" --sequence-length "$(number sft seq-length)" --output "$run/sft/$part"
done
train sft

say "packing ranked answers"
for part in train valid test; do
  chimed pack rewards --input "$run/reward/$part.jsonl" --tokenizer "$tokenizer" --one-question-per-row \
    --template "$template" --pairing adjacent --sequence-length "$(number reward seq-length)" --output "$run/reward/$part"
done
train reward

say "rejection sampling"
where=$gpus
chimed rejection --config "$recipe/rejection.yaml"
where=$cores

say "exporting"
model=$run/rejection/$(printf 'round-%02d' "$(number rejection rounds)")/train/selected
[ -d "$run/hf" ] || chimed convert megatron-to-hf --megatron "$model" --hf "$run/hf"
chimed verify checkpoint --hf "$run/hf" --megatron "$model" \
  --tensor-parallel "$(number sft tensor-model-parallel-size)"
