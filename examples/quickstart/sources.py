"""The world's questions and answers as raw files in the formats in which the paper's sources are published.

A *held-out* question needs a key whose split is "valid" or "test"; training files hold neither such a question nor, in
what doctors and patients say, such a fact. (Metadata, such as the department in a header, is given as in the source.)
Fine-tuning data is of mixed quality on purpose (`SFT_GRADE_WEIGHTS`): it leaves something for the reward to improve.
"""

import random
from collections.abc import Iterator

from answers import NUM_GRADES, Question, answer, questions_of_split, state
from safety import SAFETY
from world import Disease, World

TRAIN, HELD_OUT = ("train",), ("valid", "test")
ALL = TRAIN + HELD_OUT
SFT_GRADE_WEIGHTS = (60, 25, 10, 5)
DIALOGUE_GRADE_WEIGHTS = (70, 30, 0, 0)
INSTRUCTION = "假设你是一名医生，请回答患者的问题。"
DURATIONS = ("两天", "五天", "一周左右", "半个月", "一个多月", "三个月")
ASK_BACK = ("您好，这种情况持续多久了？", "请问不舒服有多长时间了？", "您好，什么时候开始的？")
REPLIES = ("有{0}了。", "大概{0}。", "{0}了，一直没有好转。")
Turn = tuple[str, str, int]  # speaker P or D, text, label: 1 the patient's request, 2 the doctor's advice, 0 the rest
THANKS = (("好的，谢谢医生。", "不客气，祝您早日康复。"), ("明白了，非常感谢。", "不用谢，按时复诊就好。"))


def training_questions(world: World, counts: tuple[int, ...], purpose: str) -> list[list[Question]]:
    """Lists of training questions of these lengths (shorter if the world has fewer), no question in two of them."""
    questions = questions_of_split(world, *TRAIN)
    world.stream(purpose).shuffle(questions)
    lists, start = [], 0
    for count in counts:
        lists.append(questions[start : start + count])
        start += count
    return lists


def _graded(world: World, rng: random.Random, question: Question, weights: tuple[int, ...] = SFT_GRADE_WEIGHTS) -> str:
    """An answer of a grade drawn by weight, that tells no held-out fact."""
    return answer(world, rng, question, rng.choices(range(NUM_GRADES), weights)[0], TRAIN)


def cmd_finetune(world: World, questions: list[Question]) -> Iterator[dict]:
    """CMD's fine-tuning rows {"instruction", "input", "output"}: the question is the instruction, or the input below a
    general instruction."""
    rng = world.stream("cmd_finetune")
    for question in questions:
        place = {"instruction": question.text, "input": ""}
        if rng.random() < 0.5:
            place = {"instruction": INSTRUCTION, "input": question.text}
        yield {**place, "output": _graded(world, rng, question)}


def chimed(world: World, questions: list[Question], splits: tuple[str, ...]) -> Iterator[dict]:
    """ChiMed's question pages, one JSON object per line, with the field names of the corpus's published crawler:

    {"id", "department": "A>B", "title", "question_content", "labels": keywords joined by tabs, "answers": [{"mid",
    "adopted": "True" | "False", "recommended": "True" | "False", "answer"}]}. Of one to three answers, in any order,
    the best is adopted, or recommended where the patient adopted none; the others are neither.
    """
    rng = world.stream("chimed", *splits)
    for number, question in enumerate(questions, start=1):
        best = "adopted" if rng.random() < 0.7 else "recommended"
        grades = [rng.choices((0, 1), (70, 30))[0], *rng.choices((1, 2, 3), k=rng.randint(0, 2))]
        rows = [
            {
                "mid": str(rng.randint(10**6, 10**7 - 1)),
                "adopted": str(first and best == "adopted"),
                "recommended": str(first and best == "recommended"),
                "answer": answer(world, rng, question, grade, splits),
            }
            for first, grade in zip((True, False, False), grades, strict=False)
        ]
        rng.shuffle(rows)
        yield {
            "id": f"{splits[0]}-{number}",
            "department": f"医院>{question.disease.department}",
            "title": question.text.rstrip("？。"),
            "question_content": question.text,
            "labels": "\t".join((question.disease.name, question.disease.department)),
            "answers": rows,
        }


def _turns(world: World, rng: random.Random, questions: list[Question], splits: tuple[str, ...]) -> list[Turn]:
    """The turns of one dialogue that asks these questions one after the other."""
    turns = []
    for number, question in enumerate(questions):
        if number == 0:
            person = f"（{rng.choice('男女')}，{rng.randint(18, 79)}岁）"
            turns.append(("P", question.text + person, 1))
            if rng.random() < 0.6:
                turns.append(("D", rng.choice(ASK_BACK), 0))
                turns.append(("P", rng.choice(REPLIES).format(rng.choice(DURATIONS)), 0))
        else:
            turns.append(("P", question.text, 0))
        grade = rng.choices(range(NUM_GRADES), DIALOGUE_GRADE_WEIGHTS)[0]
        turns.append(("D", answer(world, rng, question, grade, splits), 2))
        if rng.random() < 0.2:  # a doctor often sends two messages in a row
            turns.append(("D", state(rng, question.keys[0], question.disease), 2))
    if rng.random() < 0.7:
        patient, doctor = rng.choice(THANKS)
        turns += [("P", patient, 0), ("D", doctor, 0)]
    return turns


