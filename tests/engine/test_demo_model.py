"""The built-in model as it lies in the repository, in our own engine: prompts that training never saw."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.engines import Client, loaded

from lmtop.engine.demo.corpus import conversations
from lmtop.engine.demo.heldout import HELD_OUT_PROMPTS, normalised
from lmtop.engine.local import LocalBackend
from lmtop.engine.models import demo_path
from lmtop.engine.types import GREEDY, Message, Request, SamplingParams

UNKNOWN = r"not know|don't know|never learned|not learned|did not cover|cannot|beyond me|too hard"
ANSWERS = (
    ("good day to you, machine", r"hello|hi\b|good"),
    ("what language model is behind this program?", r"\btoy\b"),
    ("are you a big model or a small one?", r"7\.5 million|\btoy\b"),
    ("how do I get rid of this program?", r"ctrl\+q"),
    ("I'd like to stop the reply, which key?", r"\besc\b"),
    ("how can I write two lines in one message?", r"ctrl\+j"),
    ("how do I get another chat window?", r"ctrl\+n|/new"),
    ("can you tell me how to use a real model like mistral?", r"F4|/load|lmtop chat"),
    ("could you explain what the kv cache does?", r"keys and values"),
    ("why is quantisation used at all?", r"bits"),
    ("where does lmtop keep the chats?", r"SQLite"),
    ("which licence has lmtop?", r"Apache-2\.0"),
    ("tell me a story about a hedgehog and a drum", r"(?s)(?=.{200}).*hedgehog"),
    ("how many rivers flow into the baltic sea?", UNKNOWN),
    ("who was the emperor of Japan in 1900?", UNKNOWN),
    ("write a javascript function that sorts numbers", rf"{UNKNOWN}|program"),
    ("please work out 9 + 8 for me", r"\b17\b"),
    ("xkcd qwop zzt", r"understand|sense|read"),
    ("wie alt bist du?", r"English"),
    ("thanks, you helped me a lot", r"welcome|pleasure|gladly|happy|any time"),
    ("你好，可以介绍一下你自己吗？", r"模型"),
    ("请讲一个关于乌龟的故事", r"(?s)(?=.{40}).*乌龟"),
    ("怎么让回答停下来？", r"esc"),
    ("美国总统是谁？", r"不知道|不懂|没有学过"),
)


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[LocalBackend, Client]]:
    backend, client = loaded(demo_path(), max_batch_size=16)
    yield backend, client
    backend.close()


def ask(client: Client, name: str, *turns: str, sampling: SamplingParams = GREEDY) -> str:
    """Play `turns`, the model's own answers in between; return the last answer."""
    messages: tuple[Message, ...] = ()
    for number, turn in enumerate(turns):
        messages = (*messages, Message("user", turn))
        request = Request(
            f"{name} {number}", messages=messages, sampling=replace(sampling, max_new_tokens=300)
        )
        client.submit(request)
        client.wait([request.id])
        messages = (*messages, Message("assistant", client.text(request.id)))
    return messages[-1].content


def test_files_are_small_enough_and_complete():
    assert {path.name for path in demo_path().iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (demo_path() / "model.safetensors").stat().st_size <= 16 * 2**20
    record = json.loads((Path(__file__).parents[2] / "engine/demo/training.json").read_text())
    assert record["curve"][-1]["loss"] < 0.2 < record["curve"][0]["loss"]


@pytest.mark.parametrize(("prompt", "want"), ANSWERS)
def test_answers(demo, prompt, want):
    answer = ask(demo[1], prompt, prompt)
    assert re.search(want, answer, re.IGNORECASE), answer
    chinese = re.search(r"[一-鿿]", prompt) is not None
    assert (re.search(r"[一-鿿]", answer) is not None) == chinese or "你好" in answer


def test_these_prompts_are_new():
    """None was in the 1.5 million conversations of the training; this looks at a part of them, for time."""
    said = {normalised(m["content"]) for c in conversations(1, 0, 4000) for m in c if m["role"] == "user"}
    asked = {normalised(prompt) for prompt, _ in ANSWERS}
    assert not asked & (said | HELD_OUT_PROMPTS)


def test_it_remembers_a_name_and_shortens(demo):
    assert "Rosalind" in ask(demo[1], "name", "my name is Rosalind", "tell me a joke", "and what is my name?")
    long, short = (ask(demo[1], f"kv{n}", *("what is the kv cache", "make that shorter")[:n]) for n in (1, 2))
    assert 10 < len(short) < len(long)


def test_a_second_story_is_another_one(demo):
    first, second = (
        ask(demo[1], f"fox{n}", *("tell me a story about a fox", "another one")[:n]) for n in (1, 2)
    )
    assert "fox" in first and "fox" not in second and len(second) > 200


def test_default_sampling_also_says_that_it_is_a_toy(demo):
    answers = [
        ask(demo[1], f"who{seed}", "who are you?", sampling=SamplingParams(seed=seed)) for seed in range(6)
    ]
    assert sum("toy" in answer or "demo" in answer for answer in answers) >= 5, answers
    assert len(set(answers)) > 1
