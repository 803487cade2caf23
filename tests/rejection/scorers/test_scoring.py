"""Scorers together: sums with weights, rules by a command, a reward model beside them; as scorer and as grader."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from support.chat_server import ChatServer
from support.chatml import write_chatml
from support.corpora import call_here
from support.dialogues import make_renderer
from support.judging import CRITERIA, PROMPTS, candidates_of, honest, score_of, write_rubric

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json, write_json_lines
from megatron_chimed.judging.options import JudgeOptions
from megatron_chimed.rejection import graders
from megatron_chimed.rejection.scorers import scoring
from megatron_chimed.rejection.scorers.command import score_by_command
from megatron_chimed.rejection.scorers.options import RulesOptions, ScorerOptions
from megatron_chimed.rejection.scorers.reward_model import sequences_of
from megatron_chimed.rejection.scorers.scoring import Scoring, describe_kept
from megatron_chimed.rejection.store import read_candidates, write_candidates

CANDIDATES = candidates_of({"p0": ["去神经内科", "多喝水", "每天三片"], "p1": ["去神经内科，多喝水", "好"]})
BY_LENGTH = """
import json, sys
for line in reversed(open(sys.argv[-1], encoding="utf-8").readlines()):
    row = json.loads(line)
    assert row["reward"] is None
    grade = None if row["response"] == "好" else len(row["response"]) + 100 * len(row["turns"][-1]["text"])
    print(json.dumps({"prompt": row["prompt"], "sample": row["sample"], "grade": grade}))
"""


def length_score(candidate) -> float | None:
    """What BY_LENGTH says."""
    text, question = candidate.response, PROMPTS[candidate.prompt].turns[-1].text
    return None if text == "好" else len(text) + 100 * len(question)


@pytest.fixture
def rules(tmp_path):
    """The command of BY_LENGTH."""
    (tmp_path / "rules.py").write_text(BY_LENGTH)
    return RulesOptions(command=["python", str(tmp_path / "rules.py")])


@pytest.fixture
def renderer(tmp_path):
    return make_renderer("sentencepiece", tmp_path)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A reward model that says how many tokens it reads; the sequences that it was asked for."""
    asked = []

    class Model:
        max_positions = 10_000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def rewards(self, sequences):
            asked.extend(sequences)
            return [len(one) / 7 for one in sequences]

    monkeypatch.setattr(scoring, "open_scorer", lambda options, path: Model())
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward/weights").write_bytes(b"x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return asked


def test_rules_see_prompt_and_answer_and_say_a_number_for_each_or_that_they_cannot(tmp_path, rules, renderer):
    earlier = [replace(one, reward=3.0) for one in CANDIDATES]  # what another has found is not theirs to see
    scored = Scoring((rules,), "", renderer).score(earlier, PROMPTS, tmp_path / "scored")
    assert [one.reward for one in scored.candidates] == [length_score(one) for one in CANDIDATES]
    assert scored.figures == [{"engine": "rules", "weight": 1.0, "answers": 5, "not scored": 1}]
    assert [replace(one, reward=None) for one in scored.candidates] == CANDIDATES


def line(prompt="p0", sample=0, grade: object = 1) -> str:
    return json.dumps({"prompt": prompt, "sample": sample, "grade": grade})


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ([line()], "no grade for sample 1 of p0$"),
        ([line(), line(sample=1), line(sample=2)], "line 3: there is no sample 2 of p0$"),
        ([line(), line(prompt="p9")], "line 2: there is no sample 0 of p9$"),
        ([line(), line(sample=1), line(grade=2)], "line 3: a second grade for sample 0 of p0$"),
        ([line(), line(sample=1, grade=float("nan"))], "line 2: the grade nan is no finite number; print null where"),
        ([line(), line(sample=1, grade=float("inf"))], "line 2: the grade inf is no finite number"),
        ([line(), line(sample=1, grade="good")], "line 2: expected lines of"),
        ([line(), line(sample=1, grade=[1])], "line 2: expected lines of"),
        (["3"], "line 1: expected lines of"),
    ],
)
def test_rules_that_print_something_else_are_one_line(tmp_path, printed, message):
    (tmp_path / "says.txt").write_text("\n".join(printed))
    command = ["python", "-c", f"print(open({str(tmp_path / 'says.txt')!r}).read())\nx = 1"]
    with pytest.raises(InputError, match=message) as error:
        score_by_command(command, candidates_of({"p0": ["a", "b"]}), PROMPTS)
    assert "\n" not in str(error.value) and str(error.value).startswith("rules python -c")


