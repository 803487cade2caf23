"""Figures of a real model on its way through the project, each with what must hold of it.

Example:
    python examples/smollm2/figures.py text --hf runs/smollm2/hf
    python examples/smollm2/figures.py chat --hf runs/smollm2/hf --megatron runs/smollm2/base
    python examples/smollm2/figures.py loss --hf runs/smollm2/hf --tuned runs/smollm2/hf_sft --run runs/smollm2/sft \
        --packed runs/smollm2/heldout
    python examples/smollm2/figures.py reward --run runs/smollm2/reward --control runs/smollm2/reward_control \
        --packed runs/smollm2/ranked/valid

text: what a model says and how well it predicts English, against transformers' own reading of the file, and against
rows of q and k left as llama.cpp has them. chat: `chimed chat` in the model's own chat template against transformers.
loss: of held-out answers before and after fine-tuning, by transformers, and the trainer's own. reward: how many
held-out pairs a reward model orders, and one that was trained on shuffled ranks. Ends with exit code 1 where something
does not hold.
"""

import argparse
import inspect
import math
import subprocess
import sys
from pathlib import Path

import torch
from gguf_folder import installed_gguf, permute

from megatron_chimed.convert.transformers_model import load_model
from megatron_chimed.errors import exit_cleanly
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.records import Turn
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_template import open_template
from megatron_chimed.training.runlog import read_log

ENGLISH = (
    "The heart is a muscular organ that pumps blood through the circulatory system of the body. "
    "It beats about 100,000 times a day. Water boils at 100 degrees Celsius, and freezes at"
)
QUESTIONS = ("Why is the sky blue?", "What does the heart do?", "And how often does it beat?")
ANSWER = 40
"""Tokens of an answer at most."""


def report(holds: bool, text: str) -> bool:
    """Print a line of the report; whether it holds."""
    print(f"{'holds' if holds else 'DOES NOT HOLD':<13} {text}", flush=True)
    return holds


def greedy(model: torch.nn.Module, prompt: list[int], stop: int | None, count: int) -> list[int]:
    """The likeliest continuation by transformers, without what ends it."""
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": stop, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
    return [token for token in found if token != stop]


@torch.no_grad()
def nats(model: torch.nn.Module, ids: list[int]) -> float:
    """Nats per token, of all tokens but the first."""
    tokens = torch.tensor([ids])
    return model(tokens, labels=tokens).loss.item()


def text(hf: Path) -> bool:
    """A model alone: its text, its nats on English, and two other readings of the same file."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_model(hf, "AutoModelForCausalLM", torch.float32), load_tokenizer(hf)
    ids = tokenizer.encode(ENGLISH)
    print(f"{'':<13} {ENGLISH} >>>{tokenizer.decode(greedy(model, ids, None, 24))!r}")
    own = nats(model, ids)
    holds = report(own < 2.5, f"nats per token on these sentences: {own:.3f}, n = {len(ids) - 1}")
    place = installed_gguf()
    other = AutoModelForCausalLM.from_pretrained(place.parent, gguf_file=place.name, dtype=torch.float32).state_dict()
    same = all(torch.equal(weight, other[name]) for name, weight in model.state_dict().items())
    holds &= report(same, "every weight is that of transformers' own reading of the file, to the bit")
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            rows = permute(weight.detach().numpy(), len(weight) // model.config.head_dim)
            weight.data = torch.from_numpy(rows)
    control = nats(model, ids)
    return report(control > own + 1, f"the control, rows of q and k as in the file: {control:.3f}") & holds


def chat(hf: Path, megatron: Path) -> bool:
    """`chimed chat`, over a pipe, greedy and in the model's own chat template, against transformers."""
    from transformers import AutoTokenizer

    tokenizer, theirs = load_tokenizer(hf), AutoTokenizer.from_pretrained(hf)
    model = load_model(hf, "AutoModelForCausalLM", torch.float32)
    renderer = Renderer(open_template("tokenizer", hf), tokenizer)
    turns: list[Turn] = []
    holds = True
    for question in QUESTIONS:
        turns.append(Turn("user", question))
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        holds &= prompt == renderer.render_prompt(turns).tolist()
        answer = greedy(model, prompt, renderer.end_id, ANSWER)
        turns.append(Turn("assistant", tokenizer.decode(answer)))
        print(f"{'':<13} {question} >>> {turns[-1].text!r}")
    report(holds, "each prompt has the ids of apply_chat_template, with the template's own system turn")
    expected = "".join(f"{turn.text}\n" for turn in turns if turn.role == "assistant")
    for name, flags in {
        f"hf:{hf}": [],
        f"megatron:{megatron}": ["--tokenizer", megatron / "tokenizer", "--tensor-parallel", "3"],
    }.items():
        command = [sys.executable, "-m", "megatron_chimed", "chat", "--model", name, "--template", "tokenizer", *flags]
        command += ["--max-new-tokens", str(ANSWER), "--dtype", "float32"]
        done = subprocess.run(command, input="\n".join(QUESTIONS), capture_output=True, text=True, encoding="utf-8")
        same = done.returncode == 0 and done.stdout == expected
        holds &= report(same, f"chimed chat --model {name} says the same" + (f"\n{done.stderr}" if not same else ""))
    return holds


