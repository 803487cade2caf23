#!/bin/sh
# The quickstart: a synthetic medical world, a tokenizer, an indexed corpus, and pre-training with two tensor-parallel
# ranks on this machine. Run it again to continue after a kill. SIZE=n scales the world (default 1).
set -eu
cd "$(dirname "$0")/../.."
size=${SIZE:-1}
folder=runs/demo
[ "$size" = 1 ] || folder=runs/demo-$size
mkdir -p "$folder"

echo "1/5 writing the synthetic medical world to $folder/world"
python examples/quickstart/make_world.py --output "$folder/world" --seed 0 --size "$size"

echo "2/5 training a SentencePiece tokenizer"
python tools/train_tokenizer.py --input "$folder/world/pretrain_train.jsonl" --vocab-size 2000 \
  --output "$folder/tokenizer"

echo "3/5 building the indexed corpora"
for part in train heldout; do
  python tools/preprocess_data.py --input "$folder/world/pretrain_$part.jsonl" --output-prefix "$folder/corpus/$part" \
    --tokenizer-type SentencePieceTokenizer --tokenizer-model "$folder/tokenizer/tokenizer.model" \
    --workers 2 --append-eod --clean --dedup near
done

echo "4/5 pre-training, log in $folder/pretrain.log"
# Two ranks need two GPUs, or run on the CPU.
[ "$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')" -ge 2 ] || export CUDA_VISIBLE_DEVICES=
NPROC=2 launch/torchrun.sh pretrain examples/quickstart/model.yaml examples/quickstart/pretrain.yaml \
  --tokenizer-model "$folder/tokenizer/tokenizer.model" --save "$folder/pretrain" \
  --train-data-path "$folder/corpus/train_text_document" --valid-data-path "$folder/corpus/heldout_text_document" \
  >>"$folder/pretrain.log"

echo "5/5 exporting to Hugging Face, and comparing both sides"
[ -d "$folder/hf" ] || python tools/convert_checkpoint.py megatron-to-hf --megatron "$folder/pretrain" --hf "$folder/hf"
python tools/verify_checkpoint.py --hf "$folder/hf" --megatron "$folder/pretrain" --tensor-parallel 2 --generate 16
python examples/quickstart/summarize.py "$folder"
