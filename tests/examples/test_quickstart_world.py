"""The synthetic medical world of examples/quickstart: same bytes every time, true to itself, learnable, leak-free."""

import csv
import doctest
import json
import math
import re
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from support.paths import ROOT, SHARED

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.entities import parse_answer
from megatron_chimed.evaluation.kinds import letter as letter_kind
from megatron_chimed.evaluation.readers.bias import read_scale
from megatron_chimed.jsonl import read_json, read_json_lines, sha256_file

QUICKSTART = ROOT / "examples" / "quickstart"
REAL_MC = SHARED / "mc_train.dialog"
sys.path.insert(0, str(QUICKSTART))

import answers  # noqa: E402
import attitudes  # noqa: E402
import exams  # noqa: E402
import grading  # noqa: E402
import make_world  # noqa: E402
import pools  # noqa: E402
import sources  # noqa: E402
import wordings  # noqa: E402
from world import KEYS, build_world, load_world  # noqa: E402

pytestmark = pytest.mark.slow
SIZE = 0.8
TRAINING = ("cmd_finetune.jsonl", "chimed_train.jsonl", "ranked_train.jsonl", "cmd_reward.jsonl", "exercises.jsonl")
MC_LINE = re.compile(r"id\t\d+\tdepartment\t[^\t]+\tdisease\t[^\t]+|[PD]\t[^\t]*\t[012]|SUM1\t.+|SUM2\.\d\t.+|")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clean world (no dirt) on disk."""
    path = tmp_path_factory.mktemp("world")
    make_world.write_world(path, seed=0, size=SIZE, dirt=0.0)
    return path


@pytest.fixture(scope="module")
def world(folder):
    """The same world, read back from facts.json."""
    return load_world(folder / "facts.json")


def rows(path):
    """All rows of a JSON-lines file."""
    return [row for _, row in read_json_lines(path)]


def texts(value):
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def hashes(path):
    """File name -> hash, for every file of a folder."""
    return {str(file.relative_to(path)): sha256_file(file) for file in sorted(path.rglob("*")) if file.is_file()}


def stated_facts(text, world):
    """Slow obvious twin of the generator: (disease, value) for every value in the text, each given to the disease named
    in its clause, or to the last one named before."""
    current, found = None, []
    for clause in re.split("[。；\n]", text):
        named = [disease for disease in world.diseases if disease.name in clause]
        values = [v for v, kind in world.vocabulary.items() if kind != "disease" and v in clause]
        current = named[0] if len(named) == 1 else current
        found += [(current, value) for value in values]
    return found


def contradictions(text, world):
    """The stated facts that do not hold; values before the first disease is named must hold of the first one."""
    first = next((disease for disease, _ in stated_facts(text, world) if disease), None)
    facts = [(disease or first, value) for disease, value in stated_facts(text, world)]
    return [(d.name if d else None, v) for d, v in facts if d is None or v not in d.values]


# ---- the same bytes ----


def test_two_runs_in_other_processes_write_the_same_bytes(tmp_path):
    for name, hash_seed in (("a", "1"), ("b", "2")):
        command = [sys.executable, str(QUICKSTART / "make_world.py"), "--output", str(tmp_path / name), "--size", "0.4"]
        environment = {"PYTHONHASHSEED": hash_seed, "PATH": "", "LC_ALL": "C"}
        subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    first, second = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert len(first) > 20 and first == second
    make_world.write_world(tmp_path / "c", seed=1, size=0.4)
    other = hashes(tmp_path / "c")
    assert other.keys() == first.keys()
    assert not [name for name in first if first[name] == other[name]]


def test_manifest_lists_every_file_with_its_hash_and_rows(folder):
    content, found = read_json(folder / "world.json"), hashes(folder)
    found.pop("world.json")
    assert content["sha256"] == found
    assert content["files"].keys() == found.keys() and all(file["rows"] > 0 for file in content["files"].values())
    assert content["parents"] == {"seed": 0, "size": SIZE, "dirt": 0.0}
    for name, file in content["files"].items():
        if name.endswith(".jsonl"):
            assert file["rows"] == len(rows(folder / name)), name


def test_size_scales_the_world_and_its_files(tmp_path):
    small = make_world.write_world(tmp_path / "small", size=0.5)
    full = make_world.write_world(tmp_path / "full", size=1.0)
    assert small["files"]["facts.json"]["rows"] == 12 and full["files"]["facts.json"]["rows"] == 24
    for name in ("pretrain_train.jsonl", "cmd_finetune.jsonl", "ranked_train.jsonl", "ner_test.jsonl"):
        assert 1.5 < full["files"][name]["rows"] / small["files"][name]["rows"] < 2.5, name
    assert 1.5e6 < (tmp_path / "full" / "pretrain_train.jsonl").stat().st_size < 2.5e6


@pytest.mark.parametrize(("flag", "value"), [("--size", "0"), ("--size", "nan"), ("--size", "13"), ("--dirt", "0.6"),
                                             ("--dirt", "nan")])  # fmt: skip
def test_a_bad_flag_is_one_line_and_leaves_no_file(tmp_path, flag, value):
    command = [sys.executable, str(QUICKSTART / "make_world.py"), "--output", str(tmp_path / "out"), flag, value]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and f"{flag} {value}" in run.stderr
    assert not (tmp_path / "out").exists()


def test_help_ends_with_an_example():
    run = subprocess.run([sys.executable, str(QUICKSTART / "make_world.py"), "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "python examples/quickstart/make_world.py --output" in run.stdout.splitlines()[-1]


@pytest.mark.parametrize("content", ["[]", "{}", '{"seed": 0, "size": 1, "diseases": [{"name": "x"}]}', "no json"])
def test_a_file_that_is_no_world_is_refused_by_name(tmp_path, content):
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(InputError, match="facts.json"):
        load_world(tmp_path / "facts.json")


# ---- the world ----


@pytest.mark.parametrize("seed", range(5))
def test_no_value_lies_inside_another_or_inside_a_sentence_without_facts(seed):
    world = build_world(seed, 12.0)
    values = sorted(world.vocabulary)
    assert len(values) == len(set(values)) and len(world.diseases) == 288
    joined = "\n".join(values)
    assert not [value for value in values if joined.count(value) != 1]
    blank = re.sub(r"\{\w+\}", "", "\n".join(texts(
        [list(map(list, group.values())) if isinstance(group, dict) else list(group) for group in (
            wordings.STATEMENTS, wordings.FILLERS, wordings.HEDGES, wordings.DISMISSALS)])))  # fmt: skip
    assert not [value for value in values if value in blank]
    assert not [value for value in values if re.search(r"[^\u4e00-\u9fff]", value)]


def test_symptoms_and_drug_each_name_one_disease(world):
    for one in (world, build_world(0, 6.0)):
        assert len({disease.symptoms for disease in one.diseases}) == len(one.diseases)
        assert len({disease.drug for disease in one.diseases}) == len(one.diseases)
        assert {disease.department for disease in one.diseases} == set(pools.DEPARTMENTS)


def test_every_question_has_one_gold_answer(world):
    questions = list(answers.all_questions(world))
    gold = {}
    for question in questions:
        assert gold.setdefault(question.text, question.required) == question.required
    assert len(gold) == len(questions) > 1000


# ---- documents ----


@pytest.mark.parametrize("name", ["pretrain_train.jsonl", "pretrain_heldout.jsonl"])
def test_every_fact_in_the_documents_agrees_with_the_world(folder, world, name):
    found = [row["text"] for row in rows(folder / name)]
    assert sum(len(stated_facts(text, world)) for text in found[:100]) > 500
    assert not [(text, wrong) for text in found if (wrong := contradictions(text, world))]
    # negative control: the check sees one false value
    one = world.diseases[0]
    text = next(text for text in found if text.startswith(one.name) and one.examination in text)
    false = next(d.examination for d in world.diseases if d.examination != one.examination)
    assert contradictions(text.replace(one.examination, false), world)


def test_documents_are_distinct_and_of_moderate_length(folder):
    train, held_out = ([row["text"] for row in rows(folder / f"pretrain_{p}.jsonl")] for p in ("train", "heldout"))
    assert len(set(train)) == len(train) and len(set(held_out)) == len(held_out)
    assert not set(train) & set(held_out)
    assert statistics.mean(map(len, train)) > 150 and all(60 <= len(text) <= 450 for text in train)


def test_every_fact_is_stated_at_least_twenty_times_in_the_training_documents(folder, world):
    counts = Counter()
    for row in rows(folder / "pretrain_train.jsonl"):
        counts.update({(disease.name, value) for disease, value in stated_facts(row["text"], world) if disease})
    needed = {(disease.name, value) for disease in world.diseases for value in disease.values if value != disease.name}
    assert len(needed) == len(world.diseases) * 11
    assert min(counts[pair] for pair in needed) >= 20


def test_characters_are_hard_to_guess_alone_and_easy_in_context(folder):
    text = "".join(row["text"] for row in rows(folder / "pretrain_train.jsonl"))

    def entropy(order):
        """Bits per character given `order` characters before it, in sample."""
        pairs = Counter(text[i : i + order + 1] for i in range(len(text) - order))
        heads = Counter(text[i : i + order] for i in range(len(text) - order))
        return -sum(n * math.log2(n / heads[gram[:-1]]) for gram, n in pairs.items()) / (len(text) - order)

    assert entropy(0) > 7.5 and entropy(3) < 1.5


# ---- splits ----


@pytest.mark.parametrize("seed", range(4))
def test_no_held_out_question_or_fact_is_in_the_training_files(tmp_path, seed):
    folder, world = tmp_path, build_world(seed, SIZE)
    make_world.write_world(folder, seed=seed, size=SIZE, dirt=0.05)
    held_out = {row["question"] for split in ("valid", "test") for row in rows(folder / f"questions_{split}.jsonl")}
    held_out |= {row["question"] for split in ("valid", "test") for row in rows(folder / f"ranked_{split}.jsonl")}
    spoken = [text for name in TRAINING for row in rows(folder / name) for text in texts(row)]
    for name in ("mc_train.dialog", "meddialog_train.txt"):
        spoken += [line for line in (folder / name).read_text("utf-8").splitlines() if not line.startswith("id")]
    assert len(held_out) > 200 and len(spoken) > 2000
    everything = "\n".join(spoken)
    assert not [question for question in held_out if question in everything]
    secrets = [(d.name, value) for d in world.diseases for key in KEYS if world.split(d, key) != "train"
               for value in d.facts(key).values() if key != "department"]  # fmt: skip
    clauses = re.split("[。；\n]", everything)
    assert len(secrets) > 20
    assert not [pair for pair in secrets for clause in clauses if pair[0] in clause and pair[1] in clause]
    # An exercise's sentence tells none in its other clauses either; a sentence of the test set does.
    blocks = [block for row in rows(folder / "exercises.jsonl") for block in row["instruction"].split("\n\n")]
    unfiltered = [row["originalText"] for row in rows(folder / "ner_test.jsonl")]
    for sentences, expected in (([block for block in blocks if block.startswith("病历")], False), (unfiltered, True)):
        assert len(sentences) > 50
        assert expected == any(name in one and value in one for name, value in secrets for one in sentences)
    # negative control: pairs that may be told are told
    told = [(d.name, d.cause) for d in world.diseases if world.split(d, "cause") == "train"]
    assert any(name in clause and value in clause for name, value in told for clause in clauses)


def test_every_question_is_in_one_split_and_each_split_has_its_share(world):
    splits = Counter(world.split(disease, key) for disease in build_world(0, 6.0).diseases for key in KEYS)
    assert abs(splits["valid"] / splits.total() - 0.10) < 0.02 and abs(splits["test"] / splits.total() - 0.10) < 0.02
    parts = [{q.text for q in answers.questions_of_split(world, split)} for split in sources.ALL]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(list(answers.all_questions(world)))


def test_cmd_and_chimed_share_no_question(folder):
    cmd = {row["input"] or row["instruction"] for row in rows(folder / "cmd_finetune.jsonl")}
    assert not cmd & {row["question_content"] for row in rows(folder / "chimed_train.jsonl")}


# ---- the four grades ----


def test_grades_are_in_order_and_length_hardly_tells_them(folder, world):
    grader = grading.Grader(world)
    quality, length = [[] for _ in range(4)], [[] for _ in range(4)]
    for name in ("train", "valid", "test"):
        for row in rows(folder / f"ranked_{name}.jsonl"):
            assert row["ranks"] == [0, 1, 2, 3] and len(set(row["responses"])) == 4
            for rank, response in zip(row["ranks"], row["responses"], strict=True):
                quality[rank].append(grader.grade(row["question"], response).quality)
                length[rank].append(len(response))
    for better, worse in ((0, 1), (1, 2), (2, 3)):
        pairs = list(zip(quality[better], quality[worse], strict=True))
        assert statistics.mean(a > b for a, b in pairs) > 0.99
        shorter = statistics.mean(a < b for a, b in zip(length[better], length[worse], strict=True))
        assert 0.25 < shorter < 0.75
    assert min(quality[0]) == 1.0 and max(quality[3]) == 0.0
    ranks = [rank for rank in range(4) for _ in length[rank]]
    assert abs(statistics.correlation(ranks, sum(length, []))) < 0.2


def test_the_grader_cannot_be_pleased_by_listing_everything(world):
    grader, question = grading.Grader(world), next(answers.all_questions(world))
    assert grader.grade(question.text, "。".join(world.vocabulary)).quality < 0.1
    assert grader.grade(question.text, "").quality == 0.0
    assert grader.grade(question.text, "。".join(wordings.FILLERS)).quality == 0.0
    with pytest.raises(InputError, match="no question"):
        grader.grade("今天天气怎么样？", "很好。")


def test_grader_counts_by_hand(world):
    one = world.diseases[0]
    question = next(q for q in answers.all_questions(world) if q.disease == one and q.facet == "symptoms")
    false = next(v for v, kind in world.vocabulary.items() if kind == "symptom" and v not in one.values)
    first, second, _ = one.symptoms
    grade = grading.Grader(world).grade(question.text, f"症状有{first}、{second}和{false}。请您放心。")
    assert (grade.recall, grade.precision, grade.filler) == (2 / 3, 2 / 3, 1 / 2)
    assert grade.quality == pytest.approx(4 / 9 * 0.9)


def test_gold_answers_of_held_out_questions_are_complete(folder, world):
    grader = grading.Grader(world)
    for split in ("valid", "test"):
        for row in rows(folder / f"questions_{split}.jsonl"):
            assert grader.grade(row["question"], row["answer"]).quality == 1.0
            assert grader.questions[row["question"]].required == row["facts"]


# ---- formats ----


def test_json_sources_have_their_fields(folder):
    layouts = {
        "pretrain_train.jsonl": {"text"},
        "cmd_finetune.jsonl": {"instruction", "input", "output"},
        "cmd_reward.jsonl": {"question", "response_chosen", "response_rejected"},
        "ranked_train.jsonl": {"question", "responses", "ranks"},
        "questions_test.jsonl": {"id", "question", "answer", "disease", "facet", "facts"},
        "chimed_train.jsonl": {"id", "department", "title", "question_content", "labels", "answers"},
    }
    for name, fields in layouts.items():
        assert all(set(row) == fields for row in rows(folder / name)), name
    for row in rows(folder / "chimed_train.jsonl"):
        best = [answer for answer in row["answers"] if "True" in (answer["adopted"], answer["recommended"])]
        assert len(best) == 1 and len(row["answers"]) in (1, 2, 3)
    ranked, reward = rows(folder / "ranked_train.jsonl"), rows(folder / "cmd_reward.jsonl")
    assert [row["question"] for row in ranked] == [row["question"] for row in reward]
    safe = read_json(folder / "safety_prompts.json")
    prompts = [row["prompt"] for content in safe.values() for row in content]
    assert len(safe) == 7 and all(safe.values()) and len(set(prompts)) == len(prompts)
    assert all(set(row) == {"prompt", "response", "type"} for content in safe.values() for row in content)


def check_mc_dialog(text):
    """Assert the grammar of an MC .dialog file; returns the number of dialogues."""
    assert text.endswith("\n\n")
    assert not [line for line in text.split("\n") if not MC_LINE.fullmatch(line)]
    blocks = re.split("\n\n+", text.strip("\n"))
    for block in blocks:
        kinds = [line.split("\t")[0] for line in block.split("\n")]
        assert kinds[0] == "id" and "P" in kinds and "D" in kinds and kinds.index("SUM2.0") == kinds.index("SUM1") + 1
    return len(blocks)


def test_mc_dialogues_follow_the_format_of_the_published_file(folder):
    assert check_mc_dialog((folder / "mc_train.dialog").read_text("utf-8")) == 190
    assert check_mc_dialog((folder / "mc_test.dialog").read_text("utf-8")) > 10


@pytest.mark.skipif(not REAL_MC.exists(), reason="the published sample is not beside the project")
def test_the_grammar_of_mc_accepts_the_published_file():
    assert check_mc_dialog(REAL_MC.read_text("utf-8")) > 300


def test_meddialog_blocks_hold_description_and_alternating_speech(folder):
    text = (folder / "meddialog_train.txt").read_text("utf-8")
    blocks = re.split(r"(?m)^id=\d+\n", text)[1:]
    assert len(blocks) == 95
    for block in blocks:
        head, speech = block.split("\nDialogue\n")
        assert "Doctor faculty\n" in head and "\nDescription\n疾病：\n" in head
        speakers = re.findall(r"(?m)^(病人|医生)：$", speech)
        assert speakers[0] == "病人" and "医生" in speakers


def test_entities_are_exactly_the_values_in_the_sentence(folder, world):
    by_split = {split: rows(folder / f"ner_{split}.jsonl") for split in ("train", "dev", "test")}
    sentences = [row["originalText"] for part in by_split.values() for row in part]
    assert len(set(sentences)) == len(sentences)
    seen = Counter()
    for row in sum(by_split.values(), []):
        text = row["originalText"]
        gold = sorted((e["start_pos"], e["end_pos"], e["label_type"]) for e in row["entities"])
        naive = sorted((m.start(), m.end(), exams.ENTITY_TYPES[kind]) for value, kind in world.vocabulary.items()
                       if kind in exams.ENTITY_TYPES for m in re.finditer(value, text))  # fmt: skip
        assert gold == naive
        seen.update(label for _, _, label in gold)
    assert set(seen) == {"疾病", "症状", "药物", "检查"}


def test_exercises_are_asked_as_in_evaluation_and_hold_the_right_answers(folder, world):
    found = Counter()
    for row in rows(folder / "exercises.jsonl"):
        text, answer = row["instruction"].split("\n\n")[-1], row["output"]
        if match := re.fullmatch(r"(.+)\n" + r"\n".join(rf"{letter}\. (.+)" for letter in "ABCD") + "\n答案：", text):
            option, letter = re.fullmatch("(.+)，选([ABCD])。", answer).groups()
            disease = next(disease for disease in world.diseases if disease.name in match[1])
            assert option in disease.values and match["ABCD".index(letter) + 2] == option
            item = {"question": match[1], "options": list(match.groups()[1:]), "answer": "ABCD".index(letter)}
            assert letter_kind.parse_choice(answer, item) == letter and letter_kind.text(item) == text
            found["choice"] += 1
        elif text.startswith("病历："):
            sentence = text.removeprefix("病历：").removesuffix("\n实体：")
            entities = parse_answer(answer, list(exams.ENTITY_TYPES.values()), sentence)
            spans = grading.find_values(sentence, world.vocabulary)
            typed = {(exams.ENTITY_TYPES.get(kind), sentence[start:end]) for start, end, kind in spans}
            assert set(entities) == {one for one in typed if one[0]}
            found["entities"] += 1
        else:
            assert answer in attitudes.LEVELS
            found["attitudes"] += 1
    assert min(found.values()) > 50 and len(found) == 3
    scale = {item["statement"] for item in read_scale(str(folder / "scale.yaml"))["test"].items}
    asked = "\n".join(row["instruction"] for row in rows(folder / "exercises.jsonl"))
    assert len(scale) > 20 and not [statement for statement in scale if statement in asked]


def test_multiple_choice_has_one_right_option_and_no_favourite_letter(folder, world):
    for path in sorted((folder / "multiple_choice").rglob("*.csv")):
        with open(path, encoding="utf-8", newline="") as file:
            items = list(csv.DictReader(file))
        assert tuple(items[0]) == exams.COLUMNS and (len(items) == 5) == ("dev" in path.name)
        letters = Counter(item["answer"] for item in items)
        assert max(letters.values()) - min(letters[letter] for letter in "ABCD") <= 1
        for item in items:
            (disease,) = [d for d in world.diseases if d.name in item["question"]]
            right = [letter for letter in "ABCD" if item[letter] in disease.values]
            assert right == [item["answer"]] and len({item[letter] for letter in "ABCD"}) == 4
            assert len({world.vocabulary[item[letter]] for letter in "ABCD"}) == 1
            assert item[item["answer"]] in item["explanation"] or len(disease.symptoms) == 3


# ---- dirt ----


def test_dirt_adds_personal_data_and_duplicates_and_leaves_the_rest_alone(tmp_path, folder, world):
    make_world.write_world(tmp_path, seed=0, size=SIZE, dirt=0.1)
    clean = [row["text"] for row in rows(folder / "pretrain_train.jsonl")]
    dirty = [row["text"] for row in rows(tmp_path / "pretrain_train.jsonl")]
    assert 0.03 < 1 - len(set(clean) & set(dirty)) / len(clean) < 0.2
    assert any(re.search(r"1390000\d{4}", text) for text in dirty)
    assert any(re.search("[！。]{3}", text) for text in dirty) and any(re.search("[０-９]", text) for text in dirty)
    assert len(set(dirty)) < len(dirty) > len(clean) == len(set(clean))
    assert not re.search(r"1390000\d{4}|[０-９]|@", "".join(clean))
    assert not [text for text in dirty if contradictions(text, world)]
    changed = {name for name, value in hashes(tmp_path).items() if value != hashes(folder)[name]}
    assert changed == {"world.json", "pretrain_train.jsonl", "cmd_finetune.jsonl", "chimed_train.jsonl"}


def test_an_answer_in_training_tells_no_held_out_fact_even_when_all_else_is_held_out(world):
    rng, one = world.stream("test"), replace(world.diseases[0])
    question = next(q for q in answers.all_questions(world) if q.disease == one)
    for grade in range(4):
        for _ in range(20):
            text = answers.answer(world, rng, question, grade, splits=())
            extra = {value for value in one.values - set(question.required.values()) - {one.name} if value in text}
            assert text and not extra, (grade, text)


@pytest.mark.parametrize("module", ["grading", "world"])
def test_examples_in_docstrings_are_true(module):
    result = doctest.testmod(sys.modules[module])
    assert result.attempted > 0 and result.failed == 0


def test_files_are_utf8_with_plain_line_ends(folder):
    for path in folder.rglob("*.*"):
        assert b"\r" not in path.read_bytes() and path.read_bytes().decode("utf-8").endswith("\n"), path
    assert json.loads((folder / "facts.json").read_text("utf-8"))["size"] == SIZE
