"""What transformers makes of chat templates.

    pip install transformers==5.23.0 jinja2==3.1.6
    python tests/golden/chat_templates.py

The templates are our own, in the ways that templates on the hub are written. Writes `chat_templates.json`.
"""

import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml with a tone of its own": """
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "turns that must alternate": """
{{ bos_token }}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('turns must alternate') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ '[INST] ' + message['content'].strip() + ' [/INST]' }}
    {% else %}
        {{ ' ' + message['content'] + eos_token }}
    {% endif %}
{% endfor %}
""",
    "headers and a date": """
{%- if strftime_now is defined and false %}{%- set day = strftime_now("%d") %}{%- else %}{%- set day = "26 Jul" %}{%- endif %}
{{- bos_token }}{{- "<|head|>system<|end|>\\n\\nToday: " + day + "\\n" }}
{%- for message in messages %}
    {%- set content = message.content | trim %}
    {{- '<|head|>' + message['role'] + '<|end|>\\n\\n'+ content + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|end|>\\n\\n' }}{%- endif %}
""",
    "parts, counted": """
{%- set seen = namespace(images=0, videos=0) -%}
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}{% set seen.images = seen.images + 1 %}{% if add_vision_id %}Picture {{ seen.images }}: {% endif %}<image>{% elif part['type'] == 'video' or 'video' in part %}{% set seen.videos = seen.videos + 1 %}<video>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}{{ seen.images }}{{ seen.videos }}
""",
    "pictures first": """
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}
{# pictures stand before words #}
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}
{% endfor %}
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}
""",
    "python's methods": """
{% for message in messages[::-1] %}
{{ message.content.split('e')[-1].lstrip() }}|{{ message.content.startswith('W') }}|{{ message.content[1:4] }}|{{ message.content.replace('a', 'o').upper() }}
{{ message.items() | list | length }}{{ message.get('name', 'nobody') }}
{% endfor %}
{{ messages | map(attribute='role') | join(',') }}
""",
    "loops that end early": """
{% for message in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% if message.role == 'assistant' %}{% continue %}{% endif %}{{ loop.index }}:{{ message.content }};{% endfor %}
{% macro line(m) %}[{{ m.role }}]{% endmacro %}{% for m in messages %}{{ line(m) }}{% endfor %}
{%- generation %} learned {% endgeneration -%} .
""",
    "json": """
{{ messages | tojson }}
{{ messages[0] | tojson(indent=2) }}
{{ "é<b>&" | tojson }} {{ {'a': [1, 2.5, none, true]} | tojson }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 7 % 3 }} {{ undefined_thing }}|
""",
}

WORDS = [
    [{"role": "user", "content": " What moves? "}],
    [
        {"role": "system", "content": "Be true."},
        {"role": "user", "content": "Wade: where are we?"},
    ],
    [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Here, at the <gate> & \"wall\"."},
        {"role": "user", "content": "Wann, später?"},
    ],
]
PARTS = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]}],
    [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "When?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "At noon."}]},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ],
]


def rendered(template, messages):
    try:
        texts, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **SPECIALS
        )
        return {"text": texts[0]}
    except Exception as error:
        return {"error": str(error)}


cases = []
for name, template in TEMPLATES.items():
    template = template[1:]
    for messages in PARTS if "part" in name or "picture" in name else WORDS:
        cases.append({"name": name, "messages": messages, **rendered(template, messages)})
out = {"specials": SPECIALS, "templates": {n: t[1:] for n, t in TEMPLATES.items()}, "cases": cases}
(HERE / "chat_templates.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
for case in cases:
    print(case["name"], "|", repr(case.get("text", case.get("error")))[:150])
