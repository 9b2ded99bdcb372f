"""What people hand to a pipeline as a prompt, and the request that follows from it. Imports no torch."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

from .messages import ChatTemplateConfig
from .pipeline_settings import stops, warn_once
from .template import ChatTemplate
from .text import one_line
from .tokenizer import Tokenizer
from .types import Message, Request, Role, SamplingParams, UsageError

CHAT_ONLY = (None, "chat", "completion")


class Prompts:
    """Turns prompts into requests for one model, in its own chat format or in that of `wanted`."""

    def __init__(self, tokenizer: Tokenizer, wanted: ChatTemplateConfig | None) -> None:
        self._wanted = wanted or ChatTemplateConfig()
        if not isinstance(self._wanted, ChatTemplateConfig):
            raise UsageError(f"chat_template_config = {wanted!r}: must be ChatTemplateConfig")
        if self._wanted.capability not in CHAT_ONLY:
            raise UsageError(
                f"ChatTemplateConfig.capability = {self._wanted.capability!r}: must be chat or completion"
            )
        self._texts, self._ids = stops("ChatTemplateConfig.stop_words", self._wanted.stop_words, tokenizer)
        self._template: ChatTemplate | None = None
        if self._wanted.pieces and not self._wanted.raw:
            source = template_source(self._wanted, bool(tokenizer.prefix))
            self._template = ChatTemplate(source, tokenizer, name=self._wanted.model_name or "custom")
            self._ids += tuple(self._template.stop_ids)
        elif self._wanted.model_name and not self._wanted.raw:
            warn_once(
                f"ChatTemplateConfig.model_name = {self._wanted.model_name!r}: the model's own chat format is used"
            )

    def request(
        self, id: str, prompt: Any, sampling: SamplingParams, session: str, chat: bool = True
    ) -> Request:
        """One request. `chat` False continues a text as it is. UsageError names what is no prompt."""
        sampling = self._with_stops(sampling)
        if not chat or self._wanted.raw:
            if not isinstance(prompt, str):
                raise UsageError("a text to continue (do_preprocess=False, or a base model) must be a str")
            return Request(id, prompt=prompt, sampling=sampling, session=session)
        turns = messages(prompt)
        meta = self._wanted.meta_instruction
        if meta and turns[0].role != "system":
            turns = (Message("system", meta), *turns)
        if self._template is None:
            return Request(id, messages=turns, sampling=sampling, session=session)
        return Request(id, prompt_ids=tuple(self._template.render(turns)), sampling=sampling, session=session)

    def _with_stops(self, sampling: SamplingParams) -> SamplingParams:
        if not (self._texts or self._ids):
            return sampling
        return replace(
            sampling,
            stop=tuple(dict.fromkeys((*sampling.stop, *self._texts))),
            stop_token_ids=tuple(dict.fromkeys((*sampling.stop_token_ids, *self._ids))),
        )


def is_one(prompts: Any) -> bool:
    """Whether `prompts` is a single one: a text or a conversation, not a list of those."""
    return isinstance(prompts, (str, Mapping, tuple)) or (
        isinstance(prompts, list)
        and bool(prompts)
        and all(isinstance(item, (Mapping, Message)) for item in prompts)
    )


def messages(prompt: Any) -> tuple[Message, ...]:
    """A conversation from a text, one message or a list of messages as in OpenAI's API."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if isinstance(prompt, (Mapping, Message)):
        prompt = [prompt]
    if isinstance(prompt, tuple):
        raise UsageError("a prompt of text and image: images are not supported, only text")
    if not isinstance(prompt, list) or not prompt:
        raise UsageError(f"prompt = {one_line(repr(prompt), 60)}: must be a text or a list of messages")
    return tuple(item if isinstance(item, Message) else _message(item) for item in prompt)


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise UsageError(f"message {one_line(repr(item), 60)}: must be an object with role and content")
    role, content = item.get("role"), item.get("content")
    if role not in get_args(Role):
        raise UsageError(
            f"message: role = {one_line(repr(role), 40)}: must be one of {', '.join(get_args(Role))}"
        )
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if not isinstance(content, str):
        raise UsageError(f"message: content = {one_line(repr(content), 40)}: must be text")
    return Message(cast(Role, role), content)


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise UsageError(f"message: content of type {one_line(repr(kind), 40)}: only text is supported")
    return str(part["text"])


def token_ids(given: Any) -> list[int]:
    """Token ids as plain integers, from a list, an array or a tensor."""
    try:
        return [operator.index(token) for token in _plain(given)]
    except TypeError:
        raise UsageError(f"input_ids = {one_line(repr(given), 60)}: must be a list of integers") from None


def many_token_ids(given: Any) -> tuple[list[list[int]], bool]:
    """Lists of token ids from one list or several, and whether it was one."""
    given = _plain(given)
    if isinstance(given, Sequence) and given and isinstance(_plain(given[0]), Sequence):
        return [token_ids(item) for item in given], False
    return [token_ids(given)], True


def _plain(given: Any) -> Any:
    """Arrays and tensors as lists."""
    return given.tolist() if hasattr(given, "tolist") else list(given) if _iterates(given) else given


def _iterates(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))


def template_source(wanted: ChatTemplateConfig, bos: bool) -> str:
    """The Jinja source of a format made of pieces, as literals: then the template's special tokens are seen
    to be its own, and nobody's message can hold one."""
    piece = {name: "{{ %r }}" % text for name, text in wanted.pieces.items() if text}  # noqa: UP031 - braces

    def p(name: str) -> str:
        return piece.get(name, "")

    after_reply = "loop.index0 and messages[loop.index0 - 1].role == 'assistant'"
    return (
        ("{{ bos_token }}" if bos else "")
        + "{% for message in messages %}{% if message.role == 'system' %}"
        + p("system") + "{{ message.content }}" + p("eosys")
        + "{% elif message.role == 'user' %}{% if " + after_reply + " %}" + p("separator") + "{% endif %}"
        + p("user") + "{{ message.content }}" + p("eoh")
        + "{% else %}" + p("assistant") + "{{ message.content }}" + p("eoa") + "{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}" + p("assistant") + "{% endif %}"
    )  # fmt: skip
