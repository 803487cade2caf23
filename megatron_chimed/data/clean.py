"""Clean text of the medical corpora: HTML, stray characters, widths, repetition, white space, courtesy formulas.

`clean` is a pure text function that gives a text it has made back unchanged. Personal information is the business of
`redact` (megatron_chimed.data.redact), which is offered here too: the corpus builder applies both.
Source: "redundancy and personal information are removed" (ChiMed-GPT, arXiv 2311.06025, data).
"""

import html
import re
from collections import Counter

from megatron_chimed.data.redact import redact

__all__ = ["clean", "redact"]

# Full-width forms that become ASCII: letters, digits and the signs of quantities and addresses. Chinese punctuation
# (，。！？：；（）、～ and the quotation marks) stays full-width: in Chinese text that is its right form.
FULL_WIDTH = "＃％＆＊＋－．／＜＝＞＠＿" + "".join(
    chr(code) for first, last in ("０９", "ＡＺ", "ａｚ") for code in range(ord(first), ord(last) + 1)
)
LINE_BREAKS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
SPACES = "\t\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# Controls, soft hyphen, zero-width characters and joiners, direction marks, byte order mark, unpaired surrogates,
# interlinear marks and the non-characters. U+FFFD goes too: it stands where a decoder lost a character.
REMOVED = (
    *(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n" + LINE_BREAKS + SPACES),
    *map(chr, (0xAD, 0x61C, 0x180E, 0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF)),
    *map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070))),
    *map(chr, (*range(0xFFF9, 0xFFFC), *range(0xD800, 0xE000))),
)
TABLE = (
    dict.fromkeys(REMOVED, "")
    | {character: chr(ord(character) - 0xFEE0) for character in FULL_WIDTH}
    | dict.fromkeys(LINE_BREAKS, "\n")
    | dict.fromkeys(SPACES, " ")
)
IN_TABLE = re.compile("[" + "".join(f"\\U{ord(character):08x}" for character in sorted(TABLE)) + "]")

# Tags of HTML by their names, as anything else in angle brackets (p < 0.05, <user>, </s>) is text. Those of
# blocks become line breaks, those of cells spaces.
BLOCK_TAGS = "br|p|div|li|ul|ol|tr|table|tbody|thead|h[1-6]|hr|blockquote|section|article|pre"
INLINE_TAGS = "span|b|strong|i|em|u|a|font|img|sub|sup|center|small|big|label|nobr|wbr|ins|del"
TAG = re.compile(rf"</?(?:({BLOCK_TAGS})|(td|th)|{INLINE_TAGS})(?:\s[^<>]*)?/?>|<!--[^<>]*-->", re.I)
ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

# One mark for a run of the same mark. Ellipsis (……, ...) and dash (——) are runs by right: longer ones shrink to them.
REPEATED = re.compile(r"([。！？，、；：!?,;~～])\1+|(……)…+|(——)—+|(\.\.\.)\.+")
DOUBLED = re.compile(r"([。！？，、；：!?,;~～…—.])\1")  # a look for any of them, eight times as fast

BLANK_RUN = re.compile(r" {2,}")
AROUND_BREAK = re.compile(r" *\n *")
BREAK_RUN = re.compile(r"\n{3,}")

