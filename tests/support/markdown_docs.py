"""Random Markdown that mixes every construct, well formed and not, for differential tests."""

from __future__ import annotations

import random

_TEXT = (
    "the cache **bytes** *moved* _per_ `token` ~~old~~ **open *mixed** `a`` | a|b \\* &amp; &#27; <b>x</b> "
    "[link](https://example.org/a_(b)) [bad](javascript:x) [red] [/] https://example.org. ![pic](http://e.org/p) "
    "中文段落，测试。 **粗体。**后 e\u0301\u0323 👩\u200d💻 🇩🇪 \u202eevil\u202c a*b*c snake_case_name *** ** ``` \\ \x1b[31m"
)
_WORDS = [*_TEXT.split(" "), "\t"]


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, count)))


def _paragraph(rng: random.Random) -> list[str]:
    ends = ["", "", "  ", "\\"]
    return [_words(rng, 60) + rng.choice(ends) for _ in range(rng.randint(1, 4))]


def _fence(rng: random.Random) -> list[str]:
    mark = rng.choice(["```", "~~~", "````"])
    lang = rng.choice(["", "python", "c", "js", "json", "html", "nonsense", "bash"])
    body = [
        'x = "a',
        "/* open",
        "still */ int y;",
        "\tindented",
        "",
        "```",
        '"""doc',
        "<!-- c",
        "# h",
        "{'k': [1]}",
    ]
    close = [mark] if rng.random() < 0.8 else []
    return [mark + lang, *(rng.choice(body) for _ in range(rng.randint(0, 12))), *close]


def _table(rng: random.Random) -> list[str]:
    columns = rng.choice([1, 2, 3, 6, 40])
    row = [" | ".join(_words(rng, 3) for _ in range(columns)) for _ in range(rng.randint(1, 14))]
    rule = "|".join(rng.choice(["---", ":-:", "--:"]) for _ in range(columns))
    return [f"| {row[0]} |", f"|{rule}|", *(f"| {line} |" for line in row[1:])]


def _items(rng: random.Random, depth: int = 0) -> list[str]:
    out: list[str] = []
    for i in range(rng.randint(1, 4)):
        marker = rng.choice(["- ", "* ", f"{i + 1}. ", "10) "])
        child = block(rng, depth + 1) if depth < 3 and rng.random() < 0.5 else []
        out.append(marker + _words(rng, 12))
        out += [" " * rng.choice([len(marker), 2, 4]) + line for line in child]
    return out


def block(rng: random.Random, depth: int = 0) -> list[str]:
    """Source lines of one block."""
    kind = rng.randrange(9)
    if kind == 0:
        return ["#" * rng.randint(1, 7) + " " + _words(rng, 8)]
    if kind == 1:
        return _fence(rng)
    if kind == 2:
        return _table(rng)
    if kind == 3:
        return _items(rng, depth)
    if kind == 4 and depth < 3:
        return [rng.choice(["> ", ">"]) + line for line in block(rng, depth + 1)]
    if kind == 5:
        return [_words(rng, 6), rng.choice(["===", "---", "-", "="])]
    if kind == 6:
        return [rng.choice(["---", "* * *", "    code", "-", "1.", ">", "|", "|-|", "\t- x"])]
    if kind == 7 and rng.random() < 0.2:
        return [_words(rng, 400)]
    return _paragraph(rng)


def document(seed: int) -> str:
    """A document of 1 to 10 blocks, sometimes without blank lines between them or with "\\r\\n"."""
    rng = random.Random(seed)
    lines: list[str] = []
    for _ in range(rng.randint(1, 10)):
        lines += block(rng)
        lines += [""] * rng.choice([0, 1, 1, 1, 2])
    end = "\r\n" if rng.random() < 0.1 else "\n"
    return end.join(lines)
