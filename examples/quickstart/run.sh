#!/bin/sh
# The whole regime on a synthetic medical world, with two tensor-parallel ranks on this machine: pre-training, supervised
# fine-tuning, reward models, two rounds of rejection sampling, export, evaluation, report. Run it again to continue
# after a kill.
#   SIZE=n     scales the world (default 1), in runs/demo-n
#   SIZE=tiny  the smallest world and short trainings, to see that everything runs: its figures say nothing
#   FAMILY=qwen3  in place of llama: norms of queries and keys, the template qwen3 and its tokens, in runs/demo-qwen3
#   LORA=1     also the same fine-tuning and reward model with LoRA's adapters, beside the full ones
#   DPO=1      also preference optimization: on the four ranks, on ranks at random, and a round on samples with its control
#   FORGET=1   also a later fine-tuning on exercises alone, without and with replay
#   OUTPUT=dir in place of runs/demo
set -eu
cd "$(dirname "$0")/../.."
size=${SIZE:-1}
folder=runs/demo
[ "$size" = 1 ] || folder=runs/demo-$size
family=${FAMILY:-llama}
case $family in
  llama) ;;
  qwen3) folder=$folder-$family ;;
  *) echo "run.sh: error: FAMILY=$family: expected llama or qwen3" >&2; exit 1 ;;
esac
folder=${OUTPUT:-$folder}
recipe=examples/quickstart
here=$recipe
mkdir -p "$folder"

if [ "$size$family" != 1llama ] || [ "$folder" != runs/demo ]; then # the same recipe with other paths and numbers
  recipe=$folder/recipe
  mkdir -p "$recipe"
  for file in "$here"/*.yaml; do
    sed "s#runs/demo/#$folder/#g; s#$here/\(model\|rejection_sft\|rejection_dpo\).yaml#$recipe/\1.yaml#; s#--size, \"1\"#--size, \"$size\"#" \
      "$file" >"$recipe/${file##*/}"
  done
fi
tokenizer=$folder/tokenizer/tokenizer.model kind=SentencePieceTokenizer template=chimed
if [ "$family" = qwen3 ]; then
  tokenizer=$folder/tokenizer-qwen3 kind=HuggingFaceTokenizer template=qwen3
  sed -i "s#$folder/tokenizer/tokenizer.model#$tokenizer#; s/SentencePieceTokenizer/$kind/; \
    s/^tokenizer: .*/&\ntemplate: $template/; s/norm-epsilon: .*/norm-epsilon: 1e-6\n  qk-layernorm: true/" "$recipe"/*.yaml
fi
limit=60
if [ "$size" = tiny ]; then
  size=0.34 limit=12
  sed -i "s/train-iters: .*/train-iters: 300/" "$recipe/pretrain.yaml" # a tenth of it, as of all others
  sed -i "s/\"tiny\"/\"$size\"/; s/\(train-iters\|lr-decay-iters\|lr-warmup-iters\): \([0-9]*\)0\b/\1: \2/; \
    s/eval-interval: .*/eval-interval: 10/; s/epochs: 2/epochs: 1/; s/eval-iters: .*/eval-iters: 1/; \
    s/\( count\|reference_nll_count\): .*/\1: 16/; s/ n: 8/ n: 4/; s/max_tokens: .*/max_tokens: 32/" "$recipe"/*.yaml
fi

# lora STAGE: the stage with adapters. They are started from nothing, so they learn at a higher rate.
lora() {
  sed "s/  lr: .*/  lr: 3e-3/; s/  min-lr: .*/  min-lr: 3e-4/; s/^chimed:/&\n  lora: {rank: 16, alpha: 32}/" \
    "$recipe/$1.yaml" >"$folder/lora_$1.yaml"
}
# later NAME [LINE]: settings of a later fine-tuning, which watches the loss of dialogues; LINE: another one of chimed:.
later() {
  sed "s#^chimed:#&\n  valid: {dialogues: $sft/heldout-512}${2:+\n  $2}#" "$recipe/sft.yaml" >"$folder/$1.yaml"
}
number=0 title='' steps=$(grep -c '^step ' "$0")
[ -z "${LORA:-}" ] || steps=$((steps + 1))
[ -z "${DPO:-}" ] || steps=$((steps + 2))
[ -z "${FORGET:-}" ] || steps=$((steps + 1))
# step TITLE: begins a step, and writes down the seconds of the one before.
step() {
  now=$(date +%s)
  [ -z "$title" ] || printf '%s\t%s\n' "$title" $((now - began)) >>"$folder/seconds.tsv"
  title=$1 began=$now number=$((number + 1))
  [ "$title" = end ] || echo "$number/$((steps - 1)) $title"
}

