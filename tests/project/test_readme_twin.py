"""README.md and README.zh.md are twins, and so are the guides: the same headings, code, tables, links and numbers.

What one of them gains or loses without the other fails here. Each property has its controls: copies with one fault,
which its check must report.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from itertools import zip_longest
from typing import NamedTuple

import pytest
from guards import docs, tree

SWITCH = re.compile(r"English \| \[中文\]\([\w-]+\.zh\.md\)|\[English\]\([\w-]+\.md\) \| 中文")
"""The line below the title of each, by which a reader changes the language."""

TWINS = [path.replace(".zh.md", ".md") for path in tree.files() if path.endswith(".zh.md")]
"""The English ones: README.md, and the guides."""

WIDTH = 120
FENCED = r"^```.*?^```$"
SPAN = r"`([^`]+)`"
LINK = r"!?\[[^\]]*\]\(([^)\s]+)\)"
NUMBER = r"\d+(?:[.,]\d+)*"
CHINESE = "\u3400-\u4dbf\u4e00-\u9fff"


class Section(NamedTuple):
    """What stands under a heading, down to the next one of any level; fenced blocks and the switch are left out."""

    level: int
    title: str
    text: str


def sections(markdown: str) -> list[Section]:
    """The sections of a document."""
    text = re.sub(FENCED, "", markdown, flags=re.M | re.S)
    text = "\n".join("" if SWITCH.fullmatch(line) else line for line in text.splitlines())
    _, *parts = re.split(r"^(#+) +(.+)$", text, flags=re.M)
    return [Section(len(parts[i]), parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]


def spans(text: str) -> list[str]:
    """The code spans of a text; one that is broken over two lines counts as one."""
    return [" ".join(span.split()) for span in re.findall(SPAN, text)]


def without_code(text: str) -> str:
    """A text with a lone backtick for each code span."""
    return re.sub(SPAN, "`", text)


def numbers(text: str) -> list[str]:
    """The numbers of a text outside its code and its links' targets."""
    return re.findall(NUMBER, re.sub(r"\]\([^)\s]+\)", "]", without_code(text)))


def paragraphs(text: str) -> list[str]:
    """The paragraphs, tables and items of lists of a section."""
    return [part.strip() for part in re.split(r"\n\s*\n|\n(?=- )", text) if part.strip()]


def is_table(paragraph: str) -> bool:
    """Whether a paragraph is a table."""
    return paragraph.startswith("|")


