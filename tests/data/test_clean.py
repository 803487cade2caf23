"""Cleaning and redaction: what must go goes, what a doctor needs stays, and doing it twice changes nothing more."""

import csv
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import SHARED

from megatron_chimed.data import redact as redaction
from megatron_chimed.data.clean import DOUBLED, REPEATED, clean, redact
from megatron_chimed.data.redact import KINDS, RULES, _possible_rules, valid_id_card, valid_luhn

CLEANED = [
    ("\ufeff头\u200b痛\x00\x07", "头痛"),
    ("头痛\ud83d，发热\ufffd", "头痛，发热"),
    ("体温３７．５℃，ＷＢＣ　１２×１０", "体温37.5℃，WBC 12×10"),
    ("血氧９８％，ｐＨ＝７", "血氧98%，pH=7"),
    ("你好，医生！（急）：“头痛”；3～5天、反复？", "你好，医生！（急）：“头痛”；3～5天、反复？"),
    ("好的。。。谢谢医生！！！真的吗？？", "好的。谢谢医生！真的吗？"),
    ("想一想…………还是……算了——————吧——", "想一想……还是……算了——吧——"),
    ("等等......好的...", "等等...好的..."),
    ("头痛  \t 发热\r\n\r\n\r\n\r\n咳嗽  \n  流涕\r乏力", "头痛 发热\n\n咳嗽\n流涕\n乏力"),
    ("  \n 头痛 \n ", "头痛"),
    ("多喝水。以上是对“感冒怎么办？”这个问题的建议，期望对您有帮助，祝您健康！", "多喝水。"),
    ("感谢您的咨询。建议复查血常规。祝早日康复！", "建议复查血常规。"),
    ("建议复查。\n以上回答仅供参考", "建议复查。"),
    ("谢谢！", ""),
    ("真的？谢谢。？", "真的？"),
    ("１２３\u200b。\u200b。", "123。"),
    ("体温&gt;38&deg;C怎么办？<br/>急", "体温>38°C怎么办？\n急"),
    ("<p>先补液&amp;观察。</p><p>再复查</p>", "先补液&观察。\n\n再复查"),
    ("<table><tr><td>血压</td><td>120</td></tr></table>", "血压 120"),
    ('<a href="#x">消化科</a>的<b>医生</b><!-- 广告 -->', "消化科的医生"),
    ("&amp;lt;3天&#20013;&#x836F;&nbsp;服", "<3天中药 服"),
    ("＜ｂｒ＞好", "好"),
]
KEPT_BY_CLEAN = [
    "希望您对治疗有信心，以上是感冒的症状。",
    "感谢您的咨询对我们很重要的意见",
    "我谢谢您，但是仍然头痛。",
    "患者祝某，男，45岁。",
    "以上药物每日3次。",
    "C. difficile; E. coli 10^5 CFU/mL, p < 0.05",
    "WBC<10且b>3，<user>: 你好 <bot>: <|im_end|></s>[INST]",
    "AT&T；A&B; &nosuch; R&D",
    "| 项目 | 结果 |\n| --- | --- |\n- 白细胞",
    "",
]
COUNTED = {
    "&lt;38&deg;C&nosuch;": {"HTML entities": 2},
    "<p>好</p><br>的": {"HTML tags": 3},
    "３７。。好！！": {"stray or full-width characters": 2, "repeated punctuation": 2},
    "好。谢谢。祝您健康！": {"courtesy sentences": 2},
    "a  b \n c": {"white space": 2},
    "好。": {},
}
REDACTED = [
    ("请拨打13812345678咨询", "请拨打[电话]咨询", "mobile"),
    ("手机：+86 138-1234-5678。", "手机：[电话]。", "mobile"),
    ("tel13812345678，急", "tel[电话]，急", "mobile"),
    ("电话１３８１２３４５６７８", "电话[电话]", "mobile"),
    ("8613912345678", "[电话]", "mobile"),
    ("座机010-62345678转123", "座机[电话]", "landline"),
    ("（0755）83366388", "[电话]", "landline"),
    ("0571-8733 打不通，0571-87331234可以", "0571-8733 打不通，[电话]可以", "landline"),
    ("热线400-810-1234", "热线[电话]", "landline"),
    ("联系电话：62345678", "联系电话：[电话]", "landline"),
    ("电话号码是 01062345678", "电话号码是 [电话]", "landline"),
    ("身份证11010519491231002X。", "身份证[身份证号]。", "id_card"),
    ("身份证号：11010519491231002x", "身份证号：[身份证号]", "id_card"),
    ("１１０１０５１９４９１２３１００２X", "[身份证号]", "id_card"),
    ("邮箱zhang.san+1@mail.example.com.cn吧", "邮箱[邮箱]吧", "email"),
    ("zhang＠example.com", "[邮箱]", "email"),
    ("我的QQ：123456789，加我", "我的QQ：[QQ号]，加我", "qq"),
    ("加q 12345678", "加q [QQ号]", "qq"),
    ("QQ群号:987654321", "QQ群号:[QQ号]", "qq"),
    ("微信：zhangsan", "微信：[微信号]", "wechat"),
    ("加微信zhang_san88详谈", "加微信[微信号]详谈", "wechat"),
    ("加V：13812345678", "加V：[微信号]", "wechat"),
    ("vx abc12345", "vx [微信号]", "wechat"),
    ("我的号wxid_ab12cd34ef", "我的号[微信号]", "wechat"),
    ("微信公众号：dingxiang", "微信公众号：[微信号]", "wechat"),
    ("见https://www.example.com/a?b=1&c=2，谢谢", "见[网址]，谢谢", "url"),
    ("（www.example.com.cn）", "（[网址]）", "url"),
    ("搜haodf.com/doctor吧", "搜[网址]吧", "url"),
    ("HTTP://EXAMPLE.COM/X。", "[网址]。", "url"),
    ("卡号6222021001116245702", "卡号[银行卡号]", "bank_card"),
    ("6222 0210 0111 6245 702", "[银行卡号]", "bank_card"),
    ("信用卡4111111111111111", "信用卡[银行卡号]", "bank_card"),
]
NOT_PERSONAL = [
    "血压120/80mmHg，心率72次/分，体温37.5℃",
    "2019-03-12至2019-04-01住院，20190312复查",
    "0.25g，每日3次；500mg/次；5%葡萄糖250ml",
    "白细胞 12.5×10^9/L，血小板 300000000000 个",
    "HBV-DNA 20807000 IU/mL，正常<1000",
    "110105194912310021是样本编号",
    "样本号123456789012345678",
    "PMID: 31234567，PMC13812345678",
    "国药准字H20013456，批号20190312001",
    "ChiCTR-TRC-13003456，NCT01381234567",
    "DOI 10.1056/NEJMoa2001017，ICD-10 K29.500",
    "0.13812345678 与 13812345678.5",
    "流水号913812345678901",
    "电话咨询后，热线很忙，120急救",
    "微信咨询，微信 platform，QQ间期，加VitC，加V",
    "ASP.NET 与 svg.style.top 和 node.js",
    "1-2片，3-5天，10-20岁，0-14岁，020-30",
    "6222021001116245703",
    "4000000000 与 400 500 6000",
    "@所有人 体温@37",
]