def test_rules_that_fail_are_one_line_with_their_code(tmp_path):
    for script, message in (
        ("import sys; sys.exit('no dictionary')", "ended with 1: no dictionary"),
        ("import sys; sys.exit(7)", "ended with 7: no reason given"),
        ("import sys; sys.stdout.buffer.write(bytes([255, 254]))", "what it prints is no UTF-8"),
    ):
        with pytest.raises(InputError, match=message) as error:
            score_by_command(["python", "-c", script], CANDIDATES, PROMPTS)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="^rules nothing-there: No such file or directory$"):
        score_by_command(["nothing-there"], CANDIDATES, PROMPTS)


def test_the_step_of_rules_ends_with_one_line_when_they_fail_and_is_done_again_when_their_script_changes(tmp_path):
    folder, script = tmp_path / "out/round-01", tmp_path / "rules.py"
    settings: dict = {"start": "x", "dialogues": ["x"], "heldout": ["x"]}
    settings |= {"output": str(tmp_path / "out"), "tokenizer": str(write_chatml(tmp_path / "tokenizer"))}
    settings |= {"template": "qwen3", "scorer": {"engine": "rules", "command": ["python", str(script)]}}
    for name, key in (("model", "max-position-embeddings"), ("stage", "seq-length")):
        settings[name] = str(tmp_path / f"{name}.yaml")
        (tmp_path / f"{name}.yaml").write_text(f"megatron: {{{key}: 128}}")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    write_candidates(folder / "candidates.jsonl", CANDIDATES)
    write_json_lines(folder / "prompts.jsonl", (one.to_row() for one in PROMPTS.values()))

    def step(text: str) -> tuple[int, str]:
        script.write_text(text)
        done = call_here("rejection_sampling.py", "--config", tmp_path / "c.yaml", "--round", 1, "--step", "score")
        return done.returncode, done.stderr.splitlines()[-1]

    code, told = step("import sys\nsys.exit('no dictionary')")
    assert code == 1 and told.endswith("rules.py ended with 1: no dictionary")
    assert not (folder / "scored.jsonl").exists()
    assert step(BY_LENGTH) == (0, "round 1 score")
    assert [one.reward for one in read_candidates(folder / "scored.jsonl")] == [length_score(one) for one in CANDIDATES]
    assert step(BY_LENGTH) == (0, "round 1 score: up to date")
    assert step(BY_LENGTH.replace("100", "10")) == (0, "round 1 score")
    assert read_json(folder / "score.manifest.json")["scorers"][0]["not scored"] == 1


def test_a_reward_is_the_sum_of_raw_scores_times_their_weights(tmp_path, rules, renderer, model):
    with ChatServer(honest) as server:
        judge = JudgeOptions(rubric=write_rubric(tmp_path / "r.yaml"), model="m", base_url=server.url, weight=10.0)
        scorers = (ScorerOptions(weight=2.0), judge, replace(rules, weight=-0.5))
        scored = Scoring(scorers, str(tmp_path / "reward"), renderer).score(CANDIDATES, PROMPTS, tmp_path / "scored")
        alone = [Scoring((one,), str(tmp_path / "reward"), renderer) for one in scorers]
        each = [one.score(CANDIDATES, PROMPTS, tmp_path / f"alone{n}") for n, one in enumerate(alone)]
    for place, one in enumerate(scored.candidates):
        parts = [part.candidates[place].reward for part in each]
        if one.response == "好":
            assert one.reward is None and parts[2] is None and None not in parts[:2]
        else:
            assert one.reward == pytest.approx(sum(parts))
            assert parts[1] == pytest.approx(10 * score_of(one.response)) and parts[2] == -0.5 * length_score(one)
            assert parts[0] == pytest.approx(2 * len(sequences_of([one], PROMPTS, renderer)[0]) / 7)
    assert [one["weight"] for one in scored.figures] == [2.0, 10.0, -0.5]
    assert [one["not scored"] for one in scored.figures] == [0, 0, 1]


def test_other_weights_ask_neither_model_nor_judge_again(tmp_path, rules, renderer, model):
    with ChatServer(honest) as server:
        judge = JudgeOptions(rubric=write_rubric(tmp_path / "r.yaml"), model="m", base_url=server.url)

        def score(*scorers, candidates=CANDIDATES):
            found = Scoring(scorers, str(tmp_path / "reward"), renderer)
            return [one.reward for one in found.score(candidates, PROMPTS, tmp_path / "scored").candidates]

        first, second = score(ScorerOptions(), judge), score(ScorerOptions(weight=3.0), replace(judge, weight=0.0))
        assert len(model) == len(CANDIDATES) and len(server.requests) == len(CANDIDATES) * len(CRITERIA)
        expected = [3 * (reward - score_of(one.response)) for reward, one in zip(first, CANDIDATES, strict=True)]
        assert first != second == pytest.approx(expected)
        assert describe_kept(tmp_path / "scored") == "5 answers, 15 verdicts" and not describe_kept(tmp_path / "other")
        score(ScorerOptions())
        assert len(model) == len(CANDIDATES), "a scorer less, or more, costs the first nothing"
        score(ScorerOptions(dtype="bfloat16"), judge)
        assert len(model) == 2 * len(CANDIDATES), "the control: another arithmetic is another score"
        score(ScorerOptions(dtype="bfloat16"), judge, candidates=CANDIDATES[1:])
        assert len(model) == 3 * len(CANDIDATES) - 1 and len(server.requests) == len(CANDIDATES) * len(CRITERIA)