def tables(markdown: str) -> list[list[list[str]]]:
    """The cells of each table, row by row."""
    found = [one for section in sections(markdown) for one in paragraphs(section.text) if is_table(one)]
    rows = [[line.strip().removeprefix("|").removesuffix("|") for line in one.splitlines()] for one in found]
    return [[[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in table] for table in rows]


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def targets(markdown: str) -> list[list[str]]:
    """The links' targets in each section: of an own heading its number, of a Chinese twin the English one."""
    parts = sections(markdown)
    own = {f"#{slug(section.title)}": f"heading {number}" for number, section in enumerate(parts)}
    found = ([own.get(target, target) for target in re.findall(LINK, without_code(part.text))] for part in parts)
    return [[target.replace(".zh.md", ".md") for target in some] for some in found]


def prose(paragraph: str) -> str:
    """What of a paragraph is neither code nor link nor space."""
    return re.sub(r"[`\s]", "", re.sub(LINK, "", without_code(paragraph)))


# Comparing.


def unequal(what: str, english: Iterable, chinese: Iterable) -> list[str]:
    """The places where two sequences differ; None stands where one has ended."""
    pairs = enumerate(zip_longest(english, chinese), start=1)
    return [f"{what} {place}: {left!r}, but {right!r}" for place, (left, right) in pairs if left != right]


def uneven(what: str, english: Iterable[Hashable], chinese: Iterable[Hashable]) -> list[str]:
    """What one of two collections has and the other has not, or not so often."""
    left, right = Counter(english), Counter(chinese)
    only = [("English", left - right), ("Chinese", right - left)]
    return [f"{what}: only in {language}: {sorted(rest.elements())}" for language, rest in only if rest]


def by_section(collect: Callable[[str], list[str]], english: str, chinese: str) -> list[str]:
    """`uneven` for each pair of sections, by what a function collects from heading and text."""
    found = []
    for left, right in zip(sections(english), sections(chinese), strict=False):  # `headings` reports a missing one
        values = (collect(f"{part.title}\n{part.text}") for part in (left, right))
        found += uneven(f"{left.title}: {collect.__name__}", *values)
    return found


# The properties: each takes both documents and gives a line for each fault.


def switches(english: str, chinese: str) -> list[str]:
    """Each names the other below its title."""
    lines = [text.splitlines()[2] for text in (english, chinese)]
    names = [re.findall(r"\(([\w-]+)(?:\.zh)?\.md\)", line) for line in lines]
    found = [f"no switch: {line}" for line in lines if not SWITCH.fullmatch(line)]
    return found + unequal("name in the switch", *names)


def headings(english: str, chinese: str) -> list[str]:
    """The same levels of headings in the same order."""
    return unequal("heading", *([part.level for part in sections(text)] for text in (english, chinese)))


def code_blocks(english: str, chinese: str) -> list[str]:
    """The same fenced blocks in the same order, to the byte."""
    return unequal("block", *([block[1:] for block in docs.blocks(text)] for text in (english, chinese)))


def code_spans(english: str, chinese: str) -> list[str]:
    """The same code spans in each section."""
    return by_section(spans, english, chinese)


def same_numbers(english: str, chinese: str) -> list[str]:
    """The same numbers in each section."""
    return by_section(numbers, english, chinese)


def links(english: str, chinese: str) -> list[str]:
    """The same links and pictures in each section, in the same order."""
    return unequal("links of section", targets(english), targets(chinese))


def shapes(english: str, chinese: str) -> list[str]:
    """As many tables, with as many rows and as many columns in each row."""
    sizes = ([[len(row) for row in table] for table in tables(text)] for text in (english, chinese))
    return unequal("columns of each row of table", *sizes)


def cells(english: str, chinese: str) -> list[str]:
    """The same code and numbers in each cell; one that is code alone is the same altogether."""
    left, right = ([cell for table in tables(text) for row in table for cell in row] for text in (english, chinese))
    found = []
    for one, other in zip(left, right, strict=False):
        only_code = one if not re.sub(r"[`,\s]", "", without_code(one)) else ""
        found += unequal(f"cell {one!r}", [only_code], [other if only_code else ""])
        found += uneven(f"cell {one!r}", spans(one) + numbers(one), spans(other) + numbers(other))
    return found


def same_paragraphs(english: str, chinese: str) -> list[str]:
    """As many paragraphs, with as many bold passages, in each section."""
    bold = ([[p.count("**") // 2 for p in paragraphs(part.text)] for part in sections(x)] for x in (english, chinese))
    return unequal("bold passages of each paragraph of section", *bold)


def dead_anchors(english: str, chinese: str) -> list[str]:
    """Every anchor without a file is that of a heading of its document."""
    found = []
    for text in (english, chinese):
        known = {f"#{slug(part.title)}" for part in sections(text)}
        anchors = [target for part in targets(text) for target in part if target.startswith("#")]
        found += [f"no heading for {target}" for target in anchors if target not in known]
    return found


def untranslated(english: str, chinese: str) -> list[str]:
    """Of each long paragraph at least a third is Chinese characters; of a long row of a table, one."""
    found = []
    for paragraph in (one for part in sections(chinese) for one in paragraphs(part.text)):
        for text in paragraph.splitlines() if is_table(paragraph) else [paragraph]:
            letters = prose(text)
            share = 0 if is_table(paragraph) else len(letters) / 3
            if len(letters) > 40 and len(re.findall(f"[{CHINESE}]", letters)) < max(share, 1):
                found.append(f"not in Chinese: {text[:60]}")
    return found


def long_lines(english: str, chinese: str) -> list[str]:
    """No line of the Chinese text is too long, but for tables and for a code span with a line of its own."""
    lines = [line for part in sections(chinese) for line in part.text.splitlines() if not is_table(line)]
    too_long = [line for line in lines if len(line) > WIDTH and not re.fullmatch(rf"{SPAN}\W?", line)]
    return [f"{len(line)} characters: {line[:60]}" for line in too_long]


def broken_words(english: str, chinese: str) -> list[str]:
    """No line ends between two Chinese characters: GitHub shows a space there."""
    text = "\n".join(part.text for part in sections(chinese))
    return [f"broken at {found}" for found in re.findall(rf".{{,9}}[{CHINESE}]\n[{CHINESE}].{{,9}}", text)]


def stray_asterisks(english: str, chinese: str) -> list[str]:
    """Every bold passage is bold on GitHub: none has punctuation inside an end and a letter outside of it."""
    found = []
    for paragraph in (one for part in sections(chinese) for one in paragraphs(part.text)):
        for match in re.finditer(r"(\w?)\*\*(.+?)\*\*(\w?)", without_code(paragraph), re.S):
            before, passage, after = match.groups()
            if (before and not passage[0].isalnum()) or (after and not passage[-1].isalnum()):
                found.append(f"shown with its asterisks: {passage}")
    return found


CHECKS = [switches, headings, code_blocks, code_spans, same_numbers, links, shapes, cells, same_paragraphs]
CHECKS += [dead_anchors, untranslated, long_lines, broken_words, stray_asterisks]


@pytest.mark.parametrize("path", TWINS)
def test_a_document_and_its_chinese_twin_agree(path):
    english, chinese = tree.read(path), tree.read(path.replace(".md", ".zh.md"))
    assert sections(english), "the documents are not read as they should be"
    assert not {check.__name__: found for check in CHECKS if (found := check(english, chinese))}


def test_every_guide_has_a_twin_and_the_readme_is_short():
    guides = {path for path in tree.files() if path.startswith("docs/guides/") and not path.endswith(".zh.md")}
    assert guides and guides | {"README.md"} <= set(TWINS)
    assert len(sections(tree.read("README.md"))) > 7 and len(tables(tree.read("README.md"))) > 2
    assert all(len(tree.read(path).splitlines()) <= 180 for path in ("README.md", "README.zh.md"))


# Controls.


def mutated(markdown: str, pattern: str, new: str, inside: bool) -> str:
    """A copy with the first match of a pattern replaced, inside the fenced blocks or outside of them."""
    pieces = re.split(f"({FENCED})", markdown, flags=re.M | re.S)
    for i in range(int(inside), len(pieces), 2):
        changed, count = re.subn(pattern, new, pieces[i], count=1, flags=re.M)
        if count:
            return "".join([*pieces[:i], changed, *pieces[i + 1 :]])
    raise AssertionError(f"nothing to change: no {pattern}")


LEFT = "\n\nThis paragraph has been left in English, every word of it, and somebody has to translate it.\n\n"


@pytest.mark.parametrize(
    ("check", "pattern", "new", "inside"),
    [
        pytest.param(switches, r"^\[English\].*$", "English", False, id="no switch"),
        pytest.param(headings, r"^## .*\n", "", False, id="a lost heading"),
        pytest.param(headings, r"^## ", "### ", False, id="a heading of another level"),
        pytest.param(code_blocks, r"^chimed ", "chimed  ", True, id="a changed code block"),
        pytest.param(code_blocks, r"^```sh$", "```bash", True, id="a block of another language"),
        pytest.param(code_blocks, r"\A[\s\S]*\Z", "", True, id="a lost code block"),
        pytest.param(code_spans, r"`[^`\n]+`", "", False, id="a lost code span"),
        pytest.param(code_spans, r"`(?=\w)", "`x", False, id="a changed code span"),
        pytest.param(same_numbers, rf"(?<=[{CHINESE}] )\d", "99", False, id="a changed digit"),
        pytest.param(same_numbers, rf"(?<=[{CHINESE}])(?=[{CHINESE}])", " 3 ", False, id="a new number"),
        pytest.param(links, r"\]\(http", "](x", False, id="a changed link"),
        pytest.param(links, r"!\[.*\)$", "", False, id="a lost picture"),
        pytest.param(shapes, r"^\|.*\n(?!\|)", "\n", False, id="a lost table row"),
        pytest.param(shapes, r"^\|[^|]*\|(?=.*\|\n(?!\|))", "|", False, id="a lost cell"),
        pytest.param(cells, r"^(\|.*\n)(\|.*\n)(?!\|)", r"\2\1", False, id="rows in another order"),
        pytest.param(cells, r"^\| `(\w+)` \|", r"| \1 |", False, id="a code cell that is no code"),
        pytest.param(same_paragraphs, rf"\n\n[{CHINESE}][\s\S]*?\n\n", "\n\n", False, id="a lost paragraph"),
        pytest.param(same_paragraphs, rf"\*\*([{CHINESE}]+)", r"\1", False, id="a bold passage no longer bold"),
        pytest.param(dead_anchors, r"\Z", "\n[下文](#nowhere)\n", False, id="a dead anchor"),
        pytest.param(untranslated, r"\n\n", LEFT, False, id="an untranslated paragraph"),
        pytest.param(untranslated, r"^(\|[-|]+\|)$", rf"\1\n| {LEFT.strip()} |", False, id="an untranslated row"),
        pytest.param(long_lines, rf"(?<=[{CHINESE}])(?=[，。])", "长" * WIDTH, False, id="a long line"),
        pytest.param(broken_words, rf"(?<=[{CHINESE}])(?=[{CHINESE}])", "\n", False, id="a line broken in a word"),
        pytest.param(stray_asterisks, r"。\*\* ", "。**", False, id="a bold passage that GitHub does not show"),
    ],
)
def test_control_a_faulty_twin_is_reported(check, pattern, new, inside):
    english, chinese = tree.read("README.md"), tree.read("README.zh.md")
    assert check(english, mutated(chinese, pattern, new, inside))


def test_control_a_change_of_the_english_text_is_reported():
    english, chinese = tree.read("README.md"), tree.read("README.zh.md")
    assert same_numbers(english + "\nIn 12 hours.\n", chinese) and code_spans(english + "\n`more`\n", chinese)
    assert dead_anchors(english + "\n[below](#nowhere)\n", chinese)


def test_anchors_follow_githubs_rule():
    assert slug("Fine-tuning data") == "fine-tuning-data" and slug("集群上的 13B") == "集群上的-13b"
    assert slug("Will it fit, `a_b`, 1.5 & more?") == "will-it-fit-a_b-15--more" and slug("问：答（一）") == "问答一"


def test_a_code_span_or_a_number_in_code_is_no_number():
    assert numbers("a 1,000 `x 2` [3](y4) 0.9/0.95, 1e-5.") == ["1,000", "3", "0.9", "0.95", "1", "5"]
    assert spans("`a\nb` and `c`") == ["a b", "c"]
