"""Syntax colours for code that arrives line by line, and the box around a fenced block.

Pygments lexes whole texts. To keep the cost of a line independent of what came before, the state stack of a
`RegexLexer` is carried from line to line here; other lexers see each line on its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Self

from pygments.lexer import ExtendedRegexLexer, Lexer, RegexLexer
from pygments.lexers import get_all_lexers, get_lexer_by_name
from pygments.token import (
    Comment,
    Error,
    Generic,
    Keyword,
    Name,
    Number,
    Operator,
    Punctuation,
    String,
    Token,
    _TokenType,
)

from .glyphs import Glyphs
from .lines import Row, clip, compact, fold, row_width

_STYLES: tuple[tuple[_TokenType, str], ...] = (
    (Comment, "code.comment"),
    (Keyword, "code.keyword"),
    (Number, "code.number"),
    (String, "code.string"),
    (Operator.Word, "code.keyword"),
    (Operator, "code.operator"),
    (Punctuation, "code.operator"),
    (Name.Builtin, "code.name"),
    (Name.Class, "code.name"),
    (Name.Decorator, "code.name"),
    (Name.Function, "code.name"),
    (Name.Tag, "code.keyword"),
    (Name.Attribute, "code.name"),
    (Generic.Inserted, "code.string"),
    (Generic.Deleted, "code.keyword"),
    (Generic.Heading, "code.name"),
    (Generic.Subheading, "code.name"),
)
_STACK_LIMIT = 64  # nested states kept; deeper code is hostile or broken


@lru_cache(maxsize=512)
def token_style(kind: _TokenType) -> str:
    """The style name of a Pygments token type."""
    return next((style for parent, style in _STYLES if parent in kind.split()), "code.text")


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    """Language name -> Pygments alias, without plugins, whose discovery reads every installed package."""
    return {
        alias: aliases[0]
        for _, aliases, _, _ in get_all_lexers(plugins=False)
        if aliases
        for alias in aliases
    }


@lru_cache(maxsize=64)
def find_lexer(language: str) -> Lexer | None:
    """The lexer of a fence's language, or None when there is none. The first use of a language imports it."""
    alias = _aliases().get(language.lower())
    return get_lexer_by_name(alias) if alias else None


class Highlighter:
    """Colours of one code block; `line` must see its lines in order."""

    def __init__(self, language: str) -> None:
        self._lexer: Any = find_lexer(language)
        self._stateful = isinstance(self._lexer, RegexLexer) and not isinstance(
            self._lexer, ExtendedRegexLexer
        )
        self._stack: tuple[str, ...] = ("root",)
        self._comment = False  # inside /* ... */, which many lexers match only as a whole

    def copy(self) -> Self:
        return copy.copy(self)

    def line(self, text: str) -> Row:
        """Segments of one line (without its newline)."""
        if self._lexer is None or not text:
            return [(text, "code.text")] if text else []
        try:
            tokens = self._lex(text) if self._stateful else self._lexer.get_tokens_unprocessed(text + "\n")
            row = [(value.rstrip("\n"), token_style(kind)) for _, kind, value in tokens]
        except Exception:  # noqa: BLE001 - a third-party lexer that fails must cost colours only
            self._lexer = None
            row = [(text, "code.text")]
        return compact(row)

    def _lex(self, text: str) -> Iterator[tuple[int, _TokenType, str]]:
        source, pos = text + "\n", 0
        stack = list(self._stack)
        while pos < len(source):
            if self._comment or (source.startswith("/*", pos) and self._opens_comment(source, pos)):
                end = source.find("*/", pos if self._comment else pos + 2)
                self._comment = end < 0
                end = len(source) if end < 0 else end + 2
                yield pos, Comment, source[pos:end]
                pos = end
                continue
            found = self._rule(stack[-1], source, pos)
            if found is None:
                if source[pos] == "\n":
                    stack = ["root"]  # as Pygments does where no rule takes the end of a line
                yield pos, Error if source[pos] != "\n" else Token, source[pos]
                pos += 1
                continue
            match, action, new_state = found
            if action is not None:
                if isinstance(action, _TokenType):
                    yield pos, action, match.group()
                else:
                    yield from action(self._lexer, match)
            pos = match.end()
            _step(stack, new_state)
        self._stack = tuple(stack[:_STACK_LIMIT])

    def _rule(self, state: str, source: str, pos: int) -> tuple[Any, Any, object] | None:
        """The first rule of `state` that matches at `pos`: its match, action and new state."""
        for rule, action, new_state in self._lexer._tokens[state]:
            if match := rule(source, pos):
                return match, action, new_state
        return None

    def _opens_comment(self, source: str, pos: int) -> bool:
        """Whether the lexer's language has C comments, and this one does not end in its line."""
        return source.find("*/", pos + 2) < 0 and not _C_LIKE.isdisjoint(self._lexer.aliases)


