"""Named entities and multiple choice from the same facts: test sets with gold answers, and exercises to learn from."""

import random
from collections.abc import Iterator, Sequence

from answers import fill, state
from documents import CASE_ENDS, CASES, case_wording
from grading import find_values
from sources import HELD_OUT, TRAIN
from world import KEYS, Disease, World

from megatron_chimed.evaluation.entities import Mention, write_answer
from megatron_chimed.evaluation.kinds.choice import text as choice_text
from megatron_chimed.evaluation.kinds.entities import text as entity_text

ENTITY_TYPES = {"disease": "疾病", "symptom": "症状", "drug": "药物", "examination": "检查"}
RECORDS = (
    "患者因{symptoms}入院，行{examination}，诊断为{d}。",
    "主诉{symptoms}。初步诊断：{d}。予{drug}治疗。",
    "既往有{d}病史，长期使用{drug}。",
    "查体未见异常，{examination}未见异常，暂不考虑{d}。",
    "今日复查{examination}，继续服用{drug}，{symptoms}较前减轻。",
    "入院后完善{examination}，确诊{d}，给予{drug}口服，{dose}。",
    "病程中出现{symptoms}，停用{drug}后好转。",
    "门诊以{d}收入院。",
    "家属代诉患者{symptoms}，曾自服{drug}，效果不佳。",
    "出院诊断：{d}。出院带药：{drug}。",
    "拟行{examination}以排除{d}。",
)

SUBJECTS = {  # subject -> key -> (field that is asked for, wordings)
    "basic_medicine": {
        "symptoms": ("symptom", ("下列哪一项是{d}的症状？", "{d}患者最可能出现的表现是")),
        "cause": ("cause", ("{d}最常见的病因是", "下列因素中，会引起{d}的是")),
        "group": ("group", ("{d}的高发人群是", "下列人群中，最容易得{d}的是")),
    },
    "clinical_medicine": {
        "department": ("department", ("{d}患者应当就诊的科室是", "下列科室中，负责诊治{d}的是")),
        "drug": ("drug", ("治疗{d}的首选药物是", "下列药物中，用于{d}的是")),
        "examination": ("examination", ("诊断{d}首选的检查是", "下列检查中，可以确诊{d}的是")),
        "advice": ("advice", ("对{d}患者，正确的生活指导是", "{d}的护理要点是")),
        "contraindication": ("contraindication", ("治疗{d}的药物禁用于", "下列人群中，不能使用{d}常规用药的是")),
    },
}
DEV_ITEMS = 5
ENTITY_INSTRUCTION = (  # as in evaluation
    "请找出病历中的医学实体，类型有：检查、疾病、症状、药物。"
    "每行写一个实体，格式为“类型：实体”，实体要与原文一致；没有实体时回答“无”。"
)
CHOICE_INSTRUCTION = "以下是医学的单项选择题，请选出其中的正确答案。"
WITH_EXAMPLES = 0.3  # share of the exercises that show one to five solved ones first, as evaluation does
LETTERS = "ABCD"
COLUMNS = ("id", "question", *LETTERS, "answer", "explanation")


def ner_sentences(world: World, counts: dict[str, int]) -> dict[str, list[dict]]:
    """{split: rows} in the layout of CCKS-2019: {"originalText", "entities": [{"label_type", "start_pos", "end_pos"}]}.

    Positions count characters from 0; end_pos is exclusive. No text is in two splits.
    """
    rng = world.stream("ner")
    rows: dict[str, dict] = {}
    while len(rows) < sum(counts.values()):
        disease = rng.choice(world.diseases)
        wording = rng.choice(RECORDS)
        if rng.random() < 0.5:
            wording = case_wording(rng, rng.choice(CASES)) + rng.choice((*CASE_ENDS, ""))
        text = fill(wording, disease)
        entities = [
            {"label_type": ENTITY_TYPES[kind], "start_pos": start, "end_pos": end}
            for start, end, kind in find_values(text, world.vocabulary)
            if kind in ENTITY_TYPES
        ]
        rows[text] = {"originalText": text, "entities": entities}
    ordered = iter(rows.values())
    return {split: [next(ordered) for _ in range(count)] for split, count in counts.items()}


