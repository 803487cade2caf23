"""Dialogues whose deciding fact stands beyond half of the context: a patient says at first what he suffers from, talks
of other things, and asks at the end for the department, the drug or the examination of "my illness".

As a program it measures a model on the held-out ones: of the four answers it should give the right one the highest
likelihood by token (25 percent by chance). It writes a JSON line {"distance", "right"} for each dialogue; the distance
is that of the fact from the answer, in tokens.

Example:
    python examples/quickstart/recall.py --model megatron:runs/demo/sft/run --tokenizer runs/demo/tokenizer \\
        --template chimed --dialogues runs/demo/world/recall_test.jsonl --output runs/demo/evaluation/SFT/recall.jsonl
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from world import World

from megatron_chimed.errors import InputError, exit_cleanly
from megatron_chimed.inference.open import open_engine
from megatron_chimed.jsonl import read_json_lines, write_json_lines
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_template import open_template

FIRST = "医生您好，我得了{}。"
ASKED = {  # key of the world -> question, answer
    "department": ("那我这个病应该挂哪个科？", "您这个病应该挂{}。"),
    "drug": ("那我这个病首选什么药？", "您这个病首选{}。"),
    "examination": ("那我这个病先做什么检查？", "您这个病先做{}。"),
}
TALK = (
    "我平时工作比较忙，常常要加班到很晚。", "最近家里事情多，睡得不太好。", "我一个人住，三餐都在外面吃。",
    "孩子在外地上学，我有时放心不下。", "上个月刚换了单位，还不太习惯。", "我以前很少看医生，有点紧张。",
    "这几天天气变化大，出门不太方便。", "我爱人也劝我早点来问一问。", "网上的说法很多，我看得有些糊涂。",
    "我退休以后每天早上会去公园走走。", "春节的时候没有休息好，一直没缓过来。", "我年轻的时候身体一直不错。",
)  # fmt: skip
REPLIES = (
    "好的，我了解了，请您慢慢说。", "嗯，这些情况我都记下来了。", "不要着急，放松一点，心情很重要。",
    "谢谢您告诉我，生活规律确实要紧。", "可以理解，很多人都有同样的感受。", "您说得很清楚，还有别的情况吗？",
)  # fmt: skip
OPTIONS, CHARACTERS = 4, 180
"""So much is said in between, or a little more: over half of the context, and with all else no more than the whole."""


def recall_dialogues(world: World, purpose: str, count: int, splits: tuple[str, ...]) -> Iterator[dict]:
    """Rows {"messages": [{"role", "content"}], "options": four values, "answer": which is right, from 0}, of facts of
    these splits. In those to train on the patient has asked for the illness's other facts, as far as they are of these
    splits, just before: with one question in a dialogue a model of this size has not seen enough of them."""
    draw = world.stream("recall", purpose)
    facts = [(disease, key) for disease in world.diseases for key in ASKED if world.split(disease, key) in splits]
    for _ in range(count):
        disease, key = draw.choice(facts)
        options, right = world.false_values(draw, disease, key, OPTIONS - 1), draw.randrange(OPTIONS)
        options.insert(right, getattr(disease, key))
        texts = [FIRST.format(disease.name) + draw.choice(TALK), draw.choice(REPLIES)]
        while sum(map(len, texts)) < CHARACTERS:
            texts += ["".join(draw.sample(TALK, 2)), draw.choice(REPLIES)]
        question, reply = ASKED[key]
        before = [other for other in ASKED if other != key and world.split(disease, other) in splits]
        for other in draw.sample(before, len(before)) if purpose == "train" else ():
            texts += [ASKED[other][0], ASKED[other][1].format(getattr(disease, other))]
        texts += [question, reply.format(options[right])]
        messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
        yield {"messages": messages, "options": [reply.format(one) for one in options], "answer": right}


def read_pairs(row: dict, renderer: Renderer) -> tuple[int, list[tuple[list[int], list[int]]]]:
    """(tokens from the first turn's end to the answer, (prompt, answer) of each option) of one dialogue."""
    turns = [Turn(one["role"], one["content"]) for one in row["messages"][:-1]]
    prompt, pairs = renderer.render_prompt(turns), []
    for option in row["options"]:
        whole = (*turns, Turn("assistant", option))
        tokens = renderer.render(Dialogue("recall", "recall", whole)).tokens
        pairs.append((prompt.tolist(), tokens[len(prompt) :].tolist()))
    return len(prompt) - len(renderer.render_prompt(turns[:1])), pairs


def main() -> None:
    """Measure a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as of chimed evaluate")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--template", default="chimed")
    parser.add_argument("--dialogues", type=Path, required=True)
    parser.add_argument("--beyond", type=int, default=0, help="leave out those whose fact is not so many tokens away")
    parser.add_argument("--limit", type=int, help="the first so many, for a trial")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = [row for _, row in read_json_lines(args.dialogues)][: args.limit]
    tokenizer = load_tokenizer(args.tokenizer)
    renderer = Renderer(open_template(args.template, args.tokenizer), tokenizer)
    asked = [(row, *read_pairs(row, renderer)) for row in rows]
    asked = [one for one in asked if one[1] > args.beyond]
    if not asked:
        raise InputError(f"{args.dialogues}: no dialogue whose fact is more than {args.beyond} tokens away")
    with open_engine(args.model, batch_size=16, tokenizer=tokenizer) as engine:
        values = iter(engine.loglikelihoods([pair for _, _, pairs in asked for pair in pairs]))
    found = []
    for row, distance, pairs in asked:
        scores = [next(values)[0] / len(answer) for _, answer in pairs]
        found.append({"distance": distance, "right": scores.index(max(scores)) == row["answer"]})
    write_json_lines(args.output, found)
    right = sum(one["right"] for one in found)
    print(f"{args.output}: {right} of {len(found)} right; {len(rows) - len(found)} left out, their fact being nearer")


if __name__ == "__main__":
    exit_cleanly(main)
