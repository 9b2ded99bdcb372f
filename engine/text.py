"""The one function between every source of text and every screen, title, log line and clipboard."""

from __future__ import annotations


def _marks() -> dict[int, str]:
    table = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
    table[0x7F] = "\u2421"
    hidden = [
        *range(0x80, 0xA0),  # C1: 0x9B is CSI to a terminal
        0x00AD,  # soft hyphen: terminals disagree on its width
        0x061C,
        0x180E,
        0x200B,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),  # line and paragraph separators, bidi embeddings and overrides
        *range(0x2060, 0x2070),  # word joiner, bidi isolates, deprecated format characters
        0xFEFF,
        *range(0xFFF9, 0xFFFC),
        0xFFFE,
        0xFFFF,
        *range(0xE0000, 0xE0080),  # tag characters: text that no screen shows
    ]
    table |= {code: f"<U+{code:04X}>" for code in hidden}
    table |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # lone surrogates cannot be encoded
    return table


_MARKS = _marks()


def visible(text: str) -> str:
    """`text` with every code point that could act on a terminal, or hide, replaced by a visible mark.

    Newline and tab stay. It looks at one code point at a time, so the result does not depend on how a stream
    was split, and a second call changes nothing. Markup is not its business: show the result as plain text.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_MARKS)


def one_line(text: str, limit: int = 200) -> str:
    """`visible(text)` on one line, cut to `limit` characters: for titles, lists, log lines and error text."""
    line = " ".join(visible(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "\u2026"