PIECES = st.sampled_from(
    [one for row in (*CLEANED, *REDACTED) for one in row[:2]]
    + NOT_PERSONAL
    + KEPT_BY_CLEAN
    + list("。！？，…—.～ \n\t\r\u3000\u200b１Ａａ祝您健康谢谢13812345678@.-/:")
    + ["https://", "www.", ".com", "QQ", "微信", "电话", "加v", "祝您健康", "谢谢", "以上", "\r\n", "62", "400-"]
)
MESSY = st.lists(PIECES, max_size=10).map("".join) | st.text(max_size=80)


@pytest.mark.parametrize(("text", "expected"), CLEANED)
def test_what_is_no_content_is_cleaned_away(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize("text", KEPT_BY_CLEAN + NOT_PERSONAL)
def test_content_passes_the_cleaner_unchanged(text):
    assert clean(text) == text


@settings(max_examples=600, deadline=None)
@given(MESSY)
def test_cleaning_twice_equals_cleaning_once(text):
    assert clean(clean(text)) == clean(text)


@settings(max_examples=300, deadline=None)
@given(MESSY)
def test_a_cleaned_text_holds_no_control_or_zero_width_character_and_is_utf8(text):
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert all(one == "\n" or (ord(one) >= 32 and not 127 <= ord(one) < 160) for one in cleaned)
    assert not set(cleaned) & set("\u200b\u200c\u200d\u200e\ufeff\u3000\xa0\u2060")
    assert cleaned == cleaned.strip() and "  " not in cleaned and "\n\n\n" not in cleaned


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("头痛发热患者。，！？：；（）、《》12a "), max_size=60))
def test_cleaning_keeps_every_chinese_character_and_digit(text):
    assert sorted(set(clean(text)) - {" "}) == sorted(set(text) - {" "})


@pytest.mark.parametrize(("text", "expected", "kind"), REDACTED)
def test_personal_information_becomes_a_tag_and_is_counted(text, expected, kind):
    assert redact(text) == (expected, Counter({kind: 1}))


@pytest.mark.parametrize("text", NOT_PERSONAL)
def test_medical_numbers_and_ordinary_words_are_not_redacted(text):
    assert redact(text) == (text, Counter())


def test_every_kind_has_a_positive_example():
    assert {kind for *_, kind in REDACTED} == set(KINDS)