# train PLACE STAGE [ARGUMENT ...]: a training with two ranks, on two GPUs where there are two, else on the CPU. One that
# has all its iterations starts no ranks.
[ "$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')" -ge 2 ] || export CUDA_VISIBLE_DEVICES=
train() {
  place=$folder/$1 stage=$2
  shift 2
  mkdir -p "${place%/*}"
  NPROC=2 launch/torchrun.sh "$stage" "$recipe/model.yaml" "${settings:-$recipe/$stage.yaml}" --save "$place" "$@" >>"$place.log"
}

world=$folder/world

step "the synthetic medical world, a tokenizer and indexed corpora"
python "$here/make_world.py" --output "$world" --seed 0 --size "$size" >"$folder/world.log"
python tools/train_tokenizer.py --input "$world/pretrain_train.jsonl" --vocab-size 2000 --output "$folder/tokenizer"
[ "$family" = llama ] || [ -d "$tokenizer" ] || python - <<END
from transformers import AutoTokenizer
made = AutoTokenizer.from_pretrained("$folder/tokenizer", local_files_only=True)
made.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
made.add_tokens(["<think>", "</think>"])
made.save_pretrained("$tokenizer")
END
for part in train heldout; do
  python tools/preprocess_data.py --input "$world/pretrain_$part.jsonl" --output-prefix "$folder/corpus/$part" \
    --tokenizer-type "$kind" --tokenizer-model "$tokenizer" --workers 2 --append-eod --clean --dedup near
done

step "the base model: initial weights, which nothing has been learnt with"
train base pretrain --train-iters 1 --lr 0.0 --min-lr 0.0 --lr-warmup-iters 0 --eval-iters 0

step "pre-training"
train pretrain pretrain --load "$folder/base" --finetune

step "dialogues of five sources and exercises, cleaned and packed"
sft=$folder/sft
python tools/prepare_sft.py --source chimed="$world/chimed_train.jsonl" --source cmd="$world/cmd_finetune.jsonl" \
  --source mc="$world/mc_train.dialog" --source meddialog="$world/meddialog_train.txt" \
  --source safety="$world/safety_prompts.json" --tokenizer "$tokenizer" --output "$sft/dialogues.jsonl"
python tools/prepare_sft.py --source exercises:cmd="$world/exercises.jsonl" --source recall:auto="$world/recall_train.jsonl" \
  --dedup exact --tokenizer "$tokenizer" --output "$sft/exercises.jsonl"
python tools/prepare_sft.py --source chimed="$world/chimed_test.jsonl" --source mc="$world/mc_test.dialog" \
  --tokenizer "$tokenizer" --output "$sft/heldout.jsonl"
for length in 512 256; do
  python tools/pack_sft.py --input "$sft/dialogues.jsonl" "$sft/exercises.jsonl" --tokenizer "$tokenizer" \
    --template "$template" --sequence-length "$length" --output "$sft/train-$length"
  python tools/pack_sft.py --input "$sft/heldout.jsonl" --tokenizer "$tokenizer" --sequence-length "$length" \
    --template "$template" --output "$sft/heldout-$length"
done

step "supervised fine-tuning of the pre-trained model"
train sft/run sft

step "for comparison: the same fine-tuning without pre-training"
train sft/alone sft --load "$folder/base"

step "for comparison: the same fine-tuning with half of the context"
train sft/half sft --train-data-path "$sft/train-256" --valid-data-path "$sft/heldout-256" \
  --seq-length 256 --micro-batch-size 4 --global-batch-size 4

if [ "${FORGET:-}" ]; then
  step "for comparison: a later fine-tuning on exercises alone, without and with replay"
  python tools/pack_sft.py --input "$sft/exercises.jsonl" --tokenizer "$tokenizer" --template "$template" \
    --sequence-length 512 --output "$sft/exercises-512"
  later later
  later later_replay "replay: {data: $sft/train-512, share: 0.25}"
  for name in later later_replay; do
    settings=$folder/$name.yaml train "sft/$name" sft --load "$sft/run" --train-data-path "$sft/exercises-512"
  done
fi

step "ranked answers, cleaned and packed: four to a question, and the best and the worst alone"
for part in train valid test; do
  python tools/prepare_rewards.py --source cmd:ranked="$world/ranked_$part.jsonl" --output "$folder/reward/$part.jsonl"
  for pairing in adjacent extremes; do
    python tools/pack_rewards.py --input "$folder/reward/$part.jsonl" --tokenizer "$tokenizer" --sequence-length 512 \
      --template "$template" --pairing "$pairing" --output "$folder/reward/$pairing/$part"
  done
done

step "reward models on four ranks, and on two"
# iterations PAIRING ROWS: of so many rows each, which take in all questions held out.
iterations() {
  rows=$(sed -n 's/^  "rows": \([0-9]*\),$/\1/p' "$folder/reward/$1/valid/manifest.json" \
    "$folder/reward/$1/test/manifest.json" | sort -n | tail -n 1)
  echo $(((rows + $2 - 1) / $2))
}
train reward/four reward --eval-iters "$(iterations adjacent 2)"
# A row of pairs holds nearly twice as many questions as one of four answers: half as many rows make the same batch.
train reward/two reward --train-data-path "$folder/reward/extremes/train" \
  --valid-data-path "$folder/reward/extremes/valid" --test-data-path "$folder/reward/extremes/test" \
  --micro-batch-size 1 --global-batch-size 1 --eval-iters "$(iterations extremes 1)"