# Courtesy formulas of Chinese question-and-answer sites. A sentence goes if it holds nothing but these.
COURTESIES = (
    r"(?:非常)?(?:感谢|谢谢)(?:您|你)?(?:对我)?的?(?:咨询|提问|信任|支持|理解|配合)?",
    r"以上(?:就)?是(?:我)?对于?[“\"「][^”\"」\n]{1,80}[”\"」](?:这个|这类|的|相关)*问题(?:所做)?的?"
    r"(?:建议|回答|解答|分析|解释|意见)",
    r"以上(?:回答|建议|答案|内容)?(?:仅供|可以[做作]为|[做作]为)参考",
    r"(?:希望|期望)(?:以上|上述)?的?(?:我的)?(?:回答|答案|建议|解答|内容)?(?:能够|能|可以|会)?"
    r"(?:对(?:您|你)(?:能)?(?:有所|有)帮助|(?:协助|帮助|帮)到(?:您|你))",
    r"上述的?(?:答案|回答)(?:希望|期望)(?:能够|能|可以)(?:协助|帮助|帮)到(?:您|你)",
    r"祝愿?(?:您|你|患者|大家)?(?:身体|早日|尽快|生活|天天)*(?:恢复|康复|健康|痊愈|愉快|平安)+",
)
ANY_COURTESY = "(?:" + "|".join(COURTESIES) + ")"
COURTESY_SENTENCE = re.compile(
    # Possessive (*+) and anchored at the start of a sentence: the time stays linear on any text.
    rf"(?<![^。！？!?；;\n]) ?{ANY_COURTESY}(?:[，,、 ]*{ANY_COURTESY})*+(?: *[。！!~～；;]+|(?=\n)|$)"
)
COURTESY_WORDS = ("谢", "祝", "以上", "希望", "期望")


CHARACTERS, REPEATS, SPACE = "stray or full-width characters", "repeated punctuation", "white space"
TAGS, ENTITIES, COURTESY = "HTML tags", "HTML entities", "courtesy sentences"


def clean(text: str, counts: Counter | None = None) -> str:
    """Clean a text of what a language model should not learn; `clean(clean(text)) == clean(text)`.

    Tags of HTML go, those of blocks as line breaks, and its entities become characters; control and zero-width
    characters, byte order marks and unpaired surrogates go; full-width letters, digits and signs become ASCII (Chinese
    punctuation stays); runs of one punctuation mark become one; every kind of space becomes one space, at most one
    blank line separates paragraphs, line ends are "\\n"; courtesy sentences go. A text of nothing else becomes "".

    counts: is counted up by rule, one for each place that was changed.

    >>> clean("体温３７．５℃。。。\\u200b 以上是对“发烧”这个问题的建议，祝您健康！"), clean("&gt;38&deg;C<br/>急")
    ('体温37.5℃。', '>38°C\\n急')
    """
    counts = Counter() if counts is None else counts
    while (cleaned := _clean_once(text, counts)) != text:  # one rule may make room for another; each pass comes closer
        text = cleaned
    return text


def _clean_once(text: str, counts: Counter) -> str:
    # Most texts need few of the rules; a search for a fixed string or one set of characters is far cheaper than them.
    if "<" in text:
        text = _substitute(TAG, lambda match: "\n" if match[1] else " " if match[2] else "", text, counts, TAGS)
    if "&" in text:
        text = _decode_entities(text, counts)
    if IN_TABLE.search(text):
        counts[CHARACTERS] += text.count("\r\n")
        text = text.replace("\r\n", "\n")
        text = _substitute(IN_TABLE, lambda match: TABLE[match[0]], text, counts, CHARACTERS)
    if DOUBLED.search(text):
        text = _substitute(REPEATED, lambda match: match[match.lastindex], text, counts, REPEATS)
    if any(word in text for word in COURTESY_WORDS):
        text = _substitute(COURTESY_SENTENCE, "", text, counts, COURTESY)
    if "  " in text:
        text = _substitute(BLANK_RUN, " ", text, counts, SPACE)
    if " \n" in text or "\n " in text:
        text = _substitute(AROUND_BREAK, "\n", text, counts, SPACE)
    if "\n\n\n" in text:
        text = _substitute(BREAK_RUN, "\n\n", text, counts, SPACE)
    return text.strip(" \n")


def _substitute(pattern: re.Pattern, replacement, text: str, counts: Counter, rule: str) -> str:
    """Replace what matches, and count how often under the rule's name."""
    text, number = pattern.subn(replacement, text)
    if number:
        counts[rule] += number
    return text


def _decode_entities(text: str, counts: Counter) -> str:
    """Replace entities by their characters, however often their & was escaped; a name that is none stays as it is."""
    found = 0

    def character(match: re.Match) -> str:
        nonlocal found
        written = html.unescape(f"&{match[1]};")
        known = written != f"&{match[1]};"
        found += known
        return written if known else match[0]

    text = ENTITY.sub(character, text)
    if found:
        counts[ENTITIES] += found
    return text