def test_several_in_one_text_are_all_counted():
    text = "13812345678、13912345678，邮箱a@b.cn，微信zhang_88，QQ12345678，010-62345678"
    redacted, counts = redact(text)
    assert redacted == "[电话]、[电话]，邮箱[邮箱]，微信[微信号]，QQ[QQ号]，[电话]"
    assert counts == Counter(mobile=2, email=1, wechat=1, qq=1, landline=1)


def test_what_stands_right_beside_a_redacted_piece_is_redacted_too():
    assert redact("a@b.cn13812345678")[1] == Counter(email=1, mobile=1)


@settings(max_examples=600, deadline=None)
@given(MESSY)
def test_redacting_twice_equals_redacting_once(text):
    redacted, _ = redact(text)
    assert redact(redacted) == (redacted, Counter())


@settings(max_examples=300, deadline=None)
@given(MESSY)
def test_the_counts_are_the_tags_that_were_added(text):
    tags = {"[电话]", "[身份证号]", "[邮箱]", "[QQ号]", "[微信号]", "[网址]", "[银行卡号]"}
    redacted, counts = redact(text)
    added = sum(redacted.count(tag) - text.count(tag) for tag in tags)
    assert added == sum(counts.values())


def checksum_by_the_standard(number: str) -> str:
    """GB 11643-1999's table of weights, written out: the slow twin of `valid_id_card`."""
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(number, weights, strict=True)) % 11]


@given(st.text("0123456789", min_size=17, max_size=17))
def test_exactly_one_check_character_makes_an_id_card_valid(number):
    assert [last for last in "0123456789X" if valid_id_card(number + last)] == [checksum_by_the_standard(number)]


@given(st.text("0123456789", min_size=15, max_size=18))
def test_exactly_one_check_digit_makes_a_card_valid(number):
    assert sum(valid_luhn(number + last) for last in "0123456789") == 1


def test_luhn_agrees_with_known_numbers():
    assert valid_luhn("4111 1111 1111 1111") and valid_luhn("79927398713") and not valid_luhn("79927398710")


def real_texts() -> list[str]:
    lines = (SHARED / "cmd_finetune_huatuo.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [row["instruction"] + "\n" + row["output"] for row in map(json.loads, lines)]
    with open(SHARED / "toyhom_internal_medicine.csv", encoding="gb18030", errors="replace", newline="") as file:
        texts += [row["ask"] + "\n" + row["answer"] for row in csv.DictReader(file)]
    return texts


@pytest.mark.skipif(not SHARED.exists(), reason="the shared sample data is not beside the project")
def test_real_medical_texts_lose_little_and_no_number():
    texts = real_texts()
    cleaned = [clean(text) for text in texts]
    assert sum(map(len, cleaned)) > 0.97 * sum(map(len, texts))
    wish = "。祝患者身体早日恢复健康！"
    assert any(wish in text for text in texts) and not any(wish in text for text in cleaned)
    counts = sum((redact(text)[1] for text in cleaned), Counter())
    assert not counts, "these published samples hold no personal information, only medical numbers"


@pytest.mark.parametrize(("text", "counts"), COUNTED.items())
def test_what_cleaning_changes_is_counted_by_rule(text, counts):
    found = Counter()
    assert (clean(text, found) == text) == (not counts)
    assert found == counts


@pytest.mark.parametrize("text", ["&" + "amp;" * 50_000 + "lt;", "<b " * 50_000, "<!--" * 50_000, "&#1" * 50_000])
def test_hostile_html_takes_linear_time(text):
    assert clean(clean(text)) == clean(text)  # a quadratic rule would run into the time limit of every test


NUMBERS = st.lists(
    st.sampled_from(
        [*"0123456789４８１ -－()（）—+xX.:：转", "138", "1381234", "62", "6222", "400-", "010-", "86", "110101"]
    )
    | st.sampled_from(
        ["QQ", "扣扣", "加q", "微信", "vx", "wxid_", "电话", "tel", "卡号", "www.a.com", "a@b.cn", "http://a"]
    ),
    max_size=14,
).map("".join)


def valid_card(digits: str) -> str:
    return next(number for last in "0123456789" if valid_luhn(number := digits + last))


@settings(max_examples=400)
@given(
    NUMBERS | st.sampled_from([valid_card("622202123456789"), valid_card("62220212345678901"), "11010519491231002X"])
)
def test_a_rule_that_is_not_tried_would_have_found_nothing(text):
    tried = [*_possible_rules(text)]
    for rule in RULES:
        if rule not in tried:
            assert not redaction._replace(text, *rule[1:])[1], (text, rule[0])


@given(st.text(st.sampled_from("。！…—.，药"), max_size=12))
def test_no_repetition_is_overlooked(text):
    assert not REPEATED.search(text) or DOUBLED.search(text)
