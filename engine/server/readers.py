"""A reply divided into reasoning, content and tool calls while it comes.

Text that may be the beginning of a tag is held back until it is certain. A tag that is never closed gives everything
after it to what it opened; a tool call that is no JSON is shown as content: nothing a model wrote is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .openai_forms import Reader
from .schemas import ChatRequest
from .tools import Offer, calls_in

if TYPE_CHECKING:
    from ..template import ChatTemplate
    from ..tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"
TAIL = 16  # tokens of the prompt's end that are looked at


class DividingReader(Reader):
    """`thinks`: the model may reason between <think> and </think>. `offer`: the tools it may call."""

    def __init__(
        self,
        *,
        thinks: bool,
        offer: Offer | None,
        prefix: str,
        tail_text: Callable[[tuple[int, ...]], str],
    ) -> None:
        super().__init__()
        self._thinks = thinks
        self._offer = offer
        self._prefix = prefix
        self._tail_text = tail_text
        self._state = "start"  # start, reasoning, content, call
        self._held = ""
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def begin(self, prompt_ids: tuple[int, ...]) -> None:
        """Look at how the prompt ends: a template may open the reasoning itself, or have closed it."""
        if self._thinks:
            tail = self._tail_text(prompt_ids[-TAIL:]).rstrip()
            if tail.endswith(THINK):
                self._state = "reasoning"
            elif tail.endswith(END_THINK):
                self._thinks = False

    def push(self, text: str, tokens: int) -> list[dict[str, Any]]:
        if self._state in ("start", "reasoning") and self._thinks:
            self.reasoning_tokens += tokens
        self._held += text
        deltas: list[dict[str, Any]] = []
        while self._step(deltas, final=False):
            pass
        return deltas

    def end(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        while self._step(deltas, final=True):
            pass
        return deltas

    def message(self) -> dict[str, Any]:
        content = "".join(self._content)
        made: dict[str, Any] = {"role": "assistant", "content": content}
        if self._reasoning:
            made["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            made["content"] = content or None
            made["tool_calls"] = self._calls
        return made

    # --- states: each takes what it can of `_held`; True when another may go on ---------------------------------

    def _step(self, deltas: list[dict[str, Any]], final: bool) -> bool:
        if self._state == "start":
            return self._start(final)
        if self._state == "reasoning":
            return self._reason(deltas, final)
        if self._state == "call":
            return self._call(deltas, final)
        return self._speak(deltas, final)

    def _start(self, final: bool) -> bool:
        bare = self._held.lstrip()
        if self._thinks and bare.startswith(THINK):
            self._held = bare[len(THINK) :]
            self._state = "reasoning"
            return True
        if self._thinks and not final and THINK.startswith(bare):
            return False
        self.reasoning_tokens = 0
        if not bare and not final:
            return False
        offer = self._offer
        if offer is not None and offer.syntax.bare and bare.startswith("{"):
            self._state, self._held = "call", bare
        else:
            self._state = "content"
        return True

    def _reason(self, deltas: list[dict[str, Any]], final: bool) -> bool:
        before, tag, after = self._held.partition(END_THINK)
        if tag:
            self._held, self._state = after, "content"
        else:
            keep = 0 if final else _open_length(before, END_THINK)
            before, self._held = before[: len(before) - keep], before[len(before) - keep :]
        if not self._reasoning:
            before = before.lstrip("\n")
        if before:
            self._reasoning.append(before)
            deltas.append({"reasoning_content": before})
        return bool(tag)

    def _speak(self, deltas: list[dict[str, Any]], final: bool) -> bool:
        text, self._held = self._held, ""
        opening = self._offer.syntax.opening if self._offer is not None else ""
        found = False
        if opening:
            text, tag, rest = text.partition(opening)
            found = bool(tag)
            if found:
                self._held, self._state = rest, "call"
                text = text.rstrip()
            elif not final:
                # spaces before a call belong to it, so they wait as well
                keep = _open_length(text, opening)
                keep += len(text[: len(text) - keep]) - len(text[: len(text) - keep].rstrip())
                text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if not self._content and (self._reasoning or self._calls):
            text = text.lstrip("\n")
        if text:
            self._content.append(text)
            deltas.append({"content": text})
        return found

    def _call(self, deltas: list[dict[str, Any]], final: bool) -> bool:
        offer = self._offer
        assert offer is not None
        closing = offer.syntax.closing
        inside, tag, rest = self._held.partition(closing) if closing else (self._held, "", "")
        if not tag and not final:
            return False
        self._held, self._state = rest, "content"
        calls = calls_in(inside)
        if calls is None:
            text = f"{offer.syntax.opening if not offer.syntax.bare else ''}{inside}{tag}"
            self._content.append(text)
            deltas.append({"content": text})
            return bool(rest)
        for name, arguments in calls:
            if offer.single and self._calls:
                break
            place = len(self._calls)
            call = {
                "id": f"call_{self._prefix}_{place}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            self._calls.append(call)
            self.called = True
            deltas.append({"tool_calls": [{"index": place, **call}]})
        return bool(rest)


def _open_length(text: str, tag: str) -> int:
    """Characters at the end of `text` that may be the beginning of `tag`."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def reader_for(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    body: ChatRequest,
    offer: Offer | None,
    answer_id: str,
    part: int,
) -> Reader:
    """The reader for one part of a chat answer. A raw completion is never divided."""
    thinks = not isinstance(body.messages, str) and (THINK in tokenizer.added or END_THINK in template.source)
    if not thinks and offer is None:
        return Reader()
    return DividingReader(
        thinks=thinks,
        offer=offer,
        prefix=f"{answer_id.partition('-')[2][:16]}{part}",
        tail_text=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )
