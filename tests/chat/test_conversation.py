"""Talking to a model: text that is never broken, a history that fits, a terminal and a pipe that behave; no torch."""

import io
import json
import signal
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chatml import chatml_renderer, write_chatml
from support.dialogues import KINDS, make_tokenizer

from megatron_chimed.chat import terminal
from megatron_chimed.chat.conversation import Conversation
from megatron_chimed.chat.text import TextStream
from megatron_chimed.errors import InputError
from megatron_chimed.inference.request import FLAGS, SamplingParams
from megatron_chimed.records import Turn
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.slots import CONTENT, texts
from megatron_chimed.text.template import Template
from megatron_chimed.text.tokenizer import load_tokenizer

LONG = "".join(f"{number}头痛" for number in range(150))
HARD = [
    "头痛三次。建议检查",
    "龘靐齉 生僻字𠮷",
    " 前后  空格 ",
    "\n换行\n\n",
    "😀👨‍👩‍👧 表情",
    "\ufffd",
    "a b  c",
    "</s>",
]


def byte_level(folder):
    """A Hugging Face folder whose pieces are bytes in another spelling, as those of GPT-2."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir()
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(HARD[:1] * 3, vocab_size=270, special_tokens=["<s>", "</s>"], show_progress=False)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: make_tokenizer(kind, folder) for kind in KINDS} | {"byte_level": byte_level(folder / "byte_level")}


@pytest.fixture(scope="module")
def renderer(tokenizers) -> Renderer:
    return Renderer(Template(), tokenizers["sentencepiece"])


def streamed(tokenizer, ids) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.add(token) for token in ids), stream.rest()]


@given(numbers=st.lists(st.integers(0, 419), max_size=25))
def test_the_pieces_of_any_tokens_are_their_text_and_none_is_taken_back(tokenizers, numbers):
    for tokenizer in tokenizers.values():
        ids = [number % tokenizer.vocab_size for number in numbers]
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", [*KINDS, "byte_level"])
def test_text_comes_as_soon_as_it_is_certain_and_never_broken(tokenizers, kind):
    tokenizer = tokenizers[kind]
    for text in (text for text in HARD if tokenizer.decode(tokenizer.encode(text)) == text):
        pieces = streamed(tokenizer, tokenizer.encode(text))
        assert "".join(pieces) == text
        assert text == "\ufffd" or not any("\ufffd" in piece for piece in pieces)
    pieces = streamed(tokenizer, tokenizer.encode("头痛三次建议检查"))
    assert sum(map(bool, pieces)) > 1 and not pieces[-1]  # nothing waits for the end


class Scripted:
    """A model that says what it is told to, token by token, and remembers what it was asked."""

    def __init__(self, renderer: Renderer, *answers: str, max_positions: int = 400, during=lambda number: None):
        self.renderer, self.answers, self.max_positions, self.during = renderer, list(answers), max_positions, during
        self.asked, self.drawn = [], 0

    def stream(self, request, stop):
        """The next answer, cut to the request's limit; EOS behind it. `during` is called before each token."""
        self.asked.append(request)
        said = self.renderer.tokenizer.encode(self.answers.pop(0), parse_special=True)
        tokens = [*said, self.renderer.end_id]
        assert self.renderer.end_id in stop
        for number, token in enumerate(tokens[: request.params.max_tokens]):
            self.during(number)
            self.drawn += 1
            yield token


def conversation(renderer, *answers: str, system: str = "", **model) -> Conversation:
    options = SamplingParams(temperature=0.5, top_p=0.9, max_tokens=100, seed=7)
    return Conversation(Scripted(renderer, *answers, **model), renderer, options, system)


def test_each_prompt_is_that_of_the_training_with_settings_and_seeds(renderer):
    talk = conversation(renderer, "建议检查", "", "三次")
    said = ["".join(talk.answer(question)) for question in ("头痛", "</s>服用", "血压")]
    assert said == ["建议检查", "", "三次"] and not talk.cut
    turns = [Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(
        ["头痛", "建议检查", "</s>服用", "", "血压"])]  # fmt: skip
    for number, request in enumerate(talk.engine.asked):
        assert request.prompt == renderer.render_prompt(turns[: 2 * number + 1]).tolist()
        assert (request.params.temperature, request.params.top_p, request.params.max_tokens) == (0.5, 0.9, 100)
        assert request.params.seed == 7 + number


@pytest.fixture(scope="module", params=["seen", "hidden", "spelled"])
def qwen3(request, tmp_path_factory) -> Renderer:
    """A template with a system turn and a place for thinking, between tokens that decoding shows or leaves out, or
    between texts of many tokens."""
    if request.param == "spelled":
        slots = {"system": (CONTENT, *texts("\n")), "system_in": "turn"}
        slots["thinking"] = (*texts("<think>\n"), CONTENT, *texts("\n</think>\n\n"))
        return Renderer(replace(Template(), **slots), make_tokenizer("sentencepiece", tmp_path_factory.mktemp("plain")))
    folder = write_chatml(
        tmp_path_factory.mktemp("qwen3") / "t", special=request.param == "hidden", eos="<|endoftext|>"
    )
    return chatml_renderer(folder, think=True)


