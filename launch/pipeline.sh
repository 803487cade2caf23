#!/bin/sh
# All stages of a recipe in their order. Run it again at any time: what is finished is not done again, and a training
# that was interrupted continues.
#   launch/pipeline.sh examples/ziya2_13b runs/ziya2_13b Ziya2-13B-Base
#   launch/pipeline.sh examples/qwen3_8b runs/qwen3_8b Qwen3-8B
# The folder of the run, which the recipe's YAML files name, holds what the data tools have made:
#   documents/{train,heldout}.jsonl   tools/make_documents.py
#   sft/{train,heldout}.jsonl         tools/prepare_sft.py
#   reward/{train,valid,test}.jsonl   tools/prepare_rewards.py, tools/augment_rewards.py
# Trainings go through LAUNCH (launch/torchrun.sh); on a Slurm cluster, each as a job that is waited for:
#   LAUNCH='sbatch --wait --nodes=2 launch/slurm.sbatch' launch/pipeline.sh ...
# SFT_MODE: per-turn, the paper's, or whole.
set -eu

[ $# = 3 ] || { echo "pipeline.sh: error: expected RECIPE RUN BASE_MODEL; see the head of $0" >&2; exit 1; }
recipe=$1 run=$2 base=$3
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
launch=${LAUNCH:-launch/torchrun.sh}

say() {
  echo "pipeline: $*" >&2
}

# The number of a key in a stage's YAML.
number() {
  sed -n "s/^ *$2: *\([0-9][0-9]*\).*/\1/p" "$recipe/$1.yaml"
}

train() {
  say "training $1"
  # shellcheck disable=SC2086 # LAUNCH may hold options
  $launch "$1" "$recipe/model.yaml" "$recipe/$1.yaml"
}

for file in documents/train documents/heldout sft/train sft/heldout reward/train reward/valid reward/test; do
  [ -f "$run/$file.jsonl" ] || { echo "pipeline.sh: error: $run/$file.jsonl: no such file; see $0" >&2; exit 1; }
done

say "converting $base"
[ -d "$run/base" ] || "$python" tools/convert_checkpoint.py hf-to-megatron --hf "$base" --megatron "$run/base"
tokenizer=$run/base/tokenizer
template=$(sed -n 's/^template: *\([^ ]*\).*/\1/p' "$recipe/rejection.yaml")
template=${template:-chimed}

say "building the corpora"
for part in train heldout; do
  "$python" tools/preprocess_data.py --input "$run/documents/$part.jsonl" --output-prefix "$run/corpus/$part" \
    --tokenizer-type HuggingFaceTokenizer --tokenizer-model "$tokenizer" --append-eod --clean --dedup near
done
train pretrain

say "packing dialogues"
for part in train heldout; do
  "$python" tools/pack_sft.py --input "$run/sft/$part.jsonl" --tokenizer "$tokenizer" --mode "${SFT_MODE:-per-turn}" \
    --template "$template" --sequence-length "$(number sft seq-length)" --output "$run/sft/$part"
done
train sft

say "packing ranked answers"
for part in train valid test; do
  "$python" tools/pack_rewards.py --input "$run/reward/$part.jsonl" --tokenizer "$tokenizer" --one-question-per-row \
    --template "$template" --pairing adjacent --sequence-length "$(number reward seq-length)" --output "$run/reward/$part"
done
train reward

say "rejection sampling"
"$python" tools/rejection_sampling.py --config "$recipe/rejection.yaml"

say "exporting"
model=$run/rejection/$(printf 'round-%02d' "$(number rejection rounds)")/train/selected
[ -d "$run/hf" ] || "$python" tools/convert_checkpoint.py megatron-to-hf --megatron "$model" --hf "$run/hf"
"$python" tools/verify_checkpoint.py --hf "$run/hf" --megatron "$model" \
  --tensor-parallel "$(number sft tensor-model-parallel-size)"
