"""An answer of a pipeline while it grows, and a conversation of answers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from .messages import Config, Response
from .types import Accepted, Delta, Event, Failed, Finished, Message, Request

if TYPE_CHECKING:
    from .pipeline import Pipeline

REASONS = {"stop": "stop", "length": "length", "cancelled": "abort"}


@dataclass(slots=True)
class Ask:
    """One prompt on its way, and what is known of its answer."""

    request: Request
    answer: Response
    logits: str | None = None
    prompt_ids: tuple[int, ...] = ()
    texts: list[str] = field(default_factory=list)

    def piece(self, event: Event) -> Response | None:
        """What `event` adds, None when it is nothing that a reader sees; the answer so far is kept up to
        date."""
        answer = self.answer
        text, logprobs = "", None
        ids: list[int] = []
        match event:
            case Accepted():
                self.prompt_ids = event.prompt_ids
                answer.input_token_len = len(event.prompt_ids)
                return None
            case Delta():
                text, ids = event.text, list(event.token_ids)
                self.texts.append(text)
                answer.token_ids += ids
                answer.generate_token_len = len(answer.token_ids)
                if event.logprobs:
                    logprobs = [
                        {one.token_id: one.logprob for one in (item.chosen, *item.top)}
                        for item in event.logprobs
                    ]
                    answer.logprobs = (answer.logprobs or []) + logprobs
            case Finished():
                answer.finish_reason = REASONS[event.reason]
                answer.cached_tokens = event.usage.cached_tokens
                answer.generate_token_len = event.usage.completion_tokens
            case Failed():
                answer.finish_reason, answer.error_message = "error", event.message
            case _:
                return None
        return Response(
            text,
            answer.generate_token_len,
            answer.input_token_len,
            answer.session_id,
            answer.finish_reason,
            ids,
            logprobs,
            index=answer.index,
            cached_tokens=answer.cached_tokens,
            error_message=answer.error_message,
        )

    def whole(self) -> Response:
        self.answer.text = "".join(self.texts)
        return self.answer


class Session:
    """A conversation: `history` holds (prompt, answer) pairs, `response` the newest answer."""

    def __init__(self, pipe: Pipeline, number: int) -> None:
        self.id = number
        self.history: list[tuple[str, str]] = []
        self.response: Response | None = None
        self._pipe = pipe

    def __call__(self, prompt: str, gen_config: Config | None = None) -> Session:
        """Say `prompt`; the answer is in `response`. A failure raises and leaves the history as it was."""
        for _ in self.stream(prompt, gen_config):
            pass
        return self

    def stream(self, prompt: str, gen_config: Config | None = None) -> Iterator[Response]:
        """As a call, but yields the answer in pieces. One that is cut off is not added to the history."""
        turns = [turn for pair in self.history for turn in zip(("user", "assistant"), pair, strict=True)]
        conversation = [Message(role, text) for role, text in (*turns, ("user", prompt))]  # type: ignore[arg-type]
        ask = self._pipe._ask(0, conversation, gen_config, session_id=self.id)
        for _, piece in self._pipe._pieces([ask], alone=True):
            yield piece
        self.response = self._pipe._finished(ask)
        if self.response.finish_reason != "abort":
            self.history.append((prompt, self.response.text))

    def close(self) -> None:
        """Forget the conversation. Its cached tokens make room by themselves when others need it."""
        self.history.clear()
        self.response = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "\n".join(f"USER:\n{user}\nASSISTANT:\n{assistant}\n" for user, assistant in self.history)
