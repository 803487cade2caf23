"""Talk to a model in the terminal, or serve its Hugging Face export to OpenAI's clients."""

import argparse

from megatron_chimed.chat.conversation import Conversation
from megatron_chimed.chat.serve import CHAT_KINDS, serve
from megatron_chimed.chat.terminal import talk
from megatron_chimed.commands.common import add_answering, answering_template
from megatron_chimed.inference.open import kinds_text, open_engine, split_name, tokenizer_of
from megatron_chimed.inference.request import FLAGS, SamplingParams
from megatron_chimed.text.renderer import Renderer

EXAMPLE = """examples:
  chimed chat --model hf:runs/demo/hf
  chimed chat --model megatron:runs/demo/sft/run --tokenizer runs/demo/tokenizer/tokenizer.model \\
      --tensor-parallel 2
  printf '头痛怎么办？\\n' | chimed chat --model hf:runs/demo/hf > answer.txt
  chimed chat --model hf:runs/demo/hf --serve --port 8000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--model", required=True, help=kinds_text(CHAT_KINDS))
    parser.add_argument("--system", default="", metavar="TEXT", help="told to the model before all else")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token (0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the tokens that hold this probability (1)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="of an answer (512)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed and questions, the same answers (0)")
    add_answering(parser)
    parser.add_argument("--tokenizer", metavar="PATH", help="megatron: SentencePiece model or Hugging Face folder")
    parser.add_argument("--iteration", type=int, help="megatron: in place of the newest checkpoint")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="megatron, vllm: ranks (1)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 (auto: hf as stored, megatron float32)")
    parser.add_argument("--serve", action="store_true", help="hf: an OpenAI-compatible endpoint on 127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="of --serve (8000)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    params = SamplingParams(args.max_new_tokens, args.temperature, args.top_p, seed=args.seed)
    params.check(names=FLAGS)
    template, more = answering_template(args), {"dtype": args.dtype, "tensor_parallel": args.tensor_parallel}
    if args.serve:
        return serve(args.model, template, port=args.port, seed=args.seed, **more)
    split_name(args.model, CHAT_KINDS)
    tokenizer = tokenizer_of(args.model, args.tokenizer)
    with open_engine(args.model, iteration=args.iteration, batch_size=1, tokenizer=tokenizer, **more) as engine:
        return talk(Conversation(engine, Renderer(template, tokenizer), params, args.system))
