"""One chat completion as bytes on the wire: the request's body, and the reply's chunks back into text. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from .remote_http import error_text
from .remote_kinds import Kind, sampling_fields
from .text import one_line
from .types import NOT_TOLD, Message, RemoteError, Request, UsageError

THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
OPTIONAL = ("stream_options", "max_tokens", "max_completion_tokens")  # besides the sampling fields


def body_of(
    request: Request, model: str, kind: Kind, refused: Collection[str] = ()
) -> tuple[str, dict[str, Any]]:
    """Endpoint below the API's path and JSON body. `refused`: optional fields that this server does not take.
    UsageError for token ids, which no such server takes."""
    fields = sampling_fields(request.sampling, kind, refused)
    most = request.sampling.max_new_tokens
    if most is not None and "max_tokens" in refused and "max_completion_tokens" not in refused:
        fields["max_completion_tokens"] = most  # its newer name
    body: dict[str, Any] = {"model": model, "stream": True, **fields}
    if "stream_options" not in refused:
        body["stream_options"] = {"include_usage": True}
        if kind.counts:
            body["stream_options"]["continuous_usage_stats"] = True
    if request.prompt_ids is not None:
        raise UsageError("a server takes text, not token ids")
    if request.prompt is not None:
        return "/completions", body | {"prompt": request.prompt}
    return "/chat/completions", body | {"messages": [_message(message) for message in request.messages or ()]}


def _message(message: Message) -> dict[str, str]:
    """A turn as the server gets it; what the model thought before it answered is not sent back."""
    content = THOUGHT.sub("", message.content, count=1) if message.role == "assistant" else message.content
    return {"role": message.role, "content": content.encode("utf-8", "replace").decode("utf-8")}


@dataclass(slots=True)
class Counts:
    """What the server said about tokens and speed; `NOT_TOLD` and None where it did not."""

    prompt: int = NOT_TOLD
    completion: int = NOT_TOLD
    cached: int = NOT_TOLD
    prefill_tps: float | None = None
    decode_tps: float | None = None


class ReplyReader:
    """Takes the data of a reply's events, one by one, and gives its text.

    Reasoning that comes in a field of its own is put between `<think>` and `</think>`, as models write it that have no
    such field. `finish` is the server's reason, None before it; `done`: it said that nothing follows.
    """

    def __init__(self) -> None:
        self.id = ""
        self.finish: str | None = None
        self.done = False
        self.counts = Counts()
        self._thinking = False

    @property
    def ended(self) -> bool:
        """Whether the reply is whole."""
        return self.done or self.finish is not None

    def take(self, data: str) -> str:
        """The text in one event's data. RemoteError for an error the server tells, or what is no chunk."""
        if data.strip() == "[DONE]":
            self.done = True
            return self._close()
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            raise RemoteError("interrupted: malformed event")
        if chunk.get("error") or chunk.get("object") == "error":
            text, _ = error_text(chunk)
            raise RemoteError(f"interrupted: the server says: {one_line(text, 200) or 'error'}")
        if isinstance(chunk.get("id"), str):
            self.id = self.id or chunk["id"][:200]
        self._count(chunk)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return ""
        return "".join(self._choice(choice) for choice in choices if isinstance(choice, dict))

    def _choice(self, choice: dict[str, Any]) -> str:
        if choice.get("index", 0) not in (0, None):
            return ""
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else choice.get("message")
        text = ""
        if isinstance(delta, dict):
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            text = self._join(thought if isinstance(thought, str) else "", _text(delta.get("content")))
        elif isinstance(choice.get("text"), str):  # of /completions
            text = _text(choice["text"])
        if isinstance(choice.get("finish_reason"), str):
            self.finish = choice["finish_reason"]
            text += self._close()
        return text

    def _join(self, thought: str, content: str) -> str:
        text = ""
        if thought:
            text = thought if self._thinking else f"<think>\n{thought}"
            self._thinking = True
        return text + (self._close() + content if content else "")

    def _close(self) -> str:
        if not self._thinking:
            return ""
        self._thinking = False
        return "\n</think>\n\n"

    def _count(self, chunk: dict[str, Any]) -> None:
        usage, timings, counts = chunk.get("usage"), chunk.get("timings"), self.counts
        if isinstance(usage, dict):
            counts.prompt = _count(usage.get("prompt_tokens"), counts.prompt)
            counts.completion = _count(usage.get("completion_tokens"), counts.completion)
            details = usage.get("prompt_tokens_details")
            if isinstance(details, dict):
                counts.cached = _count(details.get("cached_tokens"), counts.cached)
        if isinstance(timings, dict):  # llama.cpp's own measurement
            counts.cached = _count(timings.get("cache_n"), counts.cached)
            counts.prefill_tps = _speed(timings.get("prompt_per_second"))
            counts.decode_tps = _speed(timings.get("predicted_per_second"))


def _text(content: Any) -> str:
    """Content as text: a string, or a list of parts (Mistral's), without halves of characters."""
    if isinstance(content, list):
        content = "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        return ""
    return (
        content
        if content.isascii()
        else content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def _count(value: Any, otherwise: int) -> int:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
    return value if is_count else otherwise


def _speed(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e7 else None
