"""The answers of /v1/chat/completions and /v1/completions: chunks of a stream, and the object of the whole.

Byte for byte as OpenAI's API sends them: the first chunk of a choice names the role, the last carries the reason,
`usage` comes in a chunk of its own without choices when it was asked for, and `data: [DONE]` ends the stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..types import Accepted, Delta, Event, Finished, TokenLogprob, TopLogprob, Usage
from .errors import ApiError
from .replies import SSE, encoded

DONE = b"data: [DONE]\n\n"
TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one answer says."""

    id: str
    object: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))


class Totals:
    """Token counts of an answer of several parts, of which `shared` have the same prompt."""

    def __init__(self, parts: int, shared: int) -> None:
        self._ends: list[Usage | None] = [None] * parts
        self._shared = shared
        self.reasoning = 0

    def end(self, part: int, usage: Usage) -> None:
        self._ends[part] = usage

    def usage(self) -> dict[str, Any]:
        ends = [end for end in self._ends if end is not None]
        firsts = ends[:: self._shared]
        prompt = sum(end.prompt_tokens for end in firsts)
        completion = sum(end.completion_tokens for end in ends)
        made: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in firsts)},
        }
        if self.reasoning:
            made["completion_tokens_details"] = {"reasoning_tokens": self.reasoning}
        return made


def reason_of(event: Finished) -> str:
    """The `finish_reason`; "abort" is LMDeploy's word for what /abort_request ended."""
    return "abort" if event.reason == "cancelled" else event.reason


