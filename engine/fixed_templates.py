"""Prompt formats of families whose model directories may hold no chat template, as Jinja text.

They are rendered and encoded like a model's own template. `user_token` and `assistant_token` are the texts of the
ids that generation_config.json names (Baichuan); `bos_token` and `eos_token` the tokenizer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FixedTemplate:
    """A format and when it applies: to a family (as in families.py, lower case; "" any), when `named` (a regular
    expression) is in the lower-case path or hub name, and all `tokens` are in the vocabulary."""

    name: str
    family: str
    source: str
    named: str = ""
    tokens: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()


_CHATML_TURNS = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

_QWEN = (
    """\
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
"""
    + _CHATML_TURNS
)

_BAICHUAN = """\
{%- for message in messages %}
{%- if message.role == 'user' %}{{- user_token }}{% elif message.role == 'assistant' %}{{- assistant_token }}{% endif %}
{{- message.content }}
{%- endfor %}
{%- if add_generation_prompt %}{{- assistant_token }}{% endif %}"""

_CHATGLM2 = """\
{{- '[gMASK]sop' }}
{%- set count = namespace(n=0) %}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- raise_exception('no system message') }}{% endif %}
{%- if message.role == 'user' %}
{%- set count.n = count.n + 1 %}
{{- '[Round ' ~ count.n ~ ']\\n\\n问：' + message.content + '\\n\\n答：' }}
{%- else %}{{- message.content + '\\n\\n' }}{% endif %}
{%- endfor %}"""

_CHATGLM3 = """\
{{- '[gMASK]sop' }}
{%- for message in messages %}{{- '<|' + message.role + '|>\\n ' + message.content }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""

_GLM4 = """\
{{- '[gMASK]<sop>' }}
{%- for message in messages %}{{- '<|' + message.role + '|>\\n' + message.content }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""

_INTERNLM = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- raise_exception('no system message') }}{% endif %}
{%- if message.role == 'user' %}{{- '<|User|>:' + message.content + '<eoh>\\n' }}
{%- else %}{{- '<|Bot|>:' + message.content + '<eoa>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Bot|>:' }}{% endif %}"""

_LLAMA2 = """\
{%- set turns = messages %}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
{%- set turns = messages[1:] %}
{%- endif %}
{%- for message in turns %}
{%- if message.role == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
{%- else %}{{- ' ' + message.content + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

_VICUNA = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- message.content + ' ' }}
{%- elif message.role == 'user' %}{{- 'USER: ' + message.content }}
{%- else %}{{- ' ASSISTANT: ' + message.content + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- ' ASSISTANT:' }}{% endif %}"""

_MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- raise_exception('no system message') }}{% endif %}
{%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{- message.content + eos_token }}{% endif %}
{%- endfor %}"""

_DEEPSEEK = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- message.content + '\\n\\n' }}
{%- elif message.role == 'user' %}{{- 'User: ' + message.content + '\\n\\n' }}
{%- else %}{{- 'Assistant: ' + message.content + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{% endif %}"""

# InternLM2's own format of tools, which its chat templates leave out: a second system message names the plugins, calls
# stand between <|action_start|> and <|action_end|>, results come from the `environment`.
_INTERNLM2_TOOLS = """\
{{- bos_token }}
{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- set turns = messages[1:] %}
{%- endif %}
{%- if tools %}
{%- set listed = namespace(functions=[]) %}
{%- for tool in tools %}{% set listed.functions = listed.functions + [tool.function] %}{% endfor %}
{{- '<|im_start|>system name=<|plugin|>\\n' + (listed.functions|tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in turns %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>environment name=<|plugin|>\\n' + message.content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<|action_start|><|plugin|>\\n' + ({'name': call.function.name, 'parameters': call.function.arguments}|tojson) + '<|action_end|>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
_INTERNLM2_TOOL_TOKENS = frozenset(
    ("<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|plugin|>")
)


def tool_source(source: str, tokens: Iterable[str]) -> str | None:
    """The template for a conversation with tools: `source` itself where it looks at `tools`, a format of the
    family's where `tokens` (the texts of the added tokens) show that the model was trained on it, else None."""
    if re.search(r"\btools\b", source):
        return source
    return _INTERNLM2_TOOLS if _INTERNLM2_TOOL_TOKENS.issubset(tokens) else None


PLAIN = FixedTemplate(
    "plain",
    "",
    """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'system' %}{{- message.content + '\\n\\n' }}
{%- else %}{{- message.role|capitalize + ': ' + message.content + '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{% endif %}""",
    stop_strings=("\nUser:",),
)

_CHATML = ("<|im_start|>", "<|im_end|>")
FIXED_TEMPLATES = (  # the first that applies
    FixedTemplate("internlm2", "internlm2", "{{- bos_token }}\n" + _CHATML_TURNS, tokens=_CHATML),
    FixedTemplate("qwen", "qwen", _QWEN, tokens=_CHATML),
    FixedTemplate("baichuan", "baichuan", _BAICHUAN, tokens=("user_token", "assistant_token")),
    FixedTemplate("chatglm3", "chatglm", _CHATGLM3, tokens=("[gMASK]", "sop", "<|user|>", "<|assistant|>")),
    FixedTemplate("glm4", "chatglm", _GLM4, tokens=("[gMASK]", "<sop>", "<|user|>", "<|assistant|>")),
    FixedTemplate("chatglm2", "chatglm", _CHATGLM2, tokens=("[gMASK]", "sop")),
    FixedTemplate("internlm", "internlm", _INTERNLM, tokens=("<eoh>", "<eoa>")),
    FixedTemplate("mistral", "mistral", _MISTRAL, named="instruct"),
    FixedTemplate("vicuna", "llama", _VICUNA, named="vicuna", stop_strings=("USER:",)),
    FixedTemplate("llama2", "llama", _LLAMA2, named=r"llama-?2.*chat"),
    FixedTemplate("codellama", "llama", _LLAMA2, named=r"code-?llama.*instruct", stop_strings=("<EOT>",)),
    FixedTemplate("deepseek", "llama", _DEEPSEEK, named=r"deepseek.*chat"),
    FixedTemplate("chatml", "", _CHATML_TURNS, tokens=_CHATML),  # Yi, and fine-tunes that added these tokens
)