@torch.no_grad()
def answer_loss(folder: Path, packed: Path) -> tuple[float, int]:
    """(mean loss of what is to be learnt, number of its tokens) of packed rows, by transformers on each dialogue."""
    model, rows = load_model(folder, "AutoModelForCausalLM", torch.float32), PackedRows(packed)
    total, count = 0.0, 0
    for first, last in zip(rows.segment_offsets[:-1], rows.segment_offsets[1:], strict=True):
        ids = torch.from_numpy(rows.tokens[first:last].astype("int64"))[None]
        learnt = torch.from_numpy(rows.loss_mask[first:last] == 1)[None, 1:]
        log_p = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        total, count = total - log_p[learnt].sum().item(), count + int(learnt.sum())
    return total / count, count


def last_figure(run: Path, name: str) -> float:
    """A figure of the evaluation at the end of a run."""
    rows = (row for row in read_log(run / "loss.csv") if (row["split"], row["name"]) == ("final_valid", name))
    return [float(row["value"]) for row in rows][-1]


def loss(hf: Path, tuned: Path, run: Path, packed: Path) -> bool:
    """Held-out answers before and after fine-tuning."""
    (before, count), (after, _) = answer_loss(hf, packed), answer_loss(tuned, packed)
    text = f"nats per token of held-out answers: {before:.3f} before, {after:.3f} after"
    holds = report(after < 0.9 * before, f"{text} fine-tuning, n = {count}")
    own = last_figure(run, "lm loss")
    return report(abs(own - after) < 1e-3, f"the trainer's own at TP 3: {own:.4f}, by transformers {after:.4f}") & holds


def reward(run: Path, control: Path, packed: Path) -> bool:
    """The share of held-out pairs in their order, after training on ranks and on shuffled ranks."""
    arrays = PackedRows(packed).arrays
    pairs = len(arrays["segment_rank"]) - len(set(arrays["segment_group"].tolist()))  # neighbours in rank
    good, bad = (last_figure(place, "pair accuracy") for place in (run, control))
    error = math.sqrt((good * (1 - good) + bad * (1 - bad)) / pairs)
    text = f"held-out pairs in their order: {100 * good:.1f}%, after training on shuffled ranks {100 * bad:.1f}%"
    return report(good - bad > 2 * error, f"{text}, n = {pairs}")


def main() -> int:
    """Run the command; 0 where all holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for what in (text, chat, loss, reward):
        one = kinds.add_parser(what.__name__, help=what.__doc__.splitlines()[0])
        for name in inspect.signature(what).parameters:
            one.add_argument(f"--{name}", type=Path, required=True)
        one.set_defaults(what=what)
    args = vars(parser.parse_args())
    del args["kind"]
    return int(not args.pop("what")(**args))


if __name__ == "__main__":
    exit_cleanly(main)
