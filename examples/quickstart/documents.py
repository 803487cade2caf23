"""Documents for pre-training: encyclopedia articles, cases, drug cards, comparisons, surveys of a department.

Each states facts of the world in one of many wordings. Sentences of 15 to 40 characters from a limited stock make the
text easy to predict once the facts are known, while its single characters remain hard to guess.
"""

import random
from collections.abc import Iterator

from answers import fill
from wordings import STATEMENTS
from world import KEYS, Disease, World

DOCUMENTS_PER_DISEASE = {"article": 76, "case": 24, "drug_card": 20, "comparison": 16, "survey": 12}
HELD_OUT_PER_DISEASE = {"article": 4, "case": 2, "comparison": 2}
SAME_DISEASE = 0.15  # share of an article's sentences that say 本病 in place of the name

TITLES = ("{d}", "{d}科普", "认识{d}", "{d}的诊断与治疗", "关于{d}", "{d}概述")
LEADS = (
    "{d}是一种需要重视的疾病。",
    "下面介绍{d}的基本知识。",
    "本文谈谈{d}的诊断和防治。",
    "很多人对{d}并不了解。",
    "认识{d}，有助于及早发现、及早治疗。",
    "{d}虽然常见，但并不可怕。",
)
ENDS = (
    "",
    "",
    "",
    "及时就医有助于早日康复。",
    "如有不适，应尽早到正规医院看病。",
    "患者要听从医生的安排，不要自行停药。",
    "只要规范治疗，多数患者预后良好。",
    "家人的关心和支持也很重要。",
)
CASES = (
    "患者{surname}某，{sex}，{age}岁，{duration}以来{symptoms}，到{department}就诊。医生为其安排{examination}，结果支持{d}。",
    "{surname}{title}今年{age}岁，近{duration}出现{symptoms}，于是挂了{department}的号。经过{examination}，医生确诊为{d}。",
    "{department}收治一名{age}岁的{sex}性患者，{symptoms}已有{duration}。{examination}提示{d}。",
    "一位{age}岁的{sex}患者因{symptoms}来到{department}。病史{duration}，{examination}的结果符合{d}。",
)
CASE_ENDS = (
    "医生给予{drug}，{dose}，并嘱咐{advice}。",
    "治疗上使用{drug}，{dose}，同时要求{advice}。",
    "处方为{drug}，{dose}。出院时医生提醒要{advice}。",
    "经{drug}治疗，{dose}，症状明显好转。医生建议继续{advice}。",
)
DRUG_CARDS = (
    ("{drug}说明：本品用于治疗{d}。", "【药品】{drug}。主治{d}。", "{drug}是{department}治疗{d}的常用药。"),
    ("{drug}的用法用量为{dose}。", "使用{drug}时应{dose}。", "推荐用量为{dose}。"),
    ("{contraindication}禁用{drug}。", "{drug}不可用于{contraindication}。", "禁忌：{contraindication}。"),
    ("{drug}适合有{symptoms}的{d}患者。", "服药期间若仍有{symptoms}，请复诊。", "{drug}可以缓解{symptoms}。"),
    ("用药前应完成{examination}。", "疗效以{examination}的结果为准。"),
    ("用药期间请{advice}。", "配合{advice}，效果更好。"),
)
COMPARISONS = (
    "{a}和{b}容易混淆，下面逐项比较。",
    "很多人分不清{a}与{b}。",
    "本节比较{a}和{b}这两种疾病。",
    "{a}与{b}的区别如下。",
)
SURVEYS = (
    "{department}常见病简介。",
    "走进{department}，看看这里治疗哪些病。",
    "{department}的医生每天要面对多种疾病。",
    "本章介绍{department}的几种疾病。",
)
SURNAMES = "赵钱孙李周吴郑王冯陈蒋沈韩杨朱秦许何吕施张孔曹严金魏陶姜"
DURATIONS = ("三天", "一周", "十余天", "半个月", "一个月", "两个月", "半年")


