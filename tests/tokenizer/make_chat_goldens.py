#!/usr/bin/env python3
"""What transformers' apply_chat_template makes of a few conversations, for chat_test.cpp.

    python make_chat_goldens.py                      writes chat_goldens.json
    python make_chat_goldens.py --real FILE...       prints goldens of the same form for real templates:
                                                     tokenizer folders, or *.jinja files

The templates in here were written for this test: each writes its family's format in its own words and has
the marks by which lamina tells variants apart. `--real` is for whoever holds the model files: save what it
prints and give it to chat_test in LAMINA_CHAT_GOLDENS. Needs transformers and jinja2.
"""
import json
import pathlib
import sys

from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).resolve().parent

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
CHATML_SPEAKING = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help people, briefly.<|im_end|>\\n' }}\
{% endif %}" + CHATML
CHATML_BRANCHES = """{%- if tools %}{{- '<|im_start|>system\\n' }}{{- 'no tools here' }}{{- '<|im_end|>\\n' }}{%- endif %}
{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>system\\nYou are Q, made for a test.<|im_end|>\\n' }}{%- endif %}
{%- for m in messages if m['role'] != 'system' %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA3 = """{{ bos_token }}{% for m in messages %}\
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
LLAMA31 = """{{ bos_token }}{% set given = messages[0]['content'] | trim if messages[0]['role'] == 'system' else '' %}\
{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' + given + '<|eot_id|>' }}\
{% for m in messages if m['role'] != 'system' %}\
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
LLAMA2 = """{% set ns = namespace(system='') %}{% for m in messages %}\
{% if m['role'] == 'system' %}{% set ns.system = '<<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' %}\
{% elif m['role'] == 'user' %}{{ bos_token + '[INST] ' + (ns.system + m['content']).strip() + ' [/INST]' }}{% set ns.system = '' %}\
{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
MISTRAL1 = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('who?') }}{% endif %}{% endfor %}"""
MISTRAL3 = """{%- if messages[0]["role"] == "system" %}{%- set system_message = messages[0]["content"] %}{%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}
{%- for message in turns %}{%- if message["role"] == "user" %}
{%- if loop.last and system_message is defined %}{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
{%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
{%- else %}{{- " " + message["content"]|trim + eos_token }}{%- endif %}{%- endfor %}"""
MISTRAL_TIGHT = MISTRAL3.replace('"[INST] "', '"[INST]"').replace('" " + message["content"]|trim', 'message["content"]')
GEMMA1 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}\
{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
GEMMA3 = """{{ bos_token }}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' -%}
{%- for m in messages if m['role'] != 'system' -%}
{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' + (first_user_prefix if loop.first else '') }}
{{- m['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

TEMPLATES = {
    "chatml": (CHATML, "<|im_start|>", "<|im_end|>"),
    "chatml that speaks first": (CHATML_SPEAKING, "<|im_start|>", "<|im_end|>"),
    "chatml with branches": (CHATML_BRANCHES, "", "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama3 with dates": (LLAMA31, "<|begin_of_text|>", "<|eot_id|>"),
    "llama2": (LLAMA2, "<s>", "</s>"),
    "mistral 1": (MISTRAL1, "<s>", "</s>"),
    "mistral 3": (MISTRAL3, "<s>", "</s>"),
    "mistral without blanks": (MISTRAL_TIGHT, "<s>", "</s>"),
    "gemma 1": (GEMMA1, "<bos>", "<end_of_turn>"),
    "gemma 3": (GEMMA3, "<bos>", "<end_of_turn>"),
}


def turn(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [turn("user", "What is the capital of France?")],
    [turn("system", "Be short."), turn("user", " A question with blanks around it \n")],
    [turn("user", "One\nand two?"), turn("assistant", "Two."), turn("user", "Grüße — 日本?")],
    [turn("system", "Be short."), turn("user", "One?"), turn("assistant", "1"), turn("user", "Two?"),
     turn("assistant", "2"), turn("user", "Three?")],
]


def goldens(templates):
    out = []
    for name, (template, bos, eos) in templates.items():
        for messages in CONVERSATIONS:
            try:
                text = render_jinja_template([messages], chat_template=template, add_generation_prompt=True,
                                             bos_token=bos, eos_token=eos)[0][0]
            except Exception:  # the template refuses the conversation
                text = None
            out.append({"name": name, "template": template, "bos": bos, "eos": eos, "messages": messages,
                        "text": text})
    return out


def real(paths):
    templates = {}
    for path in map(pathlib.Path, paths):
        if path.suffix == ".jinja":
            templates[str(path)] = (path.read_text(encoding="utf-8"), "<s>", "</s>")
        else:
            from transformers import AutoTokenizer
            kwargs = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent if kwargs else path), **kwargs)
            templates[str(path)] = (tokenizer.chat_template, tokenizer.bos_token or "", tokenizer.eos_token or "")
    return templates


if len(sys.argv) > 2 and sys.argv[1] == "--real":
    print(json.dumps(goldens(real(sys.argv[2:])), ensure_ascii=False, indent=1))
else:
    (HERE / "chat_goldens.json").write_text(json.dumps(goldens(TEMPLATES), ensure_ascii=False, indent=1) + "\n",
                                            encoding="utf-8")
