"""A row on the screen: what is coloured is what is learnt, and no text steers the terminal or the page."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.chatml import chatml_renderer, write_chatml
from support.corpora import call, call_here
from support.dialogues import KINDS, make_dialogue, make_dialogues, make_renderer, make_tokenizer, write_dialogues

from megatron_chimed.packing import show
from megatron_chimed.packing.dialogues import DialogueRowOptions, pack_dialogues
from megatron_chimed.packing.packed_rows import PackedRows
from megatron_chimed.records import Dialogue, Turn

HOSTILE = make_dialogue("头痛\x1b[2J\u202e<b>&amp;</b>«</s>", "服用<script>x</script>\n检查\x07", number=7)


def pack(folder: Path, kind: str, dialogues, length=512) -> PackedRows:
    renderer = make_renderer(kind, folder)
    path = folder / kind / "tokenizer.model" if kind in ("sentencepiece", "dummy_prefix") else folder / kind
    source = write_dialogues(folder / "in.jsonl", dialogues)
    options = DialogueRowOptions(length, progress=False)
    pack_dialogues([str(source)], folder / "packed", renderer, options, tokenizer_path=str(path))
    return PackedRows(folder / "packed")


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_the_row_s_tokens_cut_where_the_mask_changes_and_at_boundaries(tmp_path, kind):
    dialogues = make_dialogues(40, most_words=6)
    packed = pack(tmp_path, kind, dialogues)
    tokenizer = show.packing_tokenizer(packed)
    several = 0
    for row in range(len(packed)):
        segments, padding = show.read_row(packed, row, tokenizer)
        numbers = packed.segments(row)
        lengths = [int(packed.segment_offsets[number + 1] - packed.segment_offsets[number]) for number in numbers]
        assert padding == 512 - sum(lengths)
        for segment, number, length in zip(segments, numbers, lengths, strict=True):
            dialogue = dialogues[packed.arrays["segment_dialogue"][number]]
            assert f" {length} tokens" in segment.title and f"source {dialogue.source}" in segment.title
            several += len(dialogue.turns) > 2
            assert [run.boundary for run in segment.runs] == [True, False, False, True] * (len(dialogue.turns) // 2)
            assert [run.learnt for run in segment.runs] == [False, False, True, True] * (len(dialogue.turns) // 2)
            for place, turn in enumerate(dialogue.turns):
                text = f"[human]:{turn.text}\n[bot]:" if place % 2 == 0 else turn.text
                ids = tokenizer.encode(text)
                assert segment.runs[1 + 4 * (place // 2) + place % 2].text == tokenizer.decode(ids)
    assert several > 10


def test_without_colours_marks_enclose_what_is_learnt(tmp_path):
    packed = pack(tmp_path, "sentencepiece", [make_dialogue("头痛", "服用", "发热", "检查")], 64)
    text = show.to_terminal(*show.read_row(packed, 0, show.packing_tokenizer(packed)), colour=False)
    body = "<BOS>[human]:头痛\n[bot]:«服用<EOS>»<BOS>[human]:发热\n[bot]:«检查<EOS>»"
    assert body in text and "\x1b" not in text and re.search(r"--- padding: \d+ tokens", text)


@pytest.mark.parametrize("thinking", ["train", "mask"])
def test_system_turn_thinking_and_what_is_not_to_be_learnt_are_seen(tmp_path, thinking):
    folder = write_chatml(tmp_path / "tokenizer", eos="<|endoftext|>")
    turns = (Turn("system", "你是<|im_end|>"), Turn("user", "头痛"), Turn("assistant", "检查", learn=False))
    turns += (Turn("user", "发热"), Turn("assistant", "服用", "三次"))
    source = write_dialogues(tmp_path / "in.jsonl", [Dialogue("a", "b", turns)])
    options = DialogueRowOptions(512, progress=False)
    renderer = chatml_renderer(folder, thinking=thinking)
    pack_dialogues([str(source)], tmp_path / "packed", renderer, options, tokenizer_path=str(folder))
    packed = PackedRows(tmp_path / "packed")
    text = show.to_terminal(*show.read_row(packed, 0, show.packing_tokenizer(packed)), colour=False)
    thought = "<think>\n三次\n</think>\n\n"
    learnt = f"«{thought}服用<|im_end|>»" if thinking == "train" else f"{thought}«服用<|im_end|>»"
    start, end = "<|im_start|>", "<|im_end|>\n"
    history = f"{start}system\n你是<|im_end|>{end}{start}user\n头痛{end}{start}assistant\n检查{end}"
    assert f"{history}{start}user\n发热{end}{start}assistant\n{learnt}\n" in text
    runs = show.read_row(packed, 0, renderer.tokenizer)[0][0].runs
    assert [run.text for run in runs if run.boundary].count("<|im_end|>") == 5  # not the one that a person wrote


def test_colours_say_the_same_as_the_marks(tmp_path):
    packed = pack(tmp_path, "sentencepiece", [make_dialogue("头痛", "服用\n检查")], 64)
    text = show.to_terminal(*show.read_row(packed, 0, show.packing_tokenizer(packed)), colour=True)
    learnt = show.COLOURS[False, True]
    assert f"{learnt}服用{show.RESET}\n{learnt}检查{show.RESET}" in text
    assert f"{show.COLOURS[True, True]}<EOS>{show.RESET}" in text
    assert f"{show.COLOURS[True, False]}<BOS>{show.RESET}[human]:头痛\n[bot]:" in text


class Page(HTMLParser):
    """Tags, and the text inside spans by their class."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.spans, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append((tag, dict(attributes).get("class")))

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "span":
            self.spans.append((self.open[-1][1], data))


