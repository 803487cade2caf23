"""Candidates for the tests of rejection sampling: random ones, and hypothesis strategies for them."""

from hypothesis import strategies as st

from megatron_chimed.records import Candidate, Prompt, Turn
from megatron_chimed.rejection.keys import keyed_draw

TEXTS = ["", " \n", "好", "多喝水。" * 8, "多休息，多喝水。", "多休息,多喝水。", "问题0", "Ｑ1"]
TEXTS += ["建议去呼吸内科就诊，并做胸部检查。", "建议去呼吸内科就诊，并做胸部检查", "首选药物是清澍片，每晚一次。"]

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        round=st.just(1),
        prompt=st.sampled_from(["p0", "p1", "p2", "p3"]),
        sample=st.integers(0, 7),
        response=st.sampled_from(TEXTS),
        num_tokens=st.integers(1, 9),
        finished=st.booleans() | st.just(True),
        reward=st.none() | st.sampled_from([-1.5, 0.0, 0.5, 2.0]),
    ),
    unique_by=lambda one: one.key,
    max_size=25,
)
QUESTIONS = {f"p{number}": f"问题{number}" for number in range(4)}


def make_candidate(prompt: str = "p0", sample: int = 0, reward: float | None = 0.0, response: str = "") -> Candidate:
    """A candidate with a text that is like no other's."""
    text = response or f"{prompt}的第{sample}个回答是{keyed_draw(prompt, sample)}"
    return Candidate(1, prompt, sample, text, len(text), True, reward)


def make_prompt(*texts: str, id: str = "p0", source: str = "test") -> Prompt:
    """A prompt of texts, the user's and the assistant's in turn."""
    turns = tuple(Turn(("user", "assistant")[place % 2], text) for place, text in enumerate(texts))
    return Prompt(id, source, turns)
