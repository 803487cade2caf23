"""Multiple choice of which several options may be right, by the letters that a model writes: all of them, or none."""

import re

from megatron_chimed.evaluation.kinds.choice import letters, text
from megatron_chimed.evaluation.kinds.kind import Kind, Metric, Scored, mean, problem, results_of
from megatron_chimed.evaluation.kinds.letter import GLUED, chosen_letters, options_of, plain
from megatron_chimed.evaluation.statistics import mean_ratio

__all__ = ["KIND", "aggregate_part", "parse_choices", "process_results", "score", "target", "text"]

# Letters without anything between them, no part of a word; `_parted` takes those in the order of the alphabet alone, in
# which few abbreviations are.
_RUN = re.compile(r"(?<![A-Za-z\d维素命])[A-Z]{2,}(?=$|[^\w]|[项选是为对错正符不均都和与及或而也四五])")
_ALL = re.compile(r"全选|(?:以上|上述|[四五]个?选?项)(?:选项|各项|说法)?(?:都|均|全)(?:是|对|正确|选|符合)")


def target(item: dict) -> str:
    """The right letters, in the order of the alphabet."""
    return "".join(letters(item)[place] for place in sorted(item["answers"]))


def parse_choices(answer: str, item: dict) -> str | None:
    """The letters that an answer chooses, in the order of the alphabet; None where it chooses none.

    An answer may be a list of options, letter and text. Else the ways are those of `letter.parse_choice`, the first one
    that finds letters decides; all that it finds are chosen, with nothing between them (ABD) too.

    >>> item = {"options": ["胃炎", "肺炎", "眼病", "骨折"]}
    >>> [parse_choices(answer, item) for answer in ("DA", "答案：A、C。", "A对，B错，C对", "故选BCD", "全选", "不知道")]
    ['AD', 'AC', 'AC', 'BCD', 'ABCD', None]
    """
    answer, options = plain(answer), options_of(item)
    glued = GLUED.fullmatch(answer.upper())
    if glued and set(glued[1]) <= options.keys():
        return "".join(sorted(set(glued[1])))
    chosen = _listed(answer, options)
    chosen = chosen or chosen_letters(_RUN.sub(lambda match: _parted(match[0], options), answer), options)
    said = _ALL.search(answer)
    if not chosen and said and not any(said[0] in option for option in options.values()):
        chosen = set(options)
    return "".join(sorted(chosen)) or None


def _listed(answer: str, options: dict[str, str]) -> set[str]:
    """The letters of an answer that is nothing but options, "A. 胃炎; D. 骨折" or a line each; else none."""
    lines = [line.strip(" 。.,、") for line in re.split(r"[\n;]", answer) if line.strip()]
    forms = {re.sub(r"\W", "", letter + text): letter for letter, text in options.items()}
    found = {forms.get(re.sub(r"\W", "", line)) for line in lines}
    return set() if None in found else found


def _parted(run: str, options: dict[str, str]) -> str:
    """ABD as A、B、D, if these are options in their order."""
    return "、".join(run) if set(run) <= options.keys() and list(run) == sorted(set(run)) else run


def score(item: dict, answer: str) -> Scored:
    """acc: 1 where exactly the right letters are chosen; acc_one, acc_several: [acc, 1] for an item with one right
    letter or with several, else [0, 0]; unparsed: 1 where no letter was understood."""
    found = parse_choices(answer, item)
    right, several = float(found == target(item)), len(item["answers"]) > 1
    counted, nothing = [right, 1.0], [0.0, 0.0]
    parts = {"acc_one": nothing if several else counted, "acc_several": counted if several else nothing}
    return Scored(found, {"acc": right, **parts, "unparsed": float(found is None)})


def _part(which: str) -> Metric:
    """The accuracy on the items with one right letter, or with several."""
    signature = f"accuracy|by:generated letters|match:exact set|items:{which}|shots:5"
    return Metric(tuple, mean_ratio, signature, aggregate="aggregate_part")


METRICS = {
    "acc": mean("accuracy|by:generated letters|match:exact set|shots:5"),
    "acc_one": _part("one right letter"),
    "acc_several": _part("several right letters"),
    "unparsed": problem(),
}


def aggregate_part(values: list[tuple[float, float]]) -> float:
    """The accuracy of the items that count."""
    return METRICS["acc_one"].of(values)


process_results = results_of(score)
KIND = Kind(
    "letters",
    "Multiple choice of which several options may be right, by the letters that a model writes: all of them, no other.",
    METRICS,
    target,
    {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False},
    },
)