class OpenAIForm:
    """What both endpoints share. A chunk is built around its head, which is encoded once."""

    content_type = SSE

    def __init__(self, head: Head, parts: int, prompts: int, include_usage: bool) -> None:
        self.head = head
        self.totals = Totals(parts, parts // prompts)
        self._include_usage = include_usage
        self._prefix = b"data: " + encoded(
            {"id": head.id, "object": head.object, "created": head.created, "model": head.model}
        )[:-1] + b',"choices":['  # fmt: skip
        self._suffix = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def chunk(self, choice: bytes) -> bytes:
        """One event with one choice, already encoded."""
        return self._prefix + choice + self._suffix

    def closing(self) -> bytes:
        if not self._include_usage:
            return DONE
        return self._prefix + b'],"usage":' + encoded(self.totals.usage()) + b"}\n\n" + DONE

    def error(self, error: ApiError) -> bytes:
        return b"data: " + encoded(error.body) + b"\n\n"


# --- completions -------------------------------------------------------------------------------------------


class CompletionForm(OpenAIForm):
    """/v1/completions. `logprobs`: the number asked for, None: none."""

    def __init__(
        self, head: Head, parts: int, prompts: int, include_usage: bool, logprobs: int | None
    ) -> None:
        super().__init__(head, parts, prompts, include_usage)
        self._logprobs = logprobs
        self._texts: list[list[str]] = [[] for _ in range(parts)]
        self._told: list[list[TokenLogprob]] = [[] for _ in range(parts)]
        self._offsets = [0] * parts
        self._reasons = [""] * parts

    def take(self, part: int, event: Event) -> bytes:
        if isinstance(event, Delta):
            self._texts[part].append(event.text)
            self._told[part] += event.logprobs
            if not event.text and not event.logprobs:
                return b""
            return self.chunk(encoded(self._choice(part, event.text, event.logprobs, None)))
        if isinstance(event, Finished):
            self._reasons[part] = reason_of(event)
            self.totals.end(part, event.usage)
            return self.chunk(encoded(self._choice(part, "", (), self._reasons[part])))
        return b""

    def whole(self) -> dict[str, Any]:
        self._offsets = [0] * len(self._offsets)
        choices = [
            self._choice(part, "".join(texts), self._told[part], self._reasons[part])
            for part, texts in enumerate(self._texts)
        ]
        head = self.head
        return {
            "id": head.id,
            "object": head.object,
            "created": head.created,
            "model": head.model,
            "choices": choices,
            "usage": self.totals.usage(),
        }

    def _choice(
        self, part: int, text: str, logprobs: Sequence[TokenLogprob], reason: str | None
    ) -> dict[str, Any]:
        told = None
        if self._logprobs is not None and (logprobs or reason is None):
            told = self._table(part, logprobs)
        return {"index": part, "text": text, "logprobs": told, "finish_reason": reason}

    def _table(self, part: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """OpenAI's older form: parallel lists. `text_offset` counts characters of the completion."""
        offsets = []
        for token in logprobs:
            offsets.append(self._offsets[part])
            self._offsets[part] += len(token.chosen.text)
        return {
            "tokens": [token.chosen.text for token in logprobs],
            "token_logprobs": [finite(token.chosen.logprob) for token in logprobs],
            "top_logprobs": [
                {top.text: finite(top.logprob) for top in reversed((token.chosen, *token.top))}
                for token in logprobs
            ],
            "text_offset": offsets,
        }


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI's own stand-in for a token that cannot be."""
    return max(logprob, -9999.0)


# --- chat --------------------------------------------------------------------------------------------------


class ChatForm(OpenAIForm):
    """/v1/chat/completions. `readers[part]` divides a reply into content, reasoning and tool calls."""

    def __init__(
        self,
        head: Head,
        include_usage: bool,
        readers: Sequence[Reader],
        logprobs: bool,
        token_bytes: TokenBytes,
    ) -> None:
        super().__init__(head, len(readers), 1, include_usage)
        self._readers = readers
        self._logprobs = logprobs
        self._token_bytes = token_bytes
        self._told: list[list[dict[str, Any]]] = [[] for _ in readers]
        self._reasons = [""] * len(readers)

    def take(self, part: int, event: Event) -> bytes:
        reader = self._readers[part]
        if isinstance(event, Accepted):
            reader.begin(event.prompt_ids)
            return self._delta(part, {"role": "assistant", "content": ""})
        if isinstance(event, Delta):
            told = [self._logprob(token) for token in event.logprobs] if self._logprobs else []
            self._told[part] += told
            deltas = reader.push(event.text, len(event.token_ids))
            if told and not deltas:
                deltas = [{"content": ""}]
            return b"".join(
                self._delta(part, delta, told if place == 0 else None) for place, delta in enumerate(deltas)
            )
        if isinstance(event, Finished):
            rest = reader.end()
            reason = reason_of(event)
            self._reasons[part] = "tool_calls" if reader.called and reason == "stop" else reason
            self.totals.end(part, event.usage)
            self.totals.reasoning += reader.reasoning_tokens
            return b"".join(self._delta(part, delta) for delta in rest) + self._delta(
                part, {}, None, self._reasons[part]
            )
        return b""

    def whole(self) -> dict[str, Any]:
        choices = []
        for part, reader in enumerate(self._readers):
            told = {"content": self._told[part], "refusal": None} if self._logprobs else None
            choices.append(
                {
                    "index": part,
                    "message": reader.message(),
                    "logprobs": told,
                    "finish_reason": self._reasons[part],
                }
            )
        head = self.head
        return {
            "id": head.id,
            "object": "chat.completion",
            "created": head.created,
            "model": head.model,
            "choices": choices,
            "usage": self.totals.usage(),
        }

    def _delta(
        self,
        part: int,
        delta: dict[str, Any],
        told: Sequence[dict[str, Any]] | None = None,
        reason: str | None = None,
    ) -> bytes:
        logprobs = b"null"
        if told:
            logprobs = encoded({"content": list(told), "refusal": None})
        return self.chunk(
            b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}'
            % (part, encoded(delta), logprobs, json.dumps(reason).encode())
        )

    def _logprob(self, token: TokenLogprob) -> dict[str, Any]:
        return self._candidate(token.chosen) | {"top_logprobs": [self._candidate(top) for top in token.top]}

    def _candidate(self, token: TopLogprob) -> dict[str, Any]:
        return {
            "token": token.text,
            "logprob": finite(token.logprob),
            "bytes": list(self._token_bytes(token.token_id)),
        }


class Reader:
    """One reply as it comes: everything is content. `push` and `end` give the deltas that a stream shows, in
    order; `message` is the whole, once ended."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self.called = False
        self.reasoning_tokens = 0

    def begin(self, prompt_ids: tuple[int, ...]) -> None:
        """Hear what the prompt was, before anything else."""

    def push(self, text: str, tokens: int) -> list[dict[str, Any]]:
        """Take what came with `tokens` tokens."""
        if not text:
            return []
        self._content.append(text)
        return [{"content": text}]

    def end(self) -> list[dict[str, Any]]:
        """What was held back."""
        return []

    def message(self) -> dict[str, Any]:
        return {"role": "assistant", "content": "".join(self._content)}
