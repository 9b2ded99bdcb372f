"""The official client, as it is: chat, completions, streams, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from support.server import USER, Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(session_len=512)
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat(client: OpenAI, **more: Any) -> Any:
    body = {"model": "demo", "messages": USER, "temperature": 0, "max_tokens": 24} | more
    return client.chat.completions.create(**body)


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_a_reply_in_one_piece_equals_the_streamed_one(client: OpenAI) -> None:
    whole = chat(client)
    assert whole.object == "chat.completion"
    assert whole.id.startswith("chatcmpl-")
    (choice,) = whole.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == choice.finish_reason
    assert set(reasons[:-1]) == {None}
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_length_and_stop_reasons(client: OpenAI) -> None:
    cut = chat(client, max_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
    assert chat(client, messages=[{"role": "user", "content": "Hello"}]).choices[0].finish_reason == "stop"
    assert chat(client, max_tokens=openai.omit, max_completion_tokens=2).usage.completion_tokens == 2


def test_a_stop_string_over_token_borders_is_cut_out_and_never_leaks(client: OpenAI) -> None:
    text = chat(client).choices[0].message.content
    stop = text[8:14]
    cut = text[: text.index(stop)]
    assert chat(client, stop=stop).choices[0].message.content == cut
    chunks = chat(client, stop=[stop, "never there"], stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == cut
    kept = chat(client, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == cut + stop


def test_seeds_and_several_choices(client: OpenAI) -> None:
    warm = {"temperature": 1.5, "max_tokens": 12, "n": 4}
    first, again = chat(client, seed=7, **warm), chat(client, seed=7, **warm)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert first.usage.completion_tokens > first.usage.prompt_tokens  # each choice counts, the prompt once
    assert first.usage.prompt_tokens == chat(client).usage.prompt_tokens
    other = chat(client, seed=8, **warm)
    assert [choice.message.content for choice in other.choices] != texts

    seen: dict[int, str] = {}
    for chunk in chat(client, seed=7, stream=True, **warm):
        for choice in chunk.choices:
            seen[choice.index] = seen.get(choice.index, "") + (choice.delta.content or "")
    assert [seen[index] for index in range(4)] == texts


def test_logprobs_of_a_chat(client: OpenAI) -> None:
    reply = chat(client, logprobs=True, top_logprobs=3, max_tokens=6)
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == 6
    assert "".join(token.token for token in tokens) == reply.choices[0].message.content
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001
    streamed = [
        token
        for chunk in chat(client, logprobs=True, top_logprobs=3, max_tokens=6, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == tokens


def test_completions_of_text_and_of_ids(client: OpenAI, server: Server) -> None:
    def complete(**body: Any) -> Any:
        return client.completions.create(model="demo", temperature=0, **body)

    alone = complete(prompt="A story", max_tokens=6, logprobs=2)
    assert len(alone.choices[0].logprobs.tokens) == 6
    assert alone.choices[0].logprobs.text_offset[0] == 0
    ids = server.client.post("/v1/encode", json={"input": "A story"}).json()["input_ids"]
    both = complete(prompt=["A story", "The lock"], max_tokens=6, n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == alone.choices[0].text
    assert complete(prompt=ids, max_tokens=6).choices[0].text == alone.choices[0].text
    assert complete(prompt=[ids, ids], max_tokens=6).choices[1].text == alone.choices[0].text
    streamed = complete(prompt="A story", max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == alone.choices[0].text
    assert complete(prompt="A story").usage.completion_tokens == 16  # OpenAI's default


def test_bias_penalties_and_lengths_reach_the_engine(client: OpenAI, server: Server) -> None:
    ids = server.client.post("/v1/encode", json={"input": " lamp"}).json()["input_ids"]
    forced = chat(client, logit_bias={str(ids[0]): 100}, max_tokens=3)
    assert forced.usage.completion_tokens == 3
    assert forced.choices[0].message.content != chat(client, max_tokens=3).choices[0].message.content
    hello = [{"role": "user", "content": "Hello"}]
    short = chat(client, messages=hello, max_tokens=40).usage.completion_tokens
    held = chat(client, messages=hello, max_tokens=40, extra_body={"min_new_tokens": short + 5})
    assert held.usage.completion_tokens >= short + 5
    endless = chat(client, messages=hello, max_tokens=40, extra_body={"ignore_eos": True})
    assert (endless.usage.completion_tokens, endless.choices[0].finish_reason) == (40, "length")
    varied = chat(client, frequency_penalty=2, presence_penalty=2, extra_body={"repetition_penalty": 2})
    assert varied.choices[0].message.content != chat(client).choices[0].message.content


def test_a_text_in_place_of_messages_is_continued(client: OpenAI, server: Server) -> None:
    body = {"messages": "A story", "temperature": 0, "max_tokens": 6}
    raw = server.client.post("/v1/chat/completions", json=body).json()
    same = client.completions.create(model="demo", prompt="A story", temperature=0, max_tokens=6)
    assert raw["choices"][0]["message"]["content"] == same.choices[0].text


def test_errors_are_the_clients_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        chat(client, model="gpt-4")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        chat(client, temperature=3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unknown:
        chat(client, extra_body={"tempreature": 1})
    assert (unknown.value.param, unknown.value.code) == ("tempreature", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        chat(client, messages=[{"role": "user", "content": "word " * 3000}])
    assert long.value.code == "context_length_exceeded"
    assert "512" in long.value.message
    with pytest.raises(openai.APIStatusError) as none:
        client.embeddings.create(model="demo", input="x")
    assert none.value.status_code == 501


def test_the_context_ends_a_reply_that_asked_for_more(client: OpenAI) -> None:
    reply = chat(client, max_tokens=512, extra_body={"ignore_eos": True})
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.total_tokens == 512
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, max_tokens=513)
    assert caught.value.code == "context_length_exceeded"
