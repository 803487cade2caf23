"""Questions of patients, and answers in four grades of quality.

0: complete and right; 1: complete and right, padded with empty words; 2: partly right, a fact wrong or missing;
3: wrong or beside the point. As with the people and models that the grades stand for, manner goes with quality, though
not strictly: hedges are commoner in grade 2, brush-offs in grade 3, and length says little.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from wordings import DISMISSALS, FILLERS, HEDGES, OPENERS, QUESTIONS, STATEMENTS
from world import KEYS, Disease, World

NUM_GRADES = 4
DISEASE_FACETS = ("by_symptoms", "by_drug")  # the answer is the disease itself


@dataclass(frozen=True)
class Question:
    """A question: its wording, the disease and the facet (a name in QUESTIONS) that it asks for."""

    text: str
    disease: Disease
    facet: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the world that the answer needs; they decide the split."""
        return QUESTIONS[self.facet][0]

    @property
    def required(self) -> dict[str, str]:
        """Fact name -> value that a complete answer states."""
        if self.facet in DISEASE_FACETS:
            return {"disease": self.disease.name}
        return {name: value for key in self.keys for name, value in self.disease.facts(key).items()}


def all_questions(world: World) -> Iterator[Question]:
    """Every wording of every facet of every disease, in a fixed order."""
    for disease in world.diseases:
        for facet, (_, _, wordings) in QUESTIONS.items():
            for wording in wordings:
                yield Question(fill(wording, disease), disease, facet)


def questions_of_split(world: World, *splits: str) -> list[Question]:
    """The questions of these splits, in a fixed order."""
    return [q for q in all_questions(world) if world.split_of(q.disease, q.keys) in splits]


def fill(wording: str, disease: Disease) -> str:
    """A wording with the disease's name and values in it."""
    *first, last = disease.symptoms
    symptoms = "和".join(("、".join(first), last)) if first else last
    values = {key: getattr(disease, key) for key in (*KEYS, "dose")} | {"symptoms": symptoms}
    return wording.format(d=disease.name, **values)


def state(rng: random.Random, key: str, disease: Disease) -> str:
    """One statement of a key, in wording that training may see."""
    choices = STATEMENTS[key]
    return fill(rng.choice(choices[:-1] if key in KEYS else choices), disease)


def answer(world: World, rng: random.Random, question: Question, grade: int, splits: tuple[str, ...]) -> str:
    """An answer of the given grade, 0 (best) to 3. True facts beyond those asked for come from `splits` alone, so that
    an answer in the training data never gives away a held-out fact."""
    others = [key for key in KEYS if key not in question.keys and world.split(question.disease, key) in splits]
    if grade == 0:
        sentences = _core(rng, question, question.disease)
        sentences += _true(rng, question.disease, others, rng.choice((0, 1, 1, 2, 2)))
    elif grade == 1:
        sentences = _core(rng, question, question.disease)
        sentences += _true(rng, question.disease, others, rng.choice((0, 0, 0, 1)))
        for filler in rng.sample(FILLERS, rng.choice((1, 1, 2))):
            sentences.insert(rng.randint(1, len(sentences)), filler)
    elif grade == 2:
        sentences = _partly_right(world, rng, question, others)
        sentences += _true(rng, question.disease, others, rng.choice((0, 0, 1)))
        sentences += rng.sample(HEDGES, rng.choice((0, 1, 1))) + rng.sample(FILLERS, rng.choice((0, 0, 0, 1)))
    else:
        sentences = _wrong(world, rng, question, others) or rng.sample(DISMISSALS, 1)
        sentences += rng.sample(DISMISSALS, rng.choice((0, 1, 1, 2))) + rng.sample(FILLERS, rng.choice((0, 0, 1, 1)))
    return rng.choice(OPENERS[grade]) + "".join(dict.fromkeys(sentences))


def _true(rng: random.Random, disease: Disease, keys: list[str], number: int) -> list[str]:
    """Up to `number` true statements, each of another key."""
    return [state(rng, key, disease) for key in rng.sample(keys, min(number, len(keys)))]


def _core(rng: random.Random, question: Question, disease: Disease) -> list[str]:
    """The sentences that answer the question, with the facts of `disease` (which may have been falsified)."""
    return [state(rng, key, disease) for key in QUESTIONS[question.facet][1]]


def _partly_right(world: World, rng: random.Random, question: Question, others: list[str]) -> list[str]:
    """The answer with one fact left out, one fact false, or a false statement added where there is one fact only."""
    disease, keys = question.disease, question.keys
    if len(question.required) == 1:
        key = rng.choice([key for key in others if key not in ("symptoms", "drug")] or keys)
        return _core(rng, question, disease) + [state(rng, key, _falsify(world, rng, disease, (key,)))]
    part = rng.choice(keys)
    if rng.random() < 0.5:  # one fact false
        if part == "symptoms":
            symptoms = list(disease.symptoms)
            symptoms[rng.randrange(3)] = world.false_values(rng, disease, "symptom")[0]
            return _core(rng, question, replace(disease, symptoms=tuple(symptoms)))
        wrong = "dose" if part == "drug" else part
        return _core(rng, question, replace(disease, **{wrong: world.false_values(rng, disease, wrong)[0]}))
    if part == "symptoms":  # one or two facts missing
        kept = sorted(rng.sample(range(3), rng.choice((1, 2))))
        return _core(rng, question, replace(disease, symptoms=tuple(disease.symptoms[i] for i in kept)))
    if part == "drug":
        return [state(rng, "drug_only" if key == "drug" else key, disease) for key in keys]
    return [state(rng, key, disease) for key in keys if key != part]


def _falsify(world: World, rng: random.Random, disease: Disease, keys: tuple[str, ...]) -> Disease:
    """The disease under its own name with every value of these keys replaced by a false one."""
    changes: dict[str, object] = {}
    for key in keys:
        if key == "symptoms":
            changes[key] = tuple(world.false_values(rng, disease, "symptom", 3))
        elif key == "drug":
            changes |= {name: world.false_values(rng, disease, name)[0] for name in ("drug", "dose")}
        else:
            changes[key] = world.false_values(rng, disease, key)[0]
    return replace(disease, **changes)


def _wrong(world: World, rng: random.Random, question: Question, others: list[str]) -> list[str]:
    """False facts, true facts that nobody asked for, or no fact at all."""
    disease, chance = question.disease, rng.random()
    if question.facet in DISEASE_FACETS:
        if chance < 0.8:  # a disease that shares no symptom, or the answer would be right in part
            names = [one.name for one in world.diseases if not set(one.symptoms) & set(disease.symptoms)]
            return _core(rng, question, replace(disease, name=rng.choice(names)))
        return []
    if chance < 0.5:
        return _core(rng, question, _falsify(world, rng, disease, question.keys))
    if chance < 0.85 and others:
        return _true(rng, disease, others, rng.choice((1, 2)))
    return []
