"""Chat templates in the styles that models use, written for the tests."""

CHATML = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

DEFAULT_SYSTEM = """{%- if messages[0]['role'] == 'system' -%}
    {%- set sys = messages[0]['content'] -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set sys = 'Be brief.' -%}{%- set rest = messages -%}
{%- endif -%}
{{ '<|im_start|>system\\n' ~ sys ~ '<|im_end|>\\n' }}
{%- for m in rest -%}
    {{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""

HEADERS = """{{ bos_token }}{% set loop_messages = messages %}{% for message in loop_messages %}
{%- set content = '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' %}
{%- if loop.index0 == 0 and message.role == 'system' %}{% set content = content + 'Today: ' + strftime_now('%Y') %}{% endif %}
{{- content }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"""

INST = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must alternate user/assistant') }}
{%- endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{%- else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"""

THINK_STRIP = """{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and not(message.content.startswith('<tool>')) %}
        {%- set ns.open = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

MACROS = """{%- macro head(role, extra='') -%}<|start|>{{ role }}{{ extra }}<|message|>{%- endmacro -%}
{%- macro turn(message) -%}
{{ head(message.role, ' to=all' if message.role == 'system' else '') }}{{ message.content }}<|end|>
{%- endmacro -%}
{%- for message in messages -%}{{ turn(message) }}{%- if not loop.last %}{{ "\\n" }}{% endif %}{%- endfor -%}
{%- if add_generation_prompt %}{{ head(role='assistant') }}{% endif -%}"""

GENERATION = """{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}<end>{% endgeneration %}
{% else %}{{ m.role[0] | upper }}: {{ m.content }}
{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"""

CONTROLS = """{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}
{{ loop.index }}/{{ loop.length }} {{ loop.previtem.role if loop.previtem is defined else '-' }} {{ m.content }}|
{%- if loop.index > 2 -%}{%- break -%}{%- endif -%}
{%- endfor -%}"""

FILTERS = """{{ messages | tojson }}{{ {'b': 1, 'a': "ü<'&"} | tojson(indent=2) }}
{{ messages | map(attribute='role') | unique | join(', ') }}|{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for k, v in {'x': 1, 'y': 2} | dictsort %}{{ k }}={{ v }};{% endfor %}
{{ messages | rejectattr('role', 'in', ['system']) | map(attribute='content') | map('trim') | join('/') }}
{{ 'a-b' | replace('-', '+') | upper }}{{ 'x\\ny' | indent(2) }}{{ '%s=%03d' | format('n', 7) }}{{ '%.2f' % 1.5 }}
{{ [3, 1, 2] | sort | first }}{{ [1, 2] | sum }}{{ none | default('d', true) }}{{ 'abc'[::-1] }}{{ (messages | last).role | title }}
{{ '{} {x:>4}'.format('q', x='z') }}{{ range(3) | list }}{{ 7 // 2 }}{{ 2 ** 5 }}{{ 'ab' * 2 }}{{ [1] + [2] }}{{ true }}{{ none }}"""

SET_BLOCK = """{%- macro wrap() %}({{ caller('in') }}){% endmacro %}{% set head %}[{{ messages | length }} turns]{% endset %}
{%- set ns = namespace(seen=[], n=0) -%}
{%- for m in messages if m.role != 'system' -%}
{%- set ns.seen = ns.seen + [m.role] -%}{%- set ns.n = ns.n + m.content | length -%}
{%- else -%}nobody{%- endfor -%}
{{ head }}{{ ns.seen | join('>') }}{{ ns.n }}{% if 'user' in ns.seen and ns.n is number %}!{% endif %}
{{ dict(a=1)['a'] }}{% filter upper %}done{% endfilter %}{% call(x) wrap() %}{{ x }}{% endcall %}"""

UNDEFINED = """{{ missing }}{% if tools %}T{% endif %}{% if tools is none %}none{% endif %}{{ messages[0].nothing is defined }}
{% for m in messages %}{% if m.tool_calls %}calls{% endif %}{{ m.content }}{{ m.get('name', '?') }}{% endfor %}
   {% if add_generation_prompt %}
   go
   {% endif %}
{# a comment #}{{ eos_token }}"""

ITEMS = """{% for m in messages %}{% for key, value in m.items() %}{{ key }}: {{ value | string }}{{ ', ' if not loop.last }}{% endfor %};
{% endfor %}{%- if (messages | length) is odd and messages[-1].role in ['user', 'system'] %}>{% endif %}{{ loop is defined }}"""

ALL = {
    name: value
    for name, value in globals().items()
    if name.isupper() and isinstance(value, str) and not name.startswith("_")
}
