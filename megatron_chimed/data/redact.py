"""Redact personal information in Chinese text: find it by form and checksum, replace it by a tag of its kind.

Medical text is full of numbers, so a number goes only if its form is unmistakable (a mobile number, a checksum that
holds) or a label in front of it says what it is (QQ, 微信, 电话). What is kept on purpose: doses, dates, blood
pressures, laboratory values, registration and PubMed numbers, an 18-digit number whose checksum does not hold.
"""

import re
from collections import Counter
from collections.abc import Callable

D = "[0-9０-９]"
JOIN = r"[ \-－]?"
# No digit, letter or decimal point around a number: a part of a longer number or of a code is not a phone number.
BEFORE = r"(?<![0-9０-９A-Za-z.．])"
NO_DIGIT = r"(?![0-9０-９]|[.．][0-9０-９])"
AFTER = rf"(?![A-Za-z]){NO_DIGIT}"
# What may stand between a label and its number.
IS = r"[ ]*(?:[:：是为=]|号码?|ID){0,3}[ :：]*"


def _compile(*parts: str) -> re.Pattern:
    return re.compile("".join(parts), re.IGNORECASE)


DOMAINS = "(?-i:com|cn|net|org|gov|edu)"  # lower case: ASP.NET is no address
URL_END = r"(?:[a-z0-9\-._~:/?#@!$&*+,;=%]*[a-z0-9/=#&_\-%])"
URL = _compile(
    rf"(?:https?|ftp)://{URL_END}",
    rf"|(?<![a-z0-9@＠.\-_])(?:[a-z0-9\-]{{1,63}}\.){{1,5}}{DOMAINS}(?![a-z0-9@＠\-_]|\.[a-z0-9])(?::\d{{1,5}})?(?:/{URL_END}?)?",
)
EMAIL = _compile(r"[a-z0-9._%+\-]{1,64}[@＠][a-z0-9\-]{1,63}(?:[.．][a-z0-9\-]{1,63}){0,4}[.．][a-z]{2,10}")
ID_CARD = _compile(
    rf"{BEFORE}[1-9１-９]{D}{{5}}(?:[1１][89８９]|[2２][0０]){D}{{2}}(?:[0０]{D}|[1１][0-2０-２])[0-3０-３]{D}{{4}}(?:{D}|X){AFTER}"
)
BANK_CARD = _compile(
    rf"{BEFORE}(?:62{D}{{2}}(?:{JOIN}{D}{{4}}){{3}}(?:{JOIN}{D}{{3}})?|9558{D}{{15}}|(?:4{D}|5[1-5]|35){D}{{14}}){AFTER}"
)
LABELLED_CARD = _compile(rf"((?:银行卡|储蓄卡|信用卡|借记卡|卡号|账号|帐号){IS})([1-9](?:{JOIN}{D}){{14,18}}){AFTER}")
QQ = _compile(rf"((?:(?<![a-z])QQ|扣扣|企鹅|加q)[ ]?(?:群|号|号码)?{IS})([1-9１-９]{D}{{4,11}}){NO_DIGIT}")
# An account that is letters alone needs a sign in between (微信：zhangsan); one with a digit does not (微信zhang123).
WECHAT_LABEL = r"(?:微信|威信|薇信|(?<![a-z])(?:wechat|weixin|vx|wx)|加v(?![a-z]))(?:公众号)?[ ]*(?:号码?|ID)?[ ]*"
WECHAT = _compile(
    r"(?<![a-z0-9])()(wxid_[a-z0-9]{5,20})",
    rf"|({WECHAT_LABEL}[:：是为=][ ]*)([a-z][a-z0-9_\-]{{5,19}}|{D}{{5,12}}){AFTER}",
    rf"|({WECHAT_LABEL})((?=[a-z_\-]{{0,19}}[0-9])[a-z_][a-z0-9_\-]{{5,19}}|{D}{{5,12}}){AFTER}",
)
MOBILE = _compile(
    rf"(?:{BEFORE}|(?<=tel))(?:(?:[+＋]|00)?86{JOIN})?[1１][3-9３-９]{D}{JOIN}{D}{{4}}{JOIN}{D}{{4}}{NO_DIGIT}"
)
AREA_CODE = rf"[0０](?:[1１][0０]|[2２]{D}|[3-9３-９]{D}{{2}})"
SUBSCRIBER = rf"[2-8２-８]{D}{{6,7}}(?:(?:转|[\-－]){D}{{1,5}}(?!{D}))?"
LANDLINE = _compile(
    rf"{BEFORE}(?:[(（]{AREA_CODE}[)）][ ]?|{AREA_CODE}[\-－—]){SUBSCRIBER}{AFTER}",
    rf"|{BEFORE}[48]00[\-－](?:{D}{{3}}[\-－]?{D}{{4}}|{D}{{4}}[\-－]{D}{{3}}){AFTER}",
)
LABELLED_LANDLINE = _compile(
    rf"((?:电话|座机|热线|传真|(?<![a-z])tel){IS})",
    rf"((?:{AREA_CODE}[ ]?)?{SUBSCRIBER}|[48]00[ ]?{D}{{3}}[ ]?{D}{{4}}){AFTER}",
)


