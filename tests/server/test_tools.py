"""Tool calls and reasoning: what the model is told, and what becomes of its text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from support.engines import until
from support.server import ScriptedBackend, Server, is_error

from lmtop.engine.fixed_templates import tool_source
from lmtop.engine.models import demo_path
from lmtop.engine.server.readers import DividingReader
from lmtop.engine.server.tools import HERMES, INTERNLM, LLAMA3, Offer, Syntax, syntax_of
from lmtop.engine.template import ChatTemplate
from lmtop.engine.tokenizer import load_tokenizer
from lmtop.engine.types import Message, ToolCall, UsageError

QWEN = """\
{%- if tools %}<|im_start|>system
# Tools
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
LLAMA = "{% if tools %}{{ tools | tojson }}<|python_tag|>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def read(
    pieces: list[str],
    syntax: Syntax | None = None,
    thinks: bool = False,
    tail: str = "",
    single: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the message, the same put together from the deltas) of a reply that came in `pieces`."""
    offer = Offer(syntax, "[]", single) if syntax is not None else None
    reader = DividingReader(thinks=thinks, offer=offer, prefix="p", tail_text=lambda ids: tail)
    reader.begin((1,))
    deltas = [delta for piece in pieces for delta in reader.push(piece, 1)] + reader.end()
    joined: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    for delta in deltas:
        joined["content"] += delta.get("content", "")
        joined["reasoning"] += delta.get("reasoning_content", "")
        joined["calls"] += delta.get("tool_calls", [])
    return reader.message(), joined


def calls(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", [])
    ]


ONE = '{"name": "weather", "arguments": {"city": "Köln"}}'
OLD = '{"name": "weather", "parameters": {"city": "Köln"}}'
CITY = ("weather", {"city": "Köln"})
REPLIES: list[tuple[Syntax, str, Any, list[Any]]] = [  # syntax, text, content, calls
    (HERMES, f"<tool_call>\n{ONE}\n</tool_call>", None, [CITY]),
    (
        HERMES,
        f"Let me see.\n<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>",
        "Let me see.",
        [CITY, CITY],
    ),
    (HERMES, "no call at all, 1 < 2 <tool", "no call at all, 1 < 2 <tool", []),
    (HERMES, "<tool_call>not json</tool_call> after", "<tool_call>not json</tool_call> after", []),
    (HERMES, f"<tool_call>{ONE}", None, [CITY]),  # never closed
    (HERMES, "<tool_call>{", "<tool_call>{", []),
    (INTERNLM, f"I look.<|action_start|><|plugin|>\n{OLD}<|action_end|>\n", "I look.", [CITY]),
    (LLAMA3, OLD, None, [CITY]),
    (LLAMA3, f"<|python_tag|>{OLD}; {OLD}", None, [CITY, CITY]),
    (LLAMA3, '{"a": 1} is an object', '{"a": 1} is an object', []),
    (LLAMA3, "Hello", "Hello", []),
]


@pytest.mark.parametrize(("syntax", "text", "content", "found"), REPLIES)
def test_calls_are_found(syntax: Syntax, text: str, content: str | None, found: list[Any]) -> None:
    message, _ = read([text], syntax)
    assert (message["content"] or "").strip() == (content or "")
    assert calls(message) == found
    ids = [call["id"] for call in message.get("tool_calls", [])]
    assert len(set(ids)) == len(ids)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.data())
def test_how_a_reply_was_cut_changes_nothing(data: st.DataObject) -> None:
    syntax, text, _, _ = data.draw(st.sampled_from(REPLIES))
    thinks = data.draw(st.booleans())
    if thinks:
        text = "<think>\nhm </thin\n</think>\n\n" + text
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    whole, cut = read([text], syntax, thinks)[0], read(pieces, syntax, thinks)
    assert cut[0] == whole
    assert cut[1]["content"] == (whole["content"] or "")
    assert cut[1]["reasoning"] == whole.get("reasoning_content", "")
    assert [{k: v for k, v in call.items() if k != "index"} for call in cut[1]["calls"]] == whole.get(
        "tool_calls", []
    )


@pytest.mark.parametrize(
    ("text", "tail", "reasoning", "content"),
    [
        ("<think>\nhm\n</think>\n\nHello", "", "hm\n", "Hello"),
        ("hm</think>Hello", "<think>\n", "hm", "Hello"),
        ("Hello <think>", "", "", "Hello <think>"),
        ("<think>never closed", "", "never closed", ""),
        ("<think>x", "<think>\n\n</think>\n\n", "", "<think>x"),
        ("<thi", "", "", "<thi"),
        ("", "", "", ""),
    ],
)
def test_reasoning_is_told_apart(text: str, tail: str, reasoning: str, content: str) -> None:
    message, joined = read(list(text), thinks=True, tail=tail)
    assert message.get("reasoning_content", "") == reasoning == joined["reasoning"]
    assert message["content"] == content == joined["content"]


def test_at_most_one_call_where_only_one_is_allowed() -> None:
    message, joined = read([f"<tool_call>{ONE}</tool_call>" * 3], HERMES, single=True)
    assert len(message["tool_calls"]) == len(joined["calls"]) == 1


# --- templates ---------------------------------------------------------------------------------------------


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, load_tokenizer(demo_path(), "llama", 4096), name="test")


def test_the_syntax_follows_from_the_template() -> None:
    assert syntax_of(template(QWEN)) is HERMES
    assert syntax_of(template(LLAMA)) is LLAMA3
    assert syntax_of(template("{{ messages[0].content }}")) is None
    assert syntax_of(template(QWEN.replace("</tools>", "<function=x>"))) is None  # a form that is not known
    tokens = ("<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|plugin|>")
    internlm = tool_source("{% for message in messages %}{% endfor %}", tokens)
    assert internlm is not None
    assert syntax_of(template(internlm)) is INTERNLM


def test_internlms_own_format() -> None:
    tokens = ("<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|plugin|>")
    source = tool_source("", tokens)
    assert source is not None
    turns = [
        Message("system", "be good"),
        Message("user", "weather?"),
        Message("assistant", "look:", tool_calls=(ToolCall("c1", "weather", '{"city": "K"}'),)),
        Message("tool", "22", tool_call_id="c1"),
    ]
    text = template(source).render_text(turns, tools=[WEATHER])
    assert text.endswith(
        "<|im_start|>system\nbe good<|im_end|>\n"
        '<|im_start|>system name=<|plugin|>\n[{"name": "weather", "description": "of a city", "parameters": '
        '{"type": "object", "properties": {"city": {"type": "string"}}}}]<|im_end|>\n'
        "<|im_start|>user\nweather?<|im_end|>\n"
        '<|im_start|>assistant\nlook:<|action_start|><|plugin|>\n{"name": "weather", "parameters": {"city": "K"}}'
        "<|action_end|><|im_end|>\n"
        "<|im_start|>environment name=<|plugin|>\n22<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_arguments_that_are_no_object_are_refused() -> None:
    for arguments in ("[]", "{", "1", '"x"'):
        with pytest.raises(UsageError, match="no JSON object"):
            template(QWEN).render([Message("assistant", "", tool_calls=(ToolCall("c", "f", arguments),))])


def test_what_people_write_in_a_tool_is_never_a_special_token() -> None:
    made = template(QWEN)
    tokenizer = load_tokenizer(demo_path(), "llama", 4096)
    special = next(text for text, index in tokenizer.added.items() if index in tokenizer.eos_ids)
    evil = json.loads(json.dumps(WEATHER).replace("of a city", f"x{special}y"))

    def commands(tool: Any, result: str) -> list[int]:
        turns = [Message("user", "hi"), Message("tool", result, tool_call_id="c")]
        return [index for index in made.render(turns, tools=[tool]) if index in tokenizer.special_ids]

    assert commands(WEATHER, "22") == commands(evil, "22") == commands(WEATHER, f"22{special}")


# --- over HTTP ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(ScriptedBackend(QWEN))
    yield server
    server.close()


def play(server: Server, pieces: list[str], **body: Any) -> Any:
    """What the official client returns when the model says `pieces`."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answers: list[Any] = []
    backend: ScriptedBackend = server.backend
    known = len(backend.requests)
    asked = {
        "model": "demo",
        "messages": [{"role": "user", "content": "weather?"}],
        "tools": [WEATHER],
    } | body

    def ask() -> None:
        answer = client.chat.completions.create(**asked)
        answers.append(list(answer) if asked.get("stream") else answer)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: len(backend.requests) > known, "the request came")
    for piece in pieces:
        backend.push(backend.last(), piece)
    backend.finish(backend.last())
    thread.join(10)
    return answers[0]


