"""From messages to prompt ids: the model's own chat template, or its family's format, or plain "Role: text".

What people wrote can never become a special token: its occurrences in a message are replaced by marks (private
characters that no message contains) before the template sees it, and the tokenizer spells them out as plain text.
A message without such words renders and encodes exactly as the template alone would have it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .fixed_templates import FIXED_TEMPLATES, PLAIN, FixedTemplate, tool_source
from .hfconfig import INDEX_CAP, open_regular, read_json, shown
from .sandbox import RENDER_SECONDS, Sandbox, TemplateBroken
from .specials import SideFiles
from .tokenizer import Tokenizer
from .types import Message, ModelError, TemplateRefused, ToolCall, UsageError

TEMPLATE_CAP = 128 << 10  # the largest in use are 30 KiB; compiling is not bounded otherwise
PLAIN_NOTICE = "this model has no chat template: messages are written as plain text, one role after the other"
SYSTEM_NOTICE = "this model's chat template has no system message: it is put in front of the first message"
_PROBE = "lmtop-probe-7f3a"


class ChatTemplate:
    """One chat format bound to a tokenizer.

    source: its Jinja text; tool_source: the one for conversations with tools, None where the model knows none.
    stop_ids, stop_strings: what ends a turn in this format. notices: what the user should know, in plain words.
    plain: there was no template. Any thread may render; renders of one template take turns.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        *,
        name: str,
        variables: Mapping[str, str] | None = None,
        stop_strings: Sequence[str] = (),
        plain: bool = False,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.name = name
        self.plain = plain
        self.stop_strings = tuple(stop_strings)
        self.source = source
        self.tool_source = tool_source(source, tokenizer.added)  # None: the model knows no tools
        self._tokenizer = tokenizer
        self._sandbox = Sandbox(now)
        self._variables = {**tokenizer.named_tokens, **(variables or {})}
        if plain:
            self._variables.setdefault("bos_token", "")
        special = {text for text, index in tokenizer.added.items() if index in tokenizer.special_ids}
        special |= {text for text, index in tokenizer.added.items() if index in tokenizer.eos_ids}
        special |= {"<s>", "</s>"} & tokenizer.added.keys()
        written = {
            text for text in tokenizer.added if text.strip() and text in source + (self.tool_source or "")
        }
        # A model's own turns may hold words such as <think> that the template writes and the model produced.
        self._forbidden = {"assistant": _any_of(special), "": _any_of(special | written)}
        self._broken: TemplateBroken | None = None
        deadline = time.monotonic() + RENDER_SECONDS  # of all the trying together
        self.folds_system = self._probe_system(deadline)
        self.stop_ids = self._probe_end(deadline)
        self.notices: tuple[str, ...] = (PLAIN_NOTICE,) if plain else ()
        if self.folds_system:
            self.notices += (SYSTEM_NOTICE,)

    @classmethod
    def find(
        cls, directory: Path, family: str, tokenizer: Tokenizer, now: Callable[[], datetime] = datetime.now
    ) -> ChatTemplate | None:
        """The template in `directory` (chat_template.jinja, tokenizer_config.json, chat_template.json, in this
        order), else the family's fixed format, else None. Raises ModelError for an unreadable file."""
        source = _own_source(directory)
        if source is not None:
            return cls(source, tokenizer, name="own", now=now)
        side = SideFiles.read(directory)
        texts = {index: text for text, index in tokenizer.added.items()}
        variables = {
            key.removesuffix("_id"): texts[index]
            for key in ("user_token_id", "assistant_token_id")
            for index in side.ids(key)
            if index in texts
        }
        name = (
            f"{'/'.join(directory.absolute().parts[-4:])} {side.config.get('_name_or_path', '')}".casefold()
        )
        for fixed in FIXED_TEMPLATES:
            if _applies(fixed, family.casefold(), name, {*tokenizer.added, *variables}):
                strings = fixed.stop_strings
                return cls(
                    fixed.source,
                    tokenizer,
                    name=fixed.name,
                    variables=variables,
                    stop_strings=strings,
                    now=now,
                )
        return None

    def render_text(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Iterable[tuple[str, Any]] = (),
    ) -> str:
        """The prompt as text, for display. Raises TemplateRefused "chat template refused: ..."."""
        return self._sandboxed(_plain_turns(messages), add_generation_prompt, tools, options)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Iterable[tuple[str, Any]] = (),
    ) -> list[int]:
        """The prompt's ids. `tools`: function schemas in OpenAI's form; `options`: variables of the template's own,
        such as enable_thinking. Raises TemplateRefused "chat template refused: ..."."""
        turns, tools, marks = self._marked(messages, tools)
        return self._tokenizer.encode_marked(
            self._sandboxed(turns, add_generation_prompt, tools, options), marks
        )

    # --- rendering -------------------------------------------------------------------------------------------

    def _sandboxed(
        self,
        turns: list[dict[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        options: Iterable[tuple[str, Any]],
    ) -> str:
        if self.folds_system:
            turns = _folded(turns)
        return self._raw(turns, add_generation_prompt, tools=tools, options=options)

    def _raw(
        self,
        turns: list[dict[str, Any]],
        add_generation_prompt: bool,
        deadline: float | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Iterable[tuple[str, Any]] = (),
    ) -> str:
        if self._broken is not None:
            raise TemplateBroken(str(self._broken))
        variables: dict[str, Any] = {
            **dict(options),  # first: they replace nothing that is ours
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            "documents": None,
            **self._variables,
        }
        uses_tools = tools or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns)
        source = (self.tool_source if uses_tools else None) or self.source
        return self._sandbox.render(source, variables, deadline)

    def _marked(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]] | None, dict[str, str]]:
        """Turns and tools in which special tokens' texts are marks, and mark -> text."""
        turns = _plain_turns(messages)
        marks: dict[str, str] = {}
        written = list(_texts(tools))
        if not any(self._pattern("").search(text) for text in written) and not any(
            self._pattern(turn["role"]).search(text) for turn in turns for text in _texts(turn)
        ):
            return turns, tools, marks
        taken = set(self.source + (self.tool_source or "")).union(
            *written, *(text for turn in turns for text in _texts(turn))
        )
        private = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in taken)
        by_text: dict[str, str] = {}

        def mark(match: re.Match[str]) -> str:
            text = match[0]
            if text not in by_text:
                by_text[text] = next(private)
                marks[by_text[text]] = text
            return by_text[text]

        turns = [
            {**_replaced(turn, self._pattern(turn["role"]), mark), "role": turn["role"]} for turn in turns
        ]
        return turns, _replaced(tools, self._pattern(""), mark), marks

    def _pattern(self, role: str) -> re.Pattern[str]:
        return self._forbidden.get(role) or self._forbidden[""]

    # --- what the template does, found by trying ---------------------------------------------------------------

    def _probe(self, turns: list[dict[str, str]], add_generation_prompt: bool, deadline: float) -> str:
        """The rendered text, "" when refused. A template that is broken is not tried again, not for a request either:
        each try may cost a second."""
        try:
            return self._raw(turns, add_generation_prompt, deadline)
        except TemplateBroken as error:
            self._broken = error
        except TemplateRefused:
            pass
        return ""

    def _probe_system(self, deadline: float) -> bool:
        """Whether a system message is refused or dropped, while its text in the user's message is not."""
        turns = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "Hi"}]
        if _PROBE in self._probe(turns, True, deadline):
            return False
        return _PROBE in self._probe(_folded(turns), True, deadline)

    def _probe_end(self, deadline: float) -> tuple[int, ...]:
        """The added token, if any, that follows what the assistant said."""
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _PROBE}]
        _, _, tail = self._probe(turns, False, deadline).partition(_PROBE)
        tail = tail.lstrip()
        found = [text for text in self._tokenizer.added if text.strip() and tail.startswith(text)]
        # In a format without end marks the next turn's first token would be found: it ends a reply as well.
        return (self._tokenizer.added[max(found, key=len)],) if found else ()