def test_the_system_text_is_a_turn_where_the_template_has_one_and_else_a_line(renderer, qwen3):
    for some in (renderer, qwen3, replace_template(renderer, system=())):
        talk = conversation(some, "建议检查", "三次", system="你是医生")
        said = ["".join(talk.answer(question)) for question in ("头痛", "血压")]
        assert said == ["建议检查", "三次"] and not talk.cut
        turns = [Turn("system", "你是医生"), Turn("user", "头痛"), Turn("assistant", "建议检查"), Turn("user", "血压")]
        if some is not qwen3:
            turns = [Turn("user", "你是医生\n头痛"), *turns[2:]]
        assert talk.engine.asked[1].prompt == some.render_prompt(turns).tolist()
        room = len(talk.engine.asked[1].prompt) + 5
        talk.engine.max_positions, talk.engine.answers = min(2 * room, 100 + room), ["服用"]
        assert "".join(talk.answer("头痛")) == "服用" and talk.left_out == 1
        turns = [turns[0], Turn("user", "血压"), Turn("assistant", "三次"), Turn("user", "头痛")]
        if some is not qwen3:
            turns[:2] = [Turn("user", "你是医生\n血压")]
        assert talk.engine.asked[2].prompt == some.render_prompt(turns).tolist()


def replace_template(renderer: Renderer, **changes) -> Renderer:
    return Renderer(replace(renderer.template, **changes), renderer.tokenizer)


def test_thinking_is_no_part_of_the_answer_nor_of_the_history(qwen3, talked):
    thought = "<think>\n头痛三次\n</think>\n\n建议检查血压"
    talk = conversation(qwen3, thought, "血压", "<think>\n头")
    pieces = list(talk.answer("头痛"))
    assert "".join(pieces) == "建议检查血压" and talk.thinking == "头痛三次" and sum(map(bool, pieces)) > 1
    assert list(talk.answer("服用")) and not talk.thinking
    turns = [Turn("user", "头痛"), Turn("assistant", "建议检查血压"), Turn("user", "服用")]
    assert talk.engine.asked[1].prompt == qwen3.render_prompt(turns).tolist()
    assert "".join(talk.answer("发热")) == "" and talk.thinking == "头"  # it never came to an answer
    for person in (True, False):
        code, out, notes = talked(conversation(qwen3, thought), "头痛\n".encode(), person=person)
        assert (code, out) == (0, "建议检查血压\n") and ("\n头痛三次\n\n" in notes) == person


def test_an_answer_comes_while_it_is_drawn_and_what_was_said_stays_when_it_is_stopped(renderer):
    talk = conversation(renderer, "建议检查血压", "龘头痛")
    pieces = talk.answer("头痛")
    first = next(piece for piece in pieces if piece)
    assert talk.engine.drawn == 1
    pieces.close()
    assert talk.exchanges == [("头痛", first)]
    unspoken = talk.answer("血压")
    assert next(unspoken) == ""  # the first byte of a character
    unspoken.close()
    assert len(talk.exchanges) == 1


def test_an_answer_that_the_limit_ends_is_called_cut(renderer):
    talk = conversation(renderer, LONG, "头痛")
    assert "".join(talk.answer("头痛")) and talk.cut
    assert "".join(talk.answer("头痛")) and not talk.cut