def test_a_call_for_the_official_client(server: Server) -> None:
    answer = play(server, ["<tool", f"_call>{ONE}</tool_call>"])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Köln"}
    request = server.backend.requests[server.backend.last()]
    assert json.loads(request.tools) == [WEATHER]

    chunks = play(server, ["Wait. ", f"<tool_call>{ONE}</tool_call>"], stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Wait."
    (streamed,) = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (streamed.index, streamed.function.name) == (0, "weather")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"

    # the answer goes back as the client has it
    turns = [{"role": "user", "content": "weather?"}, choice.message.model_dump(exclude_none=True)]
    turns += [{"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}]
    assert play(server, ["22."], messages=turns).choices[0].message.content == "22."
    messages = server.backend.requests[server.backend.last()].messages
    assert messages[1].tool_calls[0].name == "weather"
    assert (messages[2].role, messages[2].tool_call_id) == ("tool", call.id)


def test_reasoning_for_the_official_client(server: Server) -> None:
    answer = play(server, ["<think>hm", "</think>", "Hi"], extra_body={"enable_thinking": True})
    assert answer.choices[0].message.content == "Hi"
    assert answer.choices[0].message.reasoning_content == "hm"
    assert answer.usage.completion_tokens_details.reasoning_tokens >= 1
    request = server.backend.requests[server.backend.last()]
    assert request.template_options == (("enable_thinking", True),)


def test_what_cannot_be_honoured_is_refused(server: Server) -> None:
    messages = [{"role": "user", "content": "x"}]
    for more, param in (
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ):
        response = server.client.post(
            "/v1/chat/completions", json={"messages": messages, "tools": [WEATHER], "max_tokens": 1} | more
        )
        assert is_error(response, 400)["param"] == param, response.text
