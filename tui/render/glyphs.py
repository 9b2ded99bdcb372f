"""Every character of the chrome, in two tables: Unicode (all of width 1) and ASCII."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One table. `eighths` and `levels` hold nine steps, empty to full, for a cell filled from the left and
    from the bottom. Each entry is one cell wide."""

    ascii: bool
    # frames
    horizontal: str
    vertical: str
    top_left: str
    top_right: str
    bottom_left: str
    bottom_right: str
    tee_left: str
    tee_right: str
    tee_down: str
    tee_up: str
    cross: str
    # bars and maps
    full: str
    dark: str
    medium: str
    light: str
    hatch: str
    cap_left: str
    cap_right: str
    eighths: str
    levels: str
    free: str
    # states
    busy: str
    queued: str
    draft: str
    done: str
    failed: str
    stopped: str
    online: str
    offline: str
    warning: str
    # pointers and punctuation
    pointer: str
    prompt: str
    cursor: str
    up: str
    down: str
    left: str
    right: str
    enter: str
    ellipsis: str
    dot: str
    dash: str
    at_most: str

    def plain(self, text: str) -> str:
        """`text` as this table's terminal can show it: unchanged, or with every character beyond ASCII
        replaced, by its twin in the ASCII table where it is chrome, else by one "?" per cell."""
        if not self.ascii or text.isascii():
            return text
        return "".join(char if char.isascii() else _TWINS.get(char, "?" * cell_len(char)) for char in text)


UNICODE = Glyphs(
    ascii=False,
    horizontal="─",
    vertical="│",
    top_left="┌",
    top_right="┐",
    bottom_left="└",
    bottom_right="┘",
    tee_left="├",
    tee_right="┤",
    tee_down="┬",
    tee_up="┴",
    cross="┼",
    full="█",
    dark="▓",
    medium="▒",
    light="░",
    hatch="╱",
    cap_left="▕",
    cap_right="▏",
    eighths=" ▏▎▍▌▋▊▉█",
    levels=" ▁▂▃▄▅▆▇█",
    free="·",
    busy="◐",
    queued="◌",
    draft="✎",
    done="✓",
    failed="✗",
    stopped="■",
    online="●",
    offline="○",
    warning="!",
    pointer="▸",
    prompt="❯",
    cursor="▌",
    up="↑",
    down="↓",
    left="‹",
    right="›",
    enter="⏎",
    ellipsis="…",
    dot="·",
    dash="—",
    at_most="≤",
)

ASCII = Glyphs(
    ascii=True,
    horizontal="-",
    vertical="|",
    top_left="+",
    top_right="+",
    bottom_left="+",
    bottom_right="+",
    tee_left="+",
    tee_right="+",
    tee_down="+",
    tee_up="+",
    cross="+",
    full="#",
    dark="=",
    medium="-",
    light=".",
    hatch="+",
    cap_left="|",
    cap_right="|",
    eighths="    --==#",
    levels=" _.:-=+*#",
    free=".",
    busy="*",
    queued="~",
    draft="%",
    done="v",
    failed="x",
    stopped="!",
    online="o",
    offline="-",
    warning="!",
    pointer=">",
    prompt=">",
    cursor="|",
    up="^",
    down="v",
    left="<",
    right=">",
    enter="<",
    ellipsis="~",
    dot=".",
    dash="-",
    at_most="<",
)


def _twins() -> dict[str, str]:
    twins: dict[str, str] = {}
    for name in Glyphs.__slots__:
        if name != "ascii":
            twins.update(zip(getattr(UNICODE, name), getattr(ASCII, name), strict=True))
    return twins | {"°": "o", "×": "x", "→": ">", "←": "<", "±": "~", "≥": ">", "\u2018": "'", "\u2019": "'"}


_TWINS = _twins()


def glyphs(ascii: bool) -> Glyphs:
    """The table for `--ascii` or not."""
    return ASCII if ascii else UNICODE
