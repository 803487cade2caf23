#!/bin/sh
# The quickstart: a synthetic medical world, a tokenizer, an indexed corpus, pre-training, fine-tuning and reward models
# with two tensor-parallel ranks on this machine, and the models for transformers. Run it again to continue after a kill.
# SIZE=n scales the world (default 1).
set -eu
cd "$(dirname "$0")/../.."
size=${SIZE:-1}
folder=runs/demo
[ "$size" = 1 ] || folder=runs/demo-$size
mkdir -p "$folder"

echo "1/9 writing the synthetic medical world to $folder/world"
python examples/quickstart/make_world.py --output "$folder/world" --seed 0 --size "$size"

echo "2/9 training a SentencePiece tokenizer"
python tools/train_tokenizer.py --input "$folder/world/pretrain_train.jsonl" --vocab-size 2000 \
  --output "$folder/tokenizer"

echo "3/9 building the indexed corpora"
for part in train heldout; do
  python tools/preprocess_data.py --input "$folder/world/pretrain_$part.jsonl" --output-prefix "$folder/corpus/$part" \
    --tokenizer-type SentencePieceTokenizer --tokenizer-model "$folder/tokenizer/tokenizer.model" \
    --workers 2 --append-eod --clean --dedup near
done

echo "4/9 pre-training, log in $folder/pretrain.log"
# Two ranks need two GPUs, or run on the CPU.
[ "$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')" -ge 2 ] || export CUDA_VISIBLE_DEVICES=
NPROC=2 launch/torchrun.sh pretrain examples/quickstart/model.yaml examples/quickstart/pretrain.yaml \
  --tokenizer-model "$folder/tokenizer/tokenizer.model" --save "$folder/pretrain" \
  --train-data-path "$folder/corpus/train_text_document" --valid-data-path "$folder/corpus/heldout_text_document" \
  >>"$folder/pretrain.log"

echo "5/9 dialogues of five sources, cleaned and packed"
world=$folder/world
tokenizer=$folder/tokenizer/tokenizer.model
python tools/prepare_sft.py --source chimed="$world/chimed_train.jsonl" --source cmd="$world/cmd_finetune.jsonl" \
  --source mc="$world/mc_train.dialog" --source meddialog="$world/meddialog_train.txt" \
  --source safety="$world/safety_prompts.json" --tokenizer "$tokenizer" --output "$folder/sft/train.jsonl"
python tools/prepare_sft.py --source chimed="$world/chimed_test.jsonl" --source mc="$world/mc_test.dialog" \
  --tokenizer "$tokenizer" --output "$folder/sft/heldout.jsonl"
for part in train heldout; do
  python tools/pack_sft.py --input "$folder/sft/$part.jsonl" --tokenizer "$tokenizer" --sequence-length 256 \
    --output "$folder/sft/$part"
done

echo "6/9 fine-tuning on the answers, log in $folder/sft.log"
NPROC=2 launch/torchrun.sh sft examples/quickstart/model.yaml examples/quickstart/sft.yaml \
  --tokenizer-model "$tokenizer" --load "$folder/pretrain" --save "$folder/sft/run" \
  --train-data-path "$folder/sft/train" --valid-data-path "$folder/sft/heldout" >>"$folder/sft.log"

echo "7/9 answers that are ranked, cleaned and packed: four to a question, and the best and the worst alone"
for part in train valid test; do
  python tools/prepare_rewards.py --source cmd:ranked="$world/ranked_$part.jsonl" --output "$folder/reward/$part.jsonl"
  for pairing in adjacent extremes; do
    python tools/pack_rewards.py --input "$folder/reward/$part.jsonl" --tokenizer "$tokenizer" --sequence-length 512 \
      --pairing "$pairing" --output "$folder/reward/$pairing/$part"
  done
done

echo "8/9 reward models on four ranks and on two, logs in $folder/reward_four.log and reward_two.log"
# A row of pairs holds twice as many questions as one of four answers: half as many rows make the same batch.
reward() {
  NPROC=2 launch/torchrun.sh reward examples/quickstart/model.yaml examples/quickstart/reward.yaml \
    --tokenizer-model "$tokenizer" --load "$folder/sft/run" --save "$folder/reward/$1" \
    --train-data-path "$folder/reward/$2/train" --valid-data-path "$folder/reward/$2/valid" \
    --test-data-path "$folder/reward/$2/test" --micro-batch-size "$3" --global-batch-size "$3" \
    >>"$folder/reward_$1.log"
}
reward four adjacent 4
reward two extremes 2

echo "9/9 exporting to Hugging Face, and comparing both sides"
[ -d "$folder/hf" ] || python tools/convert_checkpoint.py megatron-to-hf --megatron "$folder/sft/run" --hf "$folder/hf"
python tools/verify_checkpoint.py --hf "$folder/hf" --megatron "$folder/sft/run" --tensor-parallel 2 --generate 16
[ -d "$folder/hf_reward" ] ||
  python tools/convert_checkpoint.py megatron-to-hf --megatron "$folder/reward/four" --hf "$folder/hf_reward"
python tools/verify_checkpoint.py --hf "$folder/hf_reward" --megatron "$folder/reward/four" --tensor-parallel 2
python examples/quickstart/summarize.py "$folder"
