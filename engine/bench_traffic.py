"""Traffic for a server and what became of it: prompts, arrivals, and the times of each answer. No torch.

Lengths follow what conversations look like (ShareGPT's: short questions, longer answers, a heavy tail), drawn from
log-normal distributions of our own; every prompt begins with words of its own, so that no prefix cache helps.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

# Median and spread (sigma of the logarithm) in tokens. Published summaries of ShareGPT give means of about 220 tokens
# a question and 190 an answer, as these have after clipping.
QUESTION = (110.0, 1.1)
ANSWER = (130.0, 0.9)
SHORTEST, LONGEST = 4, 1024
CONNECT_S, SILENCE_S = 10.0, 300.0
WORDS = [
    "river",
    "lamp",
    "stone",
    "winter",
    "garden",
    "letter",
    "music",
    "window",
    "bread",
    "harbour",
    "mountain",
    "teacher",
    "engine",
    "paper",
    "silver",
    "forest",
    "market",
    "bridge",
    "candle",
    "doctor",
    "island",
    "kitchen",
    "ladder",
    "mirror",
    "needle",
    "orange",
    "pencil",
    "quiet",
    "rain",
    "school",
    "table",
    "uncle",
    "village",
    "water",
    "yellow",
    "animal",
    "bottle",
    "circle",
    "dinner",
    "evening",
    "flower",
    "green",
    "hammer",
    "iron",
    "journey",
    "key",
    "light",
    "morning",
]


@dataclass(frozen=True, slots=True)
class Question:
    """One request: about `prompt_tokens` words of text, and how many tokens to answer with."""

    text: str
    new_tokens: int


@dataclass(slots=True)
class Answered:
    """Seconds since the request was sent; `ttft` None: no text came. `error`: why it failed, "" when it did not."""

    total: float = 0.0
    ttft: float | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str = ""

    @property
    def tpot(self) -> float | None:
        """Seconds between two tokens, on average."""
        if self.ttft is None or self.new_tokens < 2:
            return None
        return (self.total - self.ttft) / (self.new_tokens - 1)


def questions(count: int, seed: int, prompt: int | None, new_tokens: int | None) -> list[Question]:
    """`count` requests; `prompt` and `new_tokens` fix the lengths. The same seed gives the same ones."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        words = prompt if prompt is not None else _length(draw, QUESTION)
        text = " ".join([f"{number}-{draw.randrange(10**6)}", *draw.choices(WORDS, k=max(1, words - 4))])
        made.append(Question(text, new_tokens if new_tokens is not None else _length(draw, ANSWER)))
    return made


def _length(draw: random.Random, shape: tuple[float, float]) -> int:
    return min(LONGEST, max(SHORTEST, int(draw.lognormvariate(math.log(shape[0]), shape[1]))))


class Traffic:
    """Sends questions to the chat endpoint of one server and measures. Answers are made to have their full length
    where the server understands `ignore_eos`."""

    def __init__(self, client: httpx.AsyncClient, path: str, model: str) -> None:
        self._client = client
        self._path = path
        self._model = model
        self.ignores_eos = True

    async def probe(self) -> str:
        """One short request: "" when it was answered, else what the server said."""
        for _ in range(2):
            answer = await self.ask(Question("Hello", 2))
            if not answer.error or not self.ignores_eos:
                break
            self.ignores_eos = False  # perhaps it knows no ignore_eos
        return answer.error

    async def at_once(
        self, asked: Sequence[Question], streams: int, tell: Callable[[], None]
    ) -> list[Answered]:
        """Keep `streams` requests open until all were asked."""
        left = iter(asked)
        answers: list[Answered] = []

        async def work() -> None:
            for question in left:
                answers.append(await self.ask(question))
                tell()

        await asyncio.gather(*(work() for _ in range(streams)))
        return answers

    async def at_rate(
        self, asked: Sequence[Question], per_second: float, seed: int, tell: Callable[[], None]
    ) -> list[Answered]:
        """Send at random moments, `per_second` of them on average (a Poisson process), however many are open."""
        draw = random.Random(seed)

        async def one(question: Question) -> Answered:
            answer = await self.ask(question)
            tell()
            return answer

        running = []
        for question in asked:
            running.append(asyncio.create_task(one(question)))
            await asyncio.sleep(draw.expovariate(per_second))
        return list(await asyncio.gather(*running))

    async def ask(self, question: Question) -> Answered:
        """One streamed answer."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": question.new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignores_eos:
            body["ignore_eos"] = True
        answer, started, ended = Answered(), time.perf_counter(), False
        try:
            async with self._client.stream("POST", self._path, json=body) as response:
                if response.status_code != 200:
                    answer.error = f"HTTP {response.status_code}"
                    return answer
                rest = b""
                async for data in response.aiter_raw():
                    *events, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
                    for event in events:
                        ended = self._take(event, answer, started) or ended
            if not ended:
                answer.error = answer.error or "the stream ended early"
        except httpx.HTTPError as error:
            answer.error = type(error).__name__
        answer.total = time.perf_counter() - started
        return answer

    @staticmethod
    def _take(event: bytes, answer: Answered, started: float) -> bool:
        """Note what one event says; whether it was the last. Only the first with text and the one with the counts are
        read as JSON: the client must cost less than the server."""
        if event == b"data: [DONE]":
            return True
        if event.startswith(b'data: {"error"'):
            answer.error = "an error within the stream"
            return True
        if answer.ttft is None or b"prompt_tokens" in event:
            if not event.startswith(b"data: "):
                return False
            try:
                value = json.loads(event[6:])
            except ValueError:
                answer.error = "malformed event"
                return True
            if usage := value.get("usage"):
                answer.prompt_tokens = usage.get("prompt_tokens", 0)
                answer.new_tokens = usage.get("completion_tokens", 0)
            for choice in value.get("choices") or ():
                delta = choice.get("delta") or {}
                if answer.ttft is None and (delta.get("content") or delta.get("reasoning_content")):
                    answer.ttft = time.perf_counter() - started
        return False