def multiple_choice(world: World, subject: str, split: str) -> Iterator[dict]:
    """Rows of C-Eval's CSV (`COLUMNS`). "dev": five items on training facts; "test": every held-out fact of the
    subject, in two wordings. Each letter is right equally often, so that guessing scores 25%."""
    rng = world.stream("multiple choice", subject, split)
    splits = TRAIN if split == "dev" else HELD_OUT
    items = [
        (disease, key, wording)
        for disease in world.diseases
        for key, (_, wordings) in SUBJECTS[subject].items()
        if world.split(disease, key) in splits
        for wording in wordings
    ]
    rng.shuffle(items)
    items = items[:DEV_ITEMS] if split == "dev" else items
    letters = [LETTERS[index % len(LETTERS)] for index in range(len(items))]
    rng.shuffle(letters)
    for number, ((disease, key, wording), letter) in enumerate(zip(items, letters, strict=True)):
        options = _options(world, rng, disease, key, SUBJECTS[subject][key][0], letter)
        yield {
            "id": number,
            "question": wording.format(d=disease.name),
            **dict(zip(LETTERS, options, strict=True)),
            "answer": letter,
            "explanation": state(rng, key, disease),
        }


def _options(world: World, rng: random.Random, disease: Disease, key: str, kind: str, letter: str) -> list[str]:
    """The right value at its letter among three false ones of the same kind, all different."""
    options = world.false_values(rng, disease, kind, len(LETTERS) - 1)
    right = rng.choice(disease.symptoms) if kind == "symptom" else getattr(disease, key)
    options.insert(LETTERS.index(letter), right)
    return options


def _exercise(instruction: str, solved: Sequence[tuple[str, str]], text: str, answer: str) -> dict:
    """A row of CMD's fine-tuning data: instruction, solved exercises, the exercise; and its answer."""
    shown = [f"{question}{solution}" for question, solution in solved]
    return {"instruction": "\n\n".join([instruction, *shown, text]), "input": "", "output": answer}


def entity_exercises(world: World, sentences: list[dict]) -> Iterator[dict]:
    """An exercise for each sentence of `ner_sentences` that tells no held-out fact; its examples are other ones."""
    rng = world.stream("entity exercises")
    solved = []
    for row in sentences:
        if _tells_held_out(world, row["originalText"]):
            continue
        text = row["originalText"]
        spans = [(one["label_type"], one["start_pos"], one["end_pos"]) for one in row["entities"]]
        solved.append((entity_text({"text": text}), write_answer(Mention(k, text[a:b], a, b) for k, a, b in spans)))
    for number, (question, answer) in enumerate(solved):
        others = [(one, f"\n{solution}") for one, solution in solved[:number] + solved[number + 1 :]]
        yield _exercise(ENTITY_INSTRUCTION, rng.sample(others, _examples(rng)), question, answer)


def _tells_held_out(world: World, text: str) -> bool:
    """Whether a sentence names a disease and one of its held-out values."""
    return any(
        value in text
        for disease in world.diseases
        if disease.name in text
        for key in KEYS
        if world.split(disease, key) in HELD_OUT
        for value in disease.facts(key).values()
    )


def choice_exercises(world: World, count: int) -> Iterator[dict]:
    """Exercises on training facts, in the wordings of the exam. An answer names the option and then its letter."""
    rng = world.stream("choice exercises")
    items = [
        (disease, key, wordings, kind)
        for disease in world.diseases
        for subject in SUBJECTS.values()
        for key, (kind, wordings) in subject.items()
        if world.split(disease, key) in TRAIN
    ]

    def draw() -> tuple[str, str, str]:
        disease, key, wordings, kind = rng.choice(items)
        letter = rng.choice(LETTERS)
        options = _options(world, rng, disease, key, kind, letter)
        question = choice_text({"question": rng.choice(wordings).format(d=disease.name), "options": options})
        return question, letter, options[LETTERS.index(letter)]

    for _ in range(count):
        solved = [(question, f" {letter}") for question, letter, _ in (draw() for _ in range(_examples(rng)))]
        question, letter, option = draw()
        yield _exercise(CHOICE_INSTRUCTION, solved, question, f"{option}，选{letter}。")


def _examples(rng: random.Random) -> int:
    """How many solved exercises an exercise shows."""
    return rng.randint(1, 5) if rng.random() < WITH_EXAMPLES else 0