def dialogues(world: World, purpose: str, count: int, splits: tuple[str, ...]) -> Iterator[tuple[Disease, list[Turn]]]:
    """`count` dialogues as (disease, turns), each on one to three facets of one disease, all of these splits."""
    rng = world.stream("dialogues", purpose)
    by_disease: dict[str, dict[str, list[Question]]] = {}
    for question in questions_of_split(world, *splits):
        by_disease.setdefault(question.disease.name, {}).setdefault(question.facet, []).append(question)
    names = list(by_disease)
    for number in range(count):
        by_facet = by_disease[names[number % len(names)]]
        facets = rng.sample(list(by_facet), min(len(by_facet), rng.randint(1, 3)))
        questions = [rng.choice(by_facet[facet]) for facet in facets]
        yield questions[0].disease, _turns(world, rng, questions, splits)


def mc_dialog(pairs: Iterator[tuple[Disease, list[Turn]]]) -> Iterator[str]:
    """Blocks of MC's .dialog file: header, P and D lines with a label, SUM1 (the request), SUM2.0 (the advice)."""
    for number, (disease, turns) in enumerate(pairs, start=1):
        lines = [f"id\t{number}\tdepartment\t{disease.department}\tdisease\t{disease.name}"]
        lines += [f"{speaker}\t{text}\t{label}" for speaker, text, label in turns]
        advice = [text.rstrip("。").replace("，", ",") for speaker, text, label in turns if label == 2]
        yield "\n".join((*lines, f"SUM1\t{turns[0][1]}", f"SUM2.0\t{'，'.join(advice)}。")) + "\n\n"


def meddialog(pairs: Iterator[tuple[Disease, list[Turn]]]) -> Iterator[str]:
    """Blocks of MedDialog's raw text: id, address, Doctor faculty, Description, Dialogue with 病人： and 医生：."""
    for number, (disease, turns) in enumerate(pairs, start=1):
        spoken = [f"{'病人' if speaker == 'P' else '医生'}：\n{text}" for speaker, text, _ in turns]
        lines = [f"id={number}", f"https://example.com/flow_team_{number}.htm", "Doctor faculty"]
        lines += [
            f"示例医院 {disease.department}",
            "",
            "Description",
            "疾病：",
            disease.name,
            "病情描述：",
            turns[0][1],
        ]
        lines += ["希望获得的帮助：", "请医生给出建议。", "", "Dialogue", *spoken, "", "", ""]
        yield "\n".join(lines)


def safety_prompts(world: World, count: int) -> dict[str, list[dict]]:
    """Safety-Prompts' layout {category: [{"prompt", "response", "type"}]}, no prompt twice."""
    rng = world.stream("safety")
    rows = [
        (category, prompt.format(d=disease.name, drug=disease.drug), response)
        for category, pairs in SAFETY.items()
        for prompt, responses in pairs
        for disease in world.diseases
        if world.split(disease, "drug") == "train"
        for response in [rng.choice(responses)]
    ]
    rows = list({row[1]: row for row in rows}.values())
    rng.shuffle(rows)
    content: dict[str, list[dict]] = {category: [] for category in SAFETY}
    for category, prompt, response in rows[:count]:
        content[category].append({"prompt": prompt, "response": response, "type": category})
    return content


def ranked(world: World, questions: list[Question], purpose: str, splits: tuple[str, ...]) -> Iterator[dict]:
    """{"question", "responses", "ranks"}: one answer of each grade, best first; ranks are 0, 1, 2, 3."""
    rng = world.stream("ranked", purpose)
    for question in questions:
        responses = [answer(world, rng, question, grade, splits) for grade in range(NUM_GRADES)]
        yield {"question": question.text, "responses": responses, "ranks": list(range(NUM_GRADES))}


def cmd_reward(ranked_rows: list[dict]) -> Iterator[dict]:
    """CMD's reward rows of the same questions: the best answer accepted, the worst rejected."""
    for row in ranked_rows:
        best, worst = row["responses"][0], row["responses"][-1]
        yield {"question": row["question"], "response_chosen": best, "response_rejected": worst}


def gold_questions(world: World, split: str) -> Iterator[dict]:
    """Held-out questions {"id", "question", "answer" (of grade 0), "disease", "facet", "facts": {name: value}}."""
    rng = world.stream("questions", split)
    for number, question in enumerate(questions_of_split(world, split), start=1):
        yield {
            "id": f"{split}-{number}",
            "question": question.text,
            "answer": answer(world, rng, question, 0, ALL),
            "disease": question.disease.name,
            "facet": question.facet,
            "facts": question.required,
        }
