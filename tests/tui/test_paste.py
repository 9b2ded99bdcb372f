from __future__ import annotations

import random

from textual import events

from lmtop.tui.paste import END, START, PasteParser


def parsed(*chunks: str) -> list[tuple[str, str]]:
    """(kind, text) of the messages for input that arrives in these pieces; neighbouring keys are joined."""
    parser, out = PasteParser(), []
    for chunk in chunks:
        for event in parser.feed(chunk):
            kind, text = ("paste", event.text) if isinstance(event, events.Paste) else ("key", event.key)
            if kind == "key" and out and out[-1][0] == "key":
                out[-1] = ("key", f"{out[-1][1]} {text}")
            else:
                out.append((kind, text))
    return out


def test_escape_sequences_and_line_ends_in_a_paste_are_text() -> None:
    text = "one\x1b[2J\rtwo\x1b]0;x\x07\x11three\x1b\x1b[A"
    assert parsed(f"a{START}{text}{END}b") == [
        ("key", "a"),
        ("paste", text.replace("\x1b", "␛")),
        ("key", "b"),
    ]


def test_cuts_anywhere_change_nothing() -> None:
    chance = random.Random(8)
    data = f"x\x1b[A{START}p\x1b[20\x1b[201q\r\x1b{END}y\x1b[B{START}{START}{END}z"
    whole = parsed(data)
    assert [kind for kind, _ in whole] == ["key", "paste", "key", "paste", "key"]
    assert whole[1][1] == "p␛[20␛[201q\r␛" and whole[3][1] == "␛[200~"
    for _ in range(300):
        cuts = sorted(chance.sample(range(1, len(data)), 4))
        chunks = [data[left:right] for left, right in zip([0, *cuts], [*cuts, None], strict=True)]
        assert parsed(*chunks) == whole