def test_a_killed_reward_model_of_a_sum_goes_on_where_it_was(tmp_path, renderer, model, monkeypatch):
    scorers = (ScorerOptions(batch_size=2), ScorerOptions(batch_size=2, weight=2.0, dtype="bfloat16"))
    run = Scoring(scorers, str(tmp_path / "reward"), renderer)
    open_scorer = scoring.open_scorer

    def dying(options, path):
        engine = open_scorer(options, path)
        rewards, left = engine.rewards, iter((1, 1))

        def some(sequences):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return rewards(sequences)

        engine.rewards = some
        return engine

    monkeypatch.setattr(scoring, "open_scorer", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.score(CANDIDATES, PROMPTS, tmp_path / "scored")
    monkeypatch.setattr(scoring, "open_scorer", open_scorer)
    found = run.score(CANDIDATES, PROMPTS, tmp_path / "scored")
    assert len(model) == 2 * len(CANDIDATES), "a batch was computed twice"
    assert found.candidates == run.score(CANDIDATES, PROMPTS, tmp_path / "fresh").candidates


def world(tmp_path, renderer, **config):
    """A stand-in for a round's context, with files of answers by two models, which have rewards."""
    heldout = tmp_path / "heldout.jsonl"
    write_json_lines(heldout, (one.to_row() for one in PROMPTS.values()))
    paths = SimpleNamespace(external_grader=[], heldout=[str(heldout)], reward=str(tmp_path / "reward"))
    measured, answers = {}, {}
    for name, texts in (("start", ["多喝水", "好"]), ("after", ["去神经内科，多喝水", "去神经内科"])):
        answers[name] = [replace(one, reward=9.0) for one in candidates_of({"p0": texts[:1], "p2": texts[1:]})]
        measured[name] = tmp_path / f"heldout.{name}.jsonl"
        write_candidates(measured[name], answers[name])
    settings = SimpleNamespace(paths=paths, grader=())
    settings.__dict__.update(config)
    return SimpleNamespace(config=settings, renderer=renderer), measured, answers


def test_a_scorer_grades_the_held_out_answers_and_each_file_once(tmp_path, rules, renderer, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ChatServer(honest) as server:
        judge = JudgeOptions(rubric=write_rubric(tmp_path / "r.yaml"), model="m", base_url=server.url)
        ctx, measured, answers = world(tmp_path, renderer, grader=(judge,))
        found = graders.grade_answers(ctx, measured, answers)
        assert graders.grade_answers(ctx, measured, answers) == found and len(server.requests) == 4 * len(CRITERIA)
    assert found.grades == {
        name: {one.prompt: [pytest.approx(score_of(one.response))] for one in each} for name, each in answers.items()
    }
    assert found.figures["after"][0]["clipped mean"] == pytest.approx((1 + 0.75) / 2)
    assert (tmp_path / "heldout.start.graded.verdicts.jsonl").is_file()


def test_an_answer_whose_prompt_is_gone_is_one_line(tmp_path, rules, renderer):
    ctx, measured, answers = world(tmp_path, renderer, grader=(rules,))
    write_json_lines(tmp_path / "heldout.jsonl", [PROMPTS["p0"].to_row()])
    with pytest.raises(InputError, match=r"^candidate \(1, 'p2', 0\): there is no prompt 'p2'$"):
        graders.grade_answers(ctx, measured, answers)


def test_an_answer_that_a_grader_cannot_grade_has_no_grade(tmp_path, rules, renderer):
    ctx, measured, answers = world(tmp_path, renderer, grader=(rules,))
    found = graders.grade_answers(ctx, measured, answers)
    assert found.grades["start"] == {"p0": [length_score(answers["start"][0])]} and len(found.grades["after"]) == 2
    assert found.figures["start"][0]["not scored"] == 1
    ctx, *_ = world(tmp_path, renderer)  # without a grader there is no grade
    assert graders.grade_answers(ctx, measured, answers) == graders.Graded(None, {})