def valid_id_card(number: str) -> bool:
    """Whether the last character of an 18-character ID-card number is its check character (GB 11643-1999, mod 11-2)."""
    values = [10 if character in "xX" else int(character) for character in number]
    return sum(value << (17 - place) for place, value in enumerate(values)) % 11 == 1


def valid_luhn(number: str) -> bool:
    """Whether the digits of a bank-card number satisfy Luhn's check (ISO/IEC 7812-1); other characters are ignored."""
    digits = [int(character) for character in reversed(number) if character.isdigit()]
    return sum(digits[0::2]) % 10 == -sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2]) % 10


# Each rule: kind, tag, pattern, and a check of what was matched. With groups, the first is a label that stays.
# The order matters: a URL may hold an address, a labelled number would else be taken for something else.
RULES: tuple[tuple[str, str, re.Pattern, Callable[[str], bool] | None], ...] = (
    ("url", "[网址]", URL, None),
    ("email", "[邮箱]", EMAIL, None),
    ("wechat", "[微信号]", WECHAT, None),
    ("qq", "[QQ号]", QQ, None),
    ("id_card", "[身份证号]", ID_CARD, valid_id_card),
    ("bank_card", "[银行卡号]", LABELLED_CARD, valid_luhn),
    ("bank_card", "[银行卡号]", BANK_CARD, valid_luhn),
    ("mobile", "[电话]", MOBILE, None),
    ("landline", "[电话]", LANDLINE, None),
    ("landline", "[电话]", LABELLED_LANDLINE, None),
)
KINDS = tuple(dict.fromkeys(kind for kind, *_ in RULES))

DIGIT_RUN = re.compile(rf"{D}{{5}}")
NUMBER = re.compile(rf"{D}(?:{JOIN}{D}){{6}}")  # seven digits, which every number has that its form or a label tells
WECHAT_LETTERS, QQ_LETTERS = ("微信", "威信", "薇信", *"wWvV"), ("q", "Q", "扣扣", "企鹅")
NUMBERS = {"id_card", "bank_card", "mobile", "landline"}
WECHAT_HINT = _compile("[微威薇]信|wechat|weixin|[vw]x|加v")
DOMAIN_HINT = _compile(rf"[a-z0-9]\.{DOMAINS}")


def redact(text: str) -> tuple[str, Counter]:
    """Replace personal information in a text by tags, and count how many of each kind (see KINDS).

    `redact(redact(text)[0])` changes and counts nothing. Full-width digits are understood.

    >>> redact("请拨打13812345678，血压120/80mmHg")
    ('请拨打[电话]，血压120/80mmHg', Counter({'mobile': 1}))
    """
    counts: Counter = Counter()
    while True:  # a tag may free what stood right beside a number; the next pass takes it
        found = 0
        for kind, tag, pattern, check in _possible_rules(text):
            text, number = _replace(text, tag, pattern, check)
            if number:
                counts[kind] += number
                found += number
        if not found:
            return text, counts


def _possible_rules(text: str) -> list[tuple[str, str, re.Pattern, Callable[[str], bool] | None]]:
    """Choose the rules that can match: most texts hold no long number and no address, and a look for those is cheap."""
    possible = set()
    if "." in text and DOMAIN_HINT.search(text) or "://" in text:
        possible.add("url")
    if "@" in text or "＠" in text:
        possible.add("email")
    if _holds(text, WECHAT_LETTERS) and WECHAT_HINT.search(text):
        possible.add("wechat")
    if DIGIT_RUN.search(text) and _holds(text, QQ_LETTERS):
        possible.add("qq")
    if NUMBER.search(text):
        possible |= NUMBERS
    return [rule for rule in RULES if rule[0] in possible] if possible else []


def _holds(text: str, parts: tuple[str, ...]) -> bool:
    for part in parts:  # noqa: SIM110 (any() of a generator takes as long as the search itself)
        if part in text:
            return True
    return False


def _replace(text: str, tag: str, pattern: re.Pattern, check: Callable[[str], bool] | None) -> tuple[str, int]:
    """Replace each match that passes the check by the tag, its label kept, and count them."""
    replaced = 0

    def put_tag(match: re.Match) -> str:
        nonlocal replaced
        groups = [group for group in match.groups() if group is not None]
        label, value = groups or ("", match[0])
        if check and not check(value):
            return match[0]
        replaced += 1
        return label + tag

    return pattern.sub(put_tag, text), replaced