def load_template(
    directory: Path, family: str, tokenizer: Tokenizer, now: Callable[[], datetime] = datetime.now
) -> ChatTemplate:
    """`ChatTemplate.find`, or the plain format with its notice."""
    return ChatTemplate.find(directory, family, tokenizer, now) or plain_template(tokenizer)


def plain_template(tokenizer: Tokenizer) -> ChatTemplate:
    """ "User: ...", "Assistant: ..." for a model without any template."""
    return ChatTemplate(PLAIN.source, tokenizer, name=PLAIN.name, stop_strings=PLAIN.stop_strings, plain=True)


def _plain_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates know them; keys beyond role and content only where there is something."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            turn["name"] = message.name
        if message.tool_call_id:
            turn["tool_call_id"] = message.tool_call_id
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            # templates write arguments as JSON of their own, so they get the object
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _object(call)},
                }
                for call in message.tool_calls
            ]
        turns.append(turn)
    return turns


def _object(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise UsageError(f"tool_calls: the arguments of {shown(call.name, 40)} are no JSON object")
    return arguments


def _texts(value: Any) -> Iterator[str]:
    """Every text within nested lists and objects, their keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _replaced(value: Any, pattern: re.Pattern[str], mark: Callable[[re.Match[str]], str]) -> Any:
    """`value` with every match of `pattern` in its texts replaced."""
    if isinstance(value, str):
        return pattern.sub(mark, value)
    if isinstance(value, Mapping):
        return {pattern.sub(mark, key): _replaced(item, pattern, mark) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(item, pattern, mark) for item in value]
    return value


def _folded(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A leading system message becomes the head of the user's first message."""
    if len(turns) < 2 or turns[0]["role"] != "system" or turns[1]["role"] != "user":
        return turns
    return [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `texts`, the longest first; never matches when there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def _applies(fixed: FixedTemplate, family: str, name: str, tokens: set[str]) -> bool:
    if fixed.family and fixed.family != family:
        return False
    return tokens.issuperset(fixed.tokens) and re.search(fixed.named, name) is not None


def _own_source(directory: Path) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        with open_regular(path) as file:
            data = file.read(TEMPLATE_CAP + 1)
        try:
            return _capped(data.decode(), path.name)
        except UnicodeDecodeError:
            raise ModelError(f"{path.name}: not valid UTF-8") from None
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = directory / name
        value = read_json(path, INDEX_CAP).get("chat_template") if path.exists() else None
        if isinstance(value, list):
            value = _choose(value, name)
        if isinstance(value, str):
            return _capped(value, name)
        if value is not None:
            raise ModelError(
                f"{name}: chat_template is {shown(value, 40)}, not a text or a list of templates"
            )
    return None


def _choose(templates: list[Any], name: str) -> str:
    """The "default" of a list of {name, template}, else the first."""
    named = [item for item in templates if isinstance(item, dict) and isinstance(item.get("template"), str)]
    if not named:
        raise ModelError(f"{name}: chat_template lists no template")
    chosen = next((item for item in named if item.get("name") == "default"), named[0])
    return str(chosen["template"])


def _capped(source: str, name: str) -> str:
    if len(source) > TEMPLATE_CAP:
        raise ModelError(f"{name}: a chat template of more than {TEMPLATE_CAP >> 10} KiB is not accepted")
    return source
