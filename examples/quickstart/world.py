"""The synthetic medical world: a few dozen invented diseases and the facts that hold of them.

Every name is invented and every association is drawn by seed: nothing here is medical knowledge. A *value* is a phrase
such as a drug's name; a *key* is what it says of the disease (`KEYS`). Each (disease, key) belongs to one split by
hash: questions about a "valid" or "test" key never occur in the data for fine-tuning or the reward model, while its
values are stated many times in the documents for pre-training.
"""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import pools

from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import read_json

KEYS = ("department", "symptoms", "drug", "examination", "advice", "cause", "group", "contraindication")
DISEASES_AT_SIZE_1 = 24
MIN_DISEASES, MAX_DISEASES = 8, 288
HELD_OUT_PERCENT = {"valid": 10, "test": 10}


@dataclass(frozen=True)
class Disease:
    """One disease and its facts. `symptoms` are three, and no other disease has the same three; `drug` is its own."""

    name: str
    department: str
    symptoms: tuple[str, ...]
    drug: str
    dose: str
    examination: str
    advice: str
    cause: str
    group: str
    contraindication: str

    def facts(self, key: str) -> dict[str, str]:
        """Fact name -> value for one key: ``facts("drug") == {"drug": "舒泰片", "dose": "每日两次每次一片"}``."""
        if key == "symptoms":
            return {f"symptom_{number}": symptom for number, symptom in enumerate(self.symptoms, start=1)}
        if key == "drug":
            return {"drug": self.drug, "dose": self.dose}
        return {key: getattr(self, key)}

    @cached_property
    def values(self) -> frozenset[str]:
        """All values that are true of this disease, its name included."""
        return frozenset((self.name, *(value for key in KEYS for value in self.facts(key).values())))


@dataclass(frozen=True)
class World:
    """All diseases, and the seed and size that made them."""

    seed: int
    size: float
    diseases: tuple[Disease, ...]

    @cached_property
    def vocabulary(self) -> dict[str, str]:
        """Value -> its kind (the Disease field that it fills; `symptom` and `disease` in the singular)."""
        kinds = {}
        for disease in self.diseases:
            kinds[disease.name] = "disease"
            for key in KEYS:
                for name, value in disease.facts(key).items():
                    kinds[value] = "symptom" if key == "symptoms" else name
        return kinds

    @cached_property
    def by_name(self) -> dict[str, Disease]:
        """Disease name -> Disease."""
        return {disease.name: disease for disease in self.diseases}

    def stream(self, *names: object) -> random.Random:
        """A random stream of its own for each purpose, so that one file's content never depends on another's."""
        return random.Random("/".join(map(str, ("medical world", self.seed, *names))))

    def split(self, disease: Disease, key: str) -> str:
        """ "train", "valid" or "test": by hash of seed, disease and key."""
        digest = hashlib.sha256(f"{self.seed}/{disease.name}/{key}".encode()).digest()
        percentile, bound = int.from_bytes(digest[:8]) % 100, 0
        for name, share in HELD_OUT_PERCENT.items():
            bound += share
            if percentile < bound:
                return name
        return "train"

    def split_of(self, disease: Disease, keys: Iterable[str]) -> str:
        """The split of a question that needs several keys: "train" only if all are; "test" if any is."""
        splits = {self.split(disease, key) for key in keys}
        return next(name for name in ("test", "valid", "train") if name in splits)

    @cached_property
    def by_kind(self) -> dict[str, tuple[str, ...]]:
        """Kind -> its values, in a fixed order."""
        kinds: dict[str, list[str]] = {}
        for value, kind in self.vocabulary.items():
            kinds.setdefault(kind, []).append(value)
        return {kind: tuple(values) for kind, values in kinds.items()}

    def false_values(self, rng: random.Random, disease: Disease, kind: str, number: int = 1) -> list[str]:
        """Different values of this kind that do not hold of the disease."""
        return rng.sample([value for value in self.by_kind[kind] if value not in disease.values], number)


def build_world(seed: int = 0, size: float = 1.0) -> World:
    """Draw a world. size 1.0 gives 24 diseases; the number grows with size, from 8 to 288.

    Raises InputError if the size is not a number between 0 and 12.

    >>> [disease.name for disease in build_world(seed=0, size=0.4).diseases][:2]
    ['玄兰喘症', '丹桥肠症']
    """
    if not 0 < size <= MAX_DISEASES / DISEASES_AT_SIZE_1:
        raise InputError(f"--size {size}: expected a number above 0 and up to {MAX_DISEASES // DISEASES_AT_SIZE_1}")
    number = max(MIN_DISEASES, round(DISEASES_AT_SIZE_1 * size))
    rng = World(seed, size, ()).stream("facts")
    disease_stems = rng.sample([a + b for a in pools.DISEASE_STEMS[0] for b in pools.DISEASE_STEMS[1]], number)
    drug_stems = rng.sample([a + b for a in pools.DRUG_STEMS[0] for b in pools.DRUG_STEMS[1]], number)
    departments = list(pools.DEPARTMENTS)
    advice, causes, groups, contraindications = (
        _deal(rng, pool, number) for pool in (pools.ADVICE, pools.CAUSES, pools.GROUPS, pools.CONTRAINDICATIONS)
    )
    seen: set[tuple[str, ...]] = set()
    diseases = []
    for index in range(number):
        department = departments[index % len(departments)]
        endings, symptom_pool, examinations, forms = pools.DEPARTMENTS[department]
        symptoms = _new_triple(rng, symptom_pool, seen)
        form = rng.choice(forms)
        disease = Disease(
            name=disease_stems[index] + rng.choice(endings),
            department=department,
            symptoms=symptoms,
            drug=drug_stems[index] + form,
            dose=rng.choice(pools.FREQUENCIES) + rng.choice(pools.AMOUNTS[form]),
            examination=rng.choice(examinations),
            advice=advice[index],
            cause=causes[index],
            group=groups[index],
            contraindication=contraindications[index],
        )
        diseases.append(disease)
    return World(seed, size, tuple(diseases))


def _deal(rng: random.Random, pool: tuple[str, ...], number: int) -> list[str]:
    """`number` values of a pool, none used a second time before all have been used."""
    rounds = -(-number // len(pool))
    return [value for _ in range(rounds) for value in rng.sample(pool, len(pool))][:number]


def _new_triple(rng: random.Random, pool: tuple[str, ...], seen: set[tuple[str, ...]]) -> tuple[str, ...]:
    """Three symptoms, in the pool's order, that no earlier disease has: symptoms then name one disease."""
    while True:
        triple = tuple(pool[i] for i in sorted(rng.sample(range(len(pool)), 3)))
        if triple not in seen:
            seen.add(triple)
            return triple


def world_to_json(world: World) -> dict:
    """The content of facts.json."""
    return {"seed": world.seed, "size": world.size, "diseases": [asdict(disease) for disease in world.diseases]}


def load_world(path: str | Path) -> World:
    """Read facts.json. Raises InputError if it is not one."""
    content = read_json(path)
    names = {field.name for field in fields(Disease)}
    rows = content.get("diseases") if isinstance(content, dict) else None
    if not isinstance(rows, list) or any(not isinstance(row, dict) or set(row) != names for row in rows):
        raise InputError(f"{path}: not a facts.json of the synthetic world; make one with make_world.py")
    diseases = tuple(Disease(**{**row, "symptoms": tuple(row["symptoms"])}) for row in rows)
    return World(content["seed"], content["size"], diseases)
