"""Multiple choice by the letter that a model writes."""

import re
import unicodedata

from megatron_chimed.evaluation.kinds.choice import letters, target, text
from megatron_chimed.evaluation.kinds.kind import Kind, Scored, mean, problem, results_of

__all__ = ["KIND", "parse_choice", "process_results", "score", "target", "text"]

# A letter that stands for an option: no part of a word or of 维生素A, no B超, A型 or C反应蛋白, no article of English,
# nor, of ten options, the pronoun I. A small one must be the last of its clause.
_BEFORE = r"(?<![A-Za-z\d维素命])"
_CAPITAL = r"[A-Z](?!(?<=[AI])\s+(?!is\b|and\b|or\b)[a-z]{2}|(?<=I)['’][a-z])"
_SMALL = r"[a-z](?=[)\]」】*\"'}]*[\s.。]*$)"
_LETTER = rf"{_BEFORE}(?:{_CAPITAL}(?=$|\W|[项选是为对错正符不均都和与及或而也更最才就完太应])|{_SMALL})"
_NEXT = rf"{_BEFORE}{_CAPITAL}(?=$|\W|[均都和与及或也])"
_LIST = rf"{_LETTER}(?:(?:[\s、,/和与及或&+]|and|or)+{_NEXT})*"
_OPEN = r"[(\[【「“\"'*{]*"
LETTER = re.compile(_LETTER)
FIRST = re.compile(rf"{_OPEN}({_LIST})")
GLUED = re.compile(rf"{_OPEN}([A-Z]{{2,}})\W*")

MARK = r"答案|选项(?=\s*[:是为])|选择|选|而是|的(?:选项|一项)?[是为]|(?i:answer|boxed)"
MARKED = re.compile(rf"(?:{MARK})(?:\s|:|应该|应当|应|[是为选]|is)*{_OPEN}({_LIST})")
RULED_OUT = re.compile(rf"(?:不|别|勿|非|排除|除了?)(?:能|可以?|应该?|会|要)?\s*(?:选择?|是)?\s*{_OPEN}({_LIST})")
CLAUSE = re.compile(r"[。;!?\n]|\.(?=\s|$)|(?<![A-Z]),|,(?![A-Z])")
WRONG = re.compile(
    r"错误|错[的了]?$|不(?:完全|太)?(?:[对选合]|符合|正确|准确|恰当|成立|属于)|有误|排除|(?i:wrong|incorrect)"
)
RIGHT = re.compile(r"正确|符合|成立|恰当|准确|合适|对[的了]?$|(?i:correct)")


def parse_choice(answer: str, item: dict) -> str | None:
    """The letter that an answer chooses. None where nothing, or more than one thing, is chosen.

    An explicit choice (答案是, 故选) is worth most, then what is said to be right, then the letter at the beginning,
    then the only letter that is not ruled out, then the one option whose text is in the answer. Full-width letters are
    letters.

    >>> item = {"options": ["胃炎", "肺炎", "眼病", "骨折"]}
    >>> parse_choice("B. 肺炎", item), parse_choice("A错误，答案是（Ｃ）。", item), parse_choice("骨折", item)
    ('B', 'C', 'D')
    >>> parse_choice("A、C", item), parse_choice("不选A", item)
    (None, None)
    """
    text = plain(answer)
    options = options_of(item)
    if (glued := GLUED.fullmatch(text)) and set(glued[1]) <= options.keys():
        return None
    chosen = chosen_letters(text, options)
    return chosen.pop() if len(chosen) == 1 else None


def plain(answer: str) -> str:
    """An answer with letters and signs of one width."""
    return unicodedata.normalize("NFKC", answer).strip()


def options_of(item: dict) -> dict[str, str]:
    """{letter: text} of an item's options, in the characters of `plain`."""
    return dict(zip(letters(item), (unicodedata.normalize("NFKC", option) for option in item["options"]), strict=True))


def chosen_letters(text: str, options: dict[str, str]) -> set[str]:
    """All letters that a `plain` text chooses, in the first of the ways of `parse_choice` that finds any."""
    ruled_out = {letter for match in RULED_OUT.finditer(text) for letter in _letters(match[1], options)}
    left = RULED_OUT.sub(" ", text)
    explicit = [match for match in MARKED.finditer(left) if not WRONG.match(left[match.end() :].lstrip("选项是 "))]
    right, wrong = _verdicts(text, options)
    first = FIRST.match(text)
    for chosen in (
        {letter for match in explicit for letter in _letters(match[1], options)},
        right - ruled_out,
        set(_letters(first[1], options)) - ruled_out - wrong if first else set(),
        set(_letters(text, options)) - ruled_out - wrong,
    ):
        if chosen:
            return chosen
    named = {letter for letter, option in options.items() if _is_named(option, text)}
    return set() if ruled_out | wrong else named


def _letters(text: str, options: dict[str, str]) -> list[str]:
    """The options' letters in a text."""
    return [letter.upper() for letter in LETTER.findall(text) if letter.upper() in options]


def _verdicts(text: str, options: dict[str, str]) -> tuple[set[str], set[str]]:
    """The letters that are said to be right, and those that are said to be wrong, clause by clause."""
    right, wrong = set(), set()
    for clause in CLAUSE.split(re.sub(rf"({_LETTER})\s*[.、:)](?!\s*{_LETTER})", r"\1 ", text)):
        found = _letters(clause, options)
        for option in options.values():
            clause = clause.replace(option, "")  # its words say nothing of it
        if WRONG.search(clause):
            wrong.update(found)
        elif RIGHT.search(clause):
            right.update(found)
    return right, wrong


def _is_named(option: str, text: str) -> bool:
    """Whether an option's words are in a text, and not behind a denial."""
    return re.search(rf"(?<!不是)(?<!排除)(?<!不考虑){re.escape(option)}", text) is not None


def score(item: dict, answer: str) -> Scored:
    """acc: 1 for the right letter; unparsed: 1 where no letter was understood."""
    letter = parse_choice(answer, item)
    return Scored(letter, {"acc": float(letter == target(item)), "unparsed": float(letter is None)})


process_results = results_of(score)
KIND = Kind(
    "letter",
    "Multiple choice by the letter that a model writes.",
    {"acc": mean("accuracy|by:generated letter|shots:5"), "unparsed": problem()},
    target,
    {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False},
    },
)
