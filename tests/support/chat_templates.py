"""Chat templates in the style of known families, written for the tests, and tokenizers that have their tokens."""

from pathlib import Path

from support.corpora import make_texts

SPECIALS = [
    "<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[INST]", "[/INST]",
]  # fmt: skip
NOT_SPECIAL = ["<think>", "</think>", "<tool_call>"]
"""Tokens that the tokenizers library finds in any text, as in Qwen3's tokenizer."""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful doctor.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' or message.role == 'assistant' %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set told = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set told = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: May 2023\n\n' + told + '<|eot_id|>' "
    "}}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_MISTRAL = (
    "{{%- if messages[0].role == 'system' %}}{{%- set told = messages[0]['content'] %}}{{%- set turns = messages[1:]"
    " %}}{{%- else %}}{{%- set turns = messages %}}{{%- endif %}}{{{{- bos_token }}}}{{%- for message in turns %}}"
    "{{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}}{{{{- raise_exception('roles alternate') }}}}"
    "{{%- endif %}}{{%- if message['role'] == 'user' %}}{{%- if {place} and told is defined %}}"
    "{{{{- '[INST] ' + told + '\n\n' + message['content'] + '[/INST]' }}}}{{%- else %}}"
    "{{{{- '[INST] ' + message['content'] + '[/INST]' }}}}{{%- endif %}}"
    "{{%- else %}}{{{{- ' ' + message['content'] + eos_token }}}}{{%- endif %}}{{%- endfor %}}"
)
MISTRAL, MISTRAL_LAST = (_MISTRAL.format(place=place) for place in ("loop.first", "loop.revindex <= 2"))
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% set told = 'A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions.' %}{% endif %}"
    "{{ bos_token + told + ' ' }}{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
FAMILIES = {"chatml": CHATML, "qwen3": QWEN3, "llama3": LLAMA3, "mistral": MISTRAL, "vicuna": VICUNA}
"""Chat templates by the name of the shipped template that must give the same ids."""

OTHERS = {"qwen25": QWEN25, "llama31": LLAMA31, "mistral_last": MISTRAL_LAST}
"""Chat templates that no shipped template is."""


def write_chat_tokenizer(folder: Path, chat_template: str | None = None, *, kind: str = "bytes", eos="</s>") -> Path:
    """Write a Hugging Face folder with a tokenizer that has the tokens of all FAMILIES.

    kind: bytes for a byte-level BPE as Qwen's and Llama 3's; metaspace for one as Mistral's, whose dummy prefix stands
    in front of a whole text alone.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []
    if kind == "bytes":
        split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([split, byte_level]), decoders.ByteLevel()
    else:
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
    words = "system user assistant USER: ASSISTANT: [human]: [bot]: <think> hello doctor \n\n \n , . ? ! | _ / < > [ ]"
    letters = "".join(map(chr, range(33, 127)))
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    lines = [
        *make_texts(200),
        *[words] * 20,
        letters,
        "头痛三天怎么办再见谢谢不客气先想一高吗：，？。",
        *["a\n\n\nb\n\nc"] * 50,
    ]
    made.train_from_iterator(lines, trainer)
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in NOT_SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token=eos, unk_token="<unk>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return folder
