"""A small template language: `{a|b|}` picks one alternative, `$name` inserts a slot.

Every sentence of the corpus is written in it. A slot's value is inserted as it is, so user words
may contain braces. Alternatives nest.
"""

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import TypeVar

T = TypeVar("T")
# A parsed template is a sequence of parts: text, a slot's name, or a choice between sequences.
Part = tuple[str, "str | tuple[tuple[Part, ...], ...]"]


def words(text: str) -> list[str]:
    """Split `a|b {c|d}|e` at the bars outside braces (line breaks allowed) into stripped items."""
    items, depth = [""], 0
    for char in " ".join(text.split()):
        depth += (char == "{") - (char == "}")
        if char == "|" and not depth:
            items.append("")
        else:
            items[-1] += char
    return [item.strip() for item in items if item.strip()]


def expand(template: str, rng: Random, **slots: str) -> str:
    """Return one random expansion of `template`.

    Raises KeyError for a slot without a value and ValueError for unbalanced braces.
    """
    out: list[str] = []
    _write(_parse(template), rng, slots, out)
    return "".join(out)


def pick(templates: Sequence[str], rng: Random, **slots: str) -> str:
    """Expand one of `templates`, all equally likely."""
    return expand(templates[int(rng.random() * len(templates))], rng, **slots)


def choice(items: Sequence[T], rng: Random) -> T:
    """`rng.choice` without its overhead: generation speed is dominated by it."""
    return items[int(rng.random() * len(items))]


def _write(parts: tuple[Part, ...], rng: Random, slots: dict[str, str], out: list[str]) -> None:
    for kind, value in parts:
        if kind == "text":
            out.append(str(value))
        elif kind == "slot":
            out.append(slots[str(value)])
        else:
            _write(value[int(rng.random() * len(value))], rng, slots, out)  # type: ignore[arg-type]


@cache
def _parse(template: str) -> tuple[Part, ...]:
    alternatives, end = _alternatives(template, 0, top=True)
    if end != len(template):
        raise ValueError(f"unbalanced braces in template: {template!r}")
    return alternatives[0]


def _alternatives(text: str, at: int, top: bool) -> tuple[tuple[tuple[Part, ...], ...], int]:
    """Parse from `at` up to the closing brace (or the end); `|` separates only inside braces."""
    done: list[tuple[Part, ...]] = []
    parts: list[Part] = []
    plain = ""
    while at < len(text) and text[at] != "}":
        char = text[at]
        at += 1
        if char == "|" and not top:
            done.append((*parts, ("text", plain)) if plain else tuple(parts))
            parts, plain = [], ""
        elif char in "{$":
            if plain:
                parts.append(("text", plain))
                plain = ""
            if char == "{":
                inner, at = _alternatives(text, at, top=False)
                if text[at : at + 1] != "}":
                    raise ValueError(f"unbalanced braces in template: {text!r}")
                parts.append(("choice", inner))
                at += 1
            else:
                start = at
                while at < len(text) and ((text[at].isalpha() and text[at].isascii()) or text[at] == "_"):
                    at += 1
                parts.append(("slot", text[start:at]))
        else:
            plain += char
    done.append((*parts, ("text", plain)) if plain else tuple(parts))
    return tuple(done), at