if [ "${LORA:-}" ]; then
  step "for comparison: fine-tuning and a reward model with LoRA"
  lora sft
  lora reward
  settings=$folder/lora_sft.yaml train sft/lora sft
  settings=$folder/lora_reward.yaml train reward/lora reward --eval-iters "$(iterations adjacent 2)"
fi

if [ "${DPO:-}" ]; then
  step "for comparison: preference optimization on four ranks, and on the same ranks shuffled"
  python tools/pack_rewards.py --input "$folder/reward/train.jsonl" --tokenizer "$tokenizer" --sequence-length 512 \
    --template "$template" --shuffle-ranks --output "$folder/reward/shuffled/train"
  python tools/compute_reference.py --packed "$folder"/reward/adjacent/* "$folder/reward/shuffled/train" \
    --model "megatron:$sft/run" --tensor-parallel 2
  train dpo/run dpo --eval-iters "$(iterations adjacent 2)"
  train dpo/shuffled dpo --train-data-path "$folder/reward/shuffled/train" --eval-iters "$(iterations adjacent 2)"

  step "for comparison: a round of preference optimization on samples, with a random control"
  sed "s#^output: .*#output: $folder/rejection_dpo#; s#rejection_sft.yaml#rejection_dpo.yaml#; s/^rounds: .*/rounds: 1/; \
    s/^training:/&\n  method: dpo/" "$recipe/rejection.yaml" >"$folder/rejection_dpo.yaml"
  python tools/rejection_sampling.py --config "$folder/rejection_dpo.yaml"
fi

step "two rounds of rejection sampling, with a random control"
python tools/rejection_sampling.py --config "$recipe/rejection.yaml"
final=$folder/rejection/round-02/train

step "export to Hugging Face, and comparison of both sides"
# Two at a time.
xargs -P 2 -L 1 sh "$here/export.sh" <<END
"$final/selected" "$folder/hf"
"$folder/reward/four" "$folder/hf_reward"
$([ -z "${LORA:-}" ] || echo "\"$sft/lora\" \"$folder/hf_lora\" --merge")
END

step "evaluation of every model, two at a time"
# A line for each model. Each has one rank, and starting takes as long as answering.
OMP_NUM_THREADS=1 xargs -P 2 -L 1 python tools/evaluate.py --tokenizer "$tokenizer" --template "$template" --runs 1 \
  --limit "$limit" --max-new-tokens 48 --batch-size 32 --tasks ceval="$world/multiple_choice" \
  ccks2019="$world/ner_test.jsonl,$world/ner_dev.jsonl" chimed="$world/chimed_test.jsonl" mc="$world/mc_test.dialog" \
  scale="$world/scale.yaml" <<END >>"$folder/evaluation.log"
--name base --model "megatron:$folder/base" --output "$folder/evaluation/base"
--name pre-training --model "megatron:$folder/pretrain" --output "$folder/evaluation/pre-training"
--name SFT --model "megatron:$sft/run" --output "$folder/evaluation/SFT"
--name "rejection sampling" --model "megatron:$final/selected" --output "$folder/evaluation/rejection sampling"
--name "random control" --model "megatron:$final/control" --output "$folder/evaluation/random control"
--name "SFT alone" --model "megatron:$sft/alone" --output "$folder/evaluation/SFT alone"
$([ -z "${DPO:-}" ] || echo "--name DPO --model \"megatron:$folder/dpo/run\" --output \"$folder/evaluation/DPO\"")
$([ -z "${DPO:-}" ] || echo "--name \"DPO, shuffled\" --model \"megatron:$folder/dpo/shuffled\" --output \"$folder/evaluation/DPO, shuffled\"")
$([ -z "${LORA:-}" ] || echo "--name LoRA --model \"megatron:$sft/lora\" --output \"$folder/evaluation/LoRA\"")
--name "half context" --model "megatron:$sft/half" --output "$folder/evaluation/half context"
END

step "facts that stand beyond half of the context"
OMP_NUM_THREADS=1 xargs -P 2 -L 1 python "$here/recall.py" --tokenizer "$tokenizer" --template "$template" --beyond 256 \
  --dialogues "$world/recall_test.jsonl" <<END >>"$folder/evaluation.log"
--model "megatron:$sft/run" --output "$folder/evaluation/SFT/recall.jsonl"
--model "megatron:$sft/half" --output "$folder/evaluation/half context/recall.jsonl"
END

step "report"
python "$here/report.py" "$folder"
step end