@pytest.mark.parametrize("kind", ["sentencepiece", "hugging_face"])
def test_no_text_steers_the_terminal_or_the_page(tmp_path, kind):
    packed = pack(tmp_path, kind, [HOSTILE], 512)
    row = show.read_row(packed, 0, show.packing_tokenizer(packed))
    plain, page = show.to_terminal(*row, colour=False), show.to_html(*row, "<i>title")
    for text in (plain, page, re.sub(r"\x1b\[[\d;]*m", "", show.to_terminal(*row, colour=True))):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", text)
        assert "\\x1b[2J\\u202e" in text and "\\x07" in text
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "p",
        "span",
        "pre",
    }
    assert not any({"src", "href"} & set(attributes) for _, attributes in parsed.tags)
    assert "http" not in page, "the page needs something from elsewhere"
    learnt = "".join(data for name, data in parsed.spans[3:] if name == "learnt")
    assert learnt == "服用<script>x</script>\n检查\\x07"


def test_the_tool_shows_a_row_and_writes_a_page(tmp_path):
    packed = pack(tmp_path, "sentencepiece", make_dialogues(30, most_words=6))
    shown = call("show_batch.py", packed.folder, "--row", len(packed) - 1)
    assert shown.returncode == 0 and "«" in shown.stdout and "\x1b" not in shown.stdout, "colours into a pipe"
    coloured = call_here("show_batch.py", packed.folder, "--color", "always")
    assert coloured.returncode == 0 and show.COLOURS[False, True] in coloured.stdout
    written = call_here("show_batch.py", packed.folder, "--row", 0, "--html", tmp_path / "row.html")
    assert written.returncode == 0 and (tmp_path / "row.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_tool_answers_bad_input_with_one_line_and_exit_code_1(tmp_path):
    packed = pack(tmp_path, "sentencepiece", make_dialogues(5))
    make_tokenizer("dummy_prefix", tmp_path)
    cases = [
        ([packed.folder, "--row", 99], "row 99"),
        ([packed.folder, "--row", -1], "row -1"),
        ([tmp_path / "none"], "no such folder"),
        ([packed.folder, "--tokenizer", tmp_path / "dummy_prefix/tokenizer.model"], "not the tokenizer that"),
        ([packed.folder, "--tokenizer", tmp_path / "none.model"], "none.model: no such file"),
    ]
    for flags, expected in cases:
        result = call_here("show_batch.py", *flags)
        assert result.returncode == 1 and expected in result.stderr and result.stderr.count("\n") == 1