_C_LIKE = frozenset(
    (
        "c",
        "cpp",
        "cuda",
        "csharp",
        "css",
        "dart",
        "go",
        "groovy",
        "java",
        "javascript",
        "kotlin",
        "php",
        "rust",
    )
).union(("scala", "scss", "sql", "swift", "typescript"))


def _step(stack: list[str], new_state: object) -> None:
    """Apply a rule's transition to the state stack (names, "#pop", "#push", a negative count, or a tuple)."""
    if isinstance(new_state, int):
        del stack[max(1, len(stack) + new_state) :]
        return
    for state in new_state if isinstance(new_state, tuple) else (new_state,):
        if state == "#pop":
            del stack[max(1, len(stack) - 1) :]
        elif state == "#push":
            stack.append(stack[-1])
        elif isinstance(state, str):
            stack.append(state)


class CodeBox:
    """A fenced block: its frame, its coloured rows, its text.

    A row is cut at the frame, never lost. A line that comes in pieces (it is longer than the renderer takes
    at once) is not coloured.
    """

    def __init__(self, width: int, language: str, glyphs: Glyphs) -> None:
        self.width = max(width, 6)
        self.glyphs = glyphs
        self.language = language
        self.text: list[str] = []
        self._highlighter = Highlighter(language)
        self._carry = ""  # the unfinished last row of a line in pieces

    def copy(self) -> Self:
        other = copy.copy(self)
        other.text = self.text[:0]
        other._highlighter = self._highlighter.copy()
        return other

    def top(self) -> list[Row]:
        g = self.glyphs
        if not self.language:
            return [[(g.top_left + g.horizontal * (self.width - 2) + g.top_right, "code.box")]]
        label = clip(self.language, self.width - 6, g.ellipsis)
        fill = self.width - 5 - row_width([(label, "")])
        return [
            [
                (f"{g.top_left} ", "code.box"),
                (label, "code.label"),
                (f" {g.horizontal * (fill + 1)}{g.top_right}", "code.box"),
            ]
        ]

    def bottom(self) -> list[Row]:
        g = self.glyphs
        return [[(g.bottom_left + g.horizontal * (self.width - 2) + g.bottom_right, "code.box")]]

    def line(self, text: str, more: bool = False, joined: bool = False) -> list[Row]:
        """Rows of a line, or of a piece of one: `joined` continues the last piece, `more` will be continued."""
        self.text.append(text if more else text + "\n")
        shown = text.expandtabs(4)
        if not more and not joined:
            return [self._framed(row) for row in fold(self._highlighter.line(shown), self.width - 4)]
        *rows, rest = fold([(self._carry + shown, "code.text")], self.width - 4)
        self._carry = "".join(part for part, _ in rest) if more else ""
        return [self._framed(row) for row in (rows if more else [*rows, rest])]

    def flush(self) -> list[Row]:
        """The unfinished row of a line in pieces, when the text ends inside it."""
        carry, self._carry = self._carry, ""
        return [self._framed([(carry, "code.text")])] if carry else []

    def _framed(self, row: Row) -> Row:
        g = self.glyphs
        pad = " " * (self.width - 4 - row_width(row))
        return [(f"{g.vertical} ", "code.box"), *row, (pad, "code.text"), (f" {g.vertical}", "code.box")]