def test_a_history_that_outgrows_the_context_loses_its_oldest_turns_and_no_other(renderer):
    system = "你是医生"
    talk = conversation(renderer, *["建议检查"] * 30, system=system, max_positions=240)
    lost = []
    for number in range(30):
        assert "".join(talk.answer(f"{number}头痛")) == "建议检查"
        lost.append(talk.left_out)
        prompt = talk.engine.asked[-1].prompt
        texts = [t for n in range(talk.left_out, number) for t in (f"{n}头痛", "建议检查")] + [f"{number}头痛"]
        texts[0] = f"{system}\n{texts[0]}"
        turns = [Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
        assert prompt == renderer.render_prompt(turns).tolist()
        assert len(prompt) <= 140
    assert lost[0] == 0 and lost == sorted(lost) and lost[-1] > 20
    assert len(talk.exchanges) == 30


def test_a_question_that_does_not_fit_is_refused_and_nothing_is_changed(renderer):
    talk = conversation(renderer, "建议检查", "三次")
    assert list(talk.answer("头痛"))
    for question, message in ((LONG, r"has \d+ tokens.*make it"), ("头\udce5痛", "not text in UTF-8")):
        with pytest.raises(InputError, match=message):
            list(talk.answer(question))
    assert talk.exchanges == [("头痛", "建议检查")] and len(talk.engine.asked) == 1
    assert "".join(talk.answer("头痛")) == "三次"


@pytest.mark.parametrize("wrong", [{"temperature": float("nan")}, {"top_p": 0}, {"max_tokens": 0}, {"seed": -1}])
def test_a_wrong_setting_is_one_line_with_its_flag(wrong):
    flag = next(iter(wrong)).replace("max_tokens", "max_new_tokens").replace("_", "-")
    with pytest.raises(InputError, match=rf"^--{flag} is [^\n]*; expected [^\n]*$"):
        SamplingParams(**wrong).check(names=FLAGS)


@pytest.fixture(autouse=True)
def interrupts_are_exceptions():
    """As in any program; where tests run in the background they are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Terminal(io.TextIOWrapper):
    """A text stream that is a terminal."""

    def isatty(self) -> bool:
        """Always."""
        return True


@pytest.fixture
def talked(monkeypatch, capsys):
    """Runs a conversation over given input; (exit code, stdout, stderr)."""

    def talk(what: Conversation, asked: bytes, person: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", (Terminal if person else io.TextIOWrapper)(io.BytesIO(asked)))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO(), encoding="ascii"))
        code = terminal.talk(what)
        sys.stdout.flush()
        return code, out.getvalue().decode(), capsys.readouterr().err

    return talk


def test_over_a_pipe_nothing_is_printed_but_the_answers(renderer, talked):
    talk = conversation(renderer, "建议检查", "三次", "血压")
    code, out, notes = talked(talk, "头痛\n\n  怎么办 \n/reset\n服用".encode())
    assert (code, out) == (0, "建议检查\n三次\n血压\n")
    assert notes.splitlines()[0] == terminal.DISCLAIMER
    assert talk.exchanges == [("服用", "血压")]


def test_over_a_pipe_bad_input_ends_it(renderer, talked):
    with pytest.raises(InputError, match="not text in UTF-8"):
        talked(conversation(renderer, "建议检查"), b"\xe5\xa4\n")


def test_the_commands_do_what_they_say(renderer, talked):
    talk = conversation(renderer, "建议检查", "三次", "血压", "医生")
    lines = ["头痛", "服用", "/undo", "发热", "/help", "/nothing", "/system 你是医生", "/undo", "头痛", "/exit", "服用"]
    code, out, notes = talked(talk, "\n".join(lines).encode(), person=True)
    assert (code, out) == (0, "建议检查\n三次\n血压\n医生\n")
    prompts = [request.prompt for request in talk.engine.asked]
    kept = [Turn("user", "头痛"), Turn("assistant", "建议检查"), Turn("user", "发热")]
    assert prompts[2] == renderer.render_prompt(kept).tolist()
    assert prompts[3] == renderer.render_prompt([Turn("user", "你是医生\n头痛")]).tolist()
    assert terminal.HELP in notes and "/nothing is no command" in notes and "nothing to undo" in notes


def test_at_a_terminal_a_question_that_is_too_long_is_a_line_and_the_conversation_goes_on(renderer, talked):
    code, out, notes = talked(conversation(renderer, "三次"), (LONG + "\n头痛\n").encode(), person=True)
    assert (code, out) == (0, "三次\n") and "make it" in notes


def test_it_says_once_that_the_oldest_turns_are_left_out(renderer, talked):
    talk = conversation(renderer, *["建议检查"] * 24, max_positions=240)
    code, out, notes = talked(talk, ("\n".join(["头痛"] * 12) + "\n/reset\n" + "头痛\n" * 12).encode())
    assert code == 0 and talk.left_out > 0
    assert notes.count("outgrown") == 2  # once for each conversation


def test_control_c_stops_the_answer_and_the_handler_is_as_before(renderer, talked):
    before = signal.getsignal(signal.SIGINT)
    stop_at = [5]

    def during(number: int) -> None:
        if number in stop_at:
            signal.raise_signal(signal.SIGINT)

    talk = conversation(renderer, LONG, "三次", during=during)
    code, out, notes = talked(talk, "头痛\n".encode(), person=True)
    said = talk.exchanges[0][1]
    assert code == 0 and talk.engine.drawn == 6 and LONG.startswith(said) and out == f"{said}\n" and said
    assert "(stopped)" in notes and signal.getsignal(signal.SIGINT) is before
    stop_at.clear()
    assert talked(talk, "服用\n".encode(), person=True)[1] == "三次\n"


def test_over_a_pipe_control_c_ends_the_program(renderer, talked):
    with pytest.raises(KeyboardInterrupt):
        talked(conversation(renderer, "建议检查", during=lambda number: signal.raise_signal(signal.SIGINT)), b"a\n")


def test_no_answer_commands_a_terminal(renderer, monkeypatch):
    hostile = "头痛\x1b[2J\x9b31m\r三次\t\n"
    monkeypatch.setattr(sys, "stdout", Terminal(out := io.BytesIO(), encoding="utf-8"))
    terminal.answer(conversation(renderer, hostile), "头痛", person=False, told=False)
    sys.stdout.flush()
    assert out.getvalue().decode() == "头痛[2J31m三次\t\n\n"