def make_documents(world: World, held_out: bool = False) -> Iterator[str]:
    """All documents of one set, in random order, no two alike; held-out ones put the same facts together anew."""
    rng = world.stream("documents", "held-out" if held_out else "train")
    counts = HELD_OUT_PER_DISEASE if held_out else DOCUMENTS_PER_DISEASE
    plan = [(kind, disease) for disease in world.diseases for kind, number in counts.items() for _ in range(number)]
    rng.shuffle(plan)
    seen = set()
    for kind, disease in plan:
        text = _WRITERS[kind](world, rng, disease)
        while text in seen:
            text = _WRITERS[kind](world, rng, disease)
        seen.add(text)
        yield text


def _state(rng: random.Random, key: str, disease: Disease) -> str:
    """One statement in one of its wordings."""
    return fill(rng.choice(STATEMENTS[key]), disease)


def _article(world: World, rng: random.Random, disease: Disease) -> str:
    """An encyclopedia article: title, lead, six to eight facts in any order, a summary that restates up to four."""
    keys = rng.sample(KEYS, rng.randint(6, len(KEYS)))
    sentences = []
    for key in keys:
        sentence = _state(rng, key, disease)
        sentences.append(sentence.replace(disease.name, "本病") if rng.random() < SAME_DISEASE else sentence)
    title, lead = rng.choice(TITLES).format(d=disease.name), rng.choice(LEADS).format(d=disease.name)
    summary = "".join(_state(rng, key, disease) for key in rng.sample(KEYS, rng.randint(0, 4)))
    return f"{title}\n{lead}{''.join(sentences)}{rng.choice(ENDS)}" + (f"\n小结：{summary}" if summary else "")


def case_wording(rng: random.Random, wording: str) -> str:
    """A wording of CASES with an invented patient in it; the fields of the disease stay open."""
    sex = rng.choice("男女")
    person = {
        "surname": rng.choice(SURNAMES),
        "sex": sex,
        "title": "先生" if sex == "男" else "女士",
        "age": str(rng.randint(18, 79)),
        "duration": rng.choice(DURATIONS),
    }
    for name, value in person.items():
        wording = wording.replace("{" + name + "}", value)
    return wording


def _case(world: World, rng: random.Random, disease: Disease) -> str:
    """A case report: symptoms come first and the disease follows from them; then one or two general facts."""
    wording = case_wording(rng, rng.choice(CASES)) + rng.choice(CASE_ENDS)
    keys = rng.sample(("cause", "group", "contraindication", "advice", "drug"), rng.randint(3, 5))
    return fill(wording, disease) + "".join(_state(rng, key, disease) for key in keys) + rng.choice(ENDS)


def _drug_card(world: World, rng: random.Random, disease: Disease) -> str:
    """What a leaflet says of the disease's drug: the drug comes first and the disease follows from it."""
    first, *others = DRUG_CARDS
    parts = rng.sample(others, rng.randint(3, len(others)))
    tail = "".join(_state(rng, key, disease) for key in rng.sample(KEYS, rng.randint(2, 4)))
    return "".join(fill(rng.choice(part), disease) for part in (first, *parts)) + tail


def _comparison(world: World, rng: random.Random, disease: Disease) -> str:
    """Two diseases side by side, half of the time of the same department."""
    kin = [other for other in world.diseases if other.department == disease.department and other != disease]
    pool = kin if kin and rng.random() < 0.5 else [other for other in world.diseases if other != disease]
    other = rng.choice(pool)
    text = rng.choice(COMPARISONS).format(a=disease.name, b=other.name)
    for key in rng.sample(KEYS, rng.randint(3, 6)):
        first, second = (_state(rng, key, one) for one in (disease, other))
        text += first.removesuffix("。") + "；" + second
    return text + rng.choice(ENDS)


def _survey(world: World, rng: random.Random, disease: Disease) -> str:
    """Three or four diseases of one department, two to four facts each."""
    kin = [other for other in world.diseases if other.department == disease.department and other != disease]
    chosen = [disease, *rng.sample(kin, min(len(kin), rng.randint(2, 3)))]
    rng.shuffle(chosen)
    text = rng.choice(SURVEYS).format(department=disease.department)
    for one in chosen:
        keys = rng.sample([key for key in KEYS if key != "department"], rng.randint(2, 4) if len(chosen) > 1 else 6)
        text += "".join(_state(rng, key, one) for key in keys)
    return text


_WRITERS = {"article": _article, "case": _case, "drug_card": _drug_card, "comparison": _comparison, "survey": _survey}
