"""The streaming Markdown renderer: final lines, hostile text, flat cost."""

from __future__ import annotations

import random
import re
import statistics
import time
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from support.markdown_docs import document

from lmtop.tui.render.glyphs import ASCII
from lmtop.tui.render.lines import STYLES, Line, fold, row_width, wrap
from lmtop.tui.render.markdown import MarkdownStream, render_markdown

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


def stream(text: str, cuts: list[int], width: int = 60) -> list[Line]:
    """Feed `text` in fragments, checking after each that committed lines stay and the tail can be drawn."""
    markdown = MarkdownStream(width)
    seen: list[Line] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        markdown.append(text[start:end])
        markdown.tail()
        assert list(markdown.committed[: len(seen)]) == seen
        seen = list(markdown.committed)
    return markdown.finish()


def plain(text: str, width: int = 60) -> list[str]:
    return [line.plain for line in render_markdown(text, width)]


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_random_cuts_end_in_the_one_shot_render(first: int) -> None:
    for seed in range(first, first + 20):
        text, rng = document(seed), random.Random(seed)
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randint(1, 40)))
        width = rng.choice([20, 60, 92])
        assert stream(text, cuts, width) == render_markdown(text, width), seed


EVERY_BYTE = {
    "fence": "para\n```python\ndef f():\n    return '''x\ny'''\n",
    "nested list": "- a\n  - b\n    1. c\n\n      d\n- [x] e\n",
    "table": "| a | b |\n|---|:-:|\n| 1 | **x** |\n| `c` | d |\n\nend",
    "setext": "Title\n=====\nOther\n---\ntext\n-\n",
    "cjk": "中文**段落。**测试，`代码`。\n> 引用\n",
    "zwj": "👩\u200d💻 and 🇩🇪 e\u0301\u0323 ❤\ufe0f **👍🏽**\r\n\r\nend",
}


@pytest.mark.parametrize("text", EVERY_BYTE.values(), ids=EVERY_BYTE.keys())
def test_cut_at_every_character(text: str) -> None:
    whole = render_markdown(text, 40)
    for cut in range(len(text) + 1):
        assert stream(text, [cut], 40) == whole
    assert stream(text, list(range(1, len(text))), 40) == whole


@pytest.mark.parametrize("seed", range(0, 200, 7))
def test_every_row_fits_and_holds_no_control_character(seed: int) -> None:
    for width in (12, 33, 92):
        for line in render_markdown(document(seed), width):
            assert cell_len(line.plain) <= width
            assert not CONTROL.search(line.plain)
            assert {style for _, style in line.segments} <= set(STYLES)


def test_blocks_look_as_designed() -> None:
    assert plain("1. one two three four five\n   - six\n\n   seven\n2. eight", 20) == [
        " 1. one two three",
        "    four five",
        "     ◦ six",
        "",
        "    seven",
        " 2. eight",
    ]
    assert plain("```c\nint x;\n```\n> a\nb\n\n---", 16) == [
        "┌ c ───────────┐",
        "│ int x;       │",
        "└──────────────┘",
        "│ a b",
        "",
        "────────────────",
    ]
    assert plain("a | b\n--|--:\n1 | 22\n中文 | 3") == [
        " a    │  b",
        "──────┼────",
        " 1    │ 22",
        " 中文 │  3",
    ]
    assert plain("one  \ntwo\\\nthree\nfour") == ["one", "two", "three four"]


def test_inline_styles() -> None:
    (line,) = render_markdown(
        "a **b** *c* `d*` ~~e~~ ***f*** [g](https://h.i) \\*j snake_case **粗。**体", 90
    )
    assert {text.strip(): style for text, style in line.segments if style != "text"} == {
        "b": "strong",
        "c": "em",
        "d*": "code",
        "e": "strike",
        "f": "strong.em",
        "g": "link",
        "(https://h.i)": "link.url",
        "粗。": "strong",
    }
    assert line.plain == "a b c d* e f g (https://h.i) *j snake_case 粗。体"


@pytest.mark.parametrize("url", ["javascript:alert(1)", "file:///etc/passwd", "ssh://h", "//h/x", "x"])
def test_only_http_links_are_links(url: str) -> None:
    (line,) = render_markdown(f"[a]({url})", 60)
    assert line.segments == ((f"[a]({url})", "text"),)


def test_code_is_coloured_across_lines() -> None:
    lines = render_markdown(
        '```python\nx = """a\nimport b"""\nimport c\n```\n```c\n/* a\nint */ int x;\n```', 40
    )
    styles = {text.strip(): style for line in lines for text, style in line.segments}
    assert styles['import b"""'] == "code.string"
    assert styles["import"] == "code.keyword"
    assert styles["int */"] == "code.comment"
    assert styles["int"] == "code.keyword"


def test_code_blocks_keep_their_text() -> None:
    markdown = MarkdownStream(20)
    body = "\tall:\n" + "x" * 2500 + "\n\n  y  "
    markdown.append(f"- a\n\n```make\n{body}\n```".replace("\n", "\n  ") + "\n```\nz")
    lines = markdown.finish()
    assert markdown.code_blocks == [body, "z"]
    assert {line.code for line in lines} == {-1, 0, 1}


def test_hostile_text_is_shown_and_acts_on_nothing() -> None:
    text = "\x1b]52;c;aGk=\x07 [red]x[/] [@click=app.quit]y\x9b2J \u202eabc\n```\x1bz\n\x1b[2J\rq\n```\n| \x07 | b |\n|-|-|\n"
    shown = "\n".join(plain(text))
    assert not CONTROL.search(shown.replace("\n", ""))
    for part in (
        "␛]52;c;aGk=␇",
        "[red]x[/]",
        "[@click=app.quit]y<U+009B>2J",
        "<U+202E>abc",
        "␛[2J␍q",
        "␛z",
        "␇",
    ):
        assert part in shown


def test_ascii_chrome() -> None:
    text = "# t\n- a\n  - b\n> q\n\n---\n```c\nint x;\n```\na | b\n-|-\n1 | 2\n"
    assert all(line.plain.isascii() for line in render_markdown(text, 40, ASCII))


def test_unfinished_emphasis_is_shown_closed_and_markers_wait() -> None:
    def tail(text: str) -> list[tuple[str, str]]:
        markdown = MarkdownStream(40)
        markdown.append(text)
        return [segment for line in markdown.tail() for segment in line.segments]

    assert tail("a **bo") == [("a ", "text"), ("bo", "strong")]
    assert tail("a `co") == [("a ", "text"), ("co", "code")]
    assert tail("Items:\n-") == [("Items:", "text")]
    assert not any("└" in text for text, _ in tail("```c\nint"))


BOMBS: dict[str, Callable[[], str]] = {
    "quotes in a line": lambda: ">" * 10_000 + " deep",
    "quotes": lambda: "\n".join(">" * n for n in range(1, 400)),
    "lists": lambda: "\n".join("  " * n + "- x" for n in range(300)),
    "columns": lambda: "|a" * 2000 + "|\n" + "|-" * 2000 + "|\n" + "|b" * 2000 + "|\n",
    "long line": lambda: "word " * 200_000,
    "long word": lambda: "x" * 1_000_000,
    "long wide word": lambda: "中" * 100_000,
    "unclosed fence": lambda: "```python\n" + "x = [1, 'a']\n" * 2000,
    "long code line": lambda: "```python\n" + "(" * 1_000_000,
    "stars": lambda: "*a " * 20_000,
    "pairs": lambda: "**a*" * 20_000,
    "ticks": lambda: " ".join("`" * (n % 200) for n in range(2000)),
    "brackets": lambda: "[" * 50_000 + "](" * 20_000,
    "combining": lambda: ("e" + "\u0301" * 500 + " ") * 100,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_cost_little_a_fragment(bomb: Callable[[], str]) -> None:
    text = bomb()
    markdown = MarkdownStream(80)
    worst = 0.0
    started = time.process_time()  # not the clock on the wall: other programs use the machine too
    for start in range(0, len(text), 4000):
        begin = time.process_time()
        markdown.append(text[start : start + 4000])
        markdown.tail()
        worst = max(worst, time.process_time() - begin)
    markdown.finish()
    assert worst < 0.4
    assert time.process_time() - started < 10 + len(text) / 100_000


def test_nested_quotes_keep_the_text() -> None:
    assert plain(">" * 10_000 + " deep")[-1].endswith("> deep")
    assert plain(("> " * 20) + "deep") == ["│ " * 12 + "> " * 8 + "deep"]


STREAMS = {
    "list": "".join(f"{n}. item {n} with **some** words in `code` here\n" for n in range(80)),
    "fence": "```python\n" + "".join(f"def f{n}(x: int) -> str:\n" for n in range(500)) + "```\n",
    "table": "| a | b | c |\n|---|---|---|\n"
    + "".join(f"| {n} | some words | **x** |\n" for n in range(200)),
    "paragraph": "Decode is bound by **bytes** moved per token, in `two` parts. " * 120,
}


@pytest.mark.parametrize("text", STREAMS.values(), ids=STREAMS.keys())
def test_appends_stay_cheap(text: str) -> None:
    markdown = MarkdownStream(92)
    times = []
    for start in range(0, len(text), 5):
        begin = time.process_time()
        markdown.append(text[start : start + 5])
        markdown.tail()
        times.append(time.process_time() - begin)
    tenth = len(times) // 10
    assert statistics.median(times) < 0.005
    assert sorted(times)[-3] < 0.030  # two may fall on a busy machine's pauses
    assert statistics.median(times[-tenth:]) < 4 * statistics.median(times[tenth : 2 * tenth]) + 0.0005


@pytest.mark.parametrize(
    "text", ["a" * 50, "中文，测试。" * 9, "one two 中文 three、four " * 5, "e\u0301" * 40]
)
def test_wrapping_goes_on_from_its_last_row(text: str) -> None:
    whole = ["".join(t for t, _ in row).rstrip() for row in wrap([(text, "text")], 11)]
    for cut in range(len(text)):
        *rows, last = wrap([(text[:cut], "text")], 11)
        rows += wrap([*last, (text[cut:], "text")], 11)
        assert ["".join(t for t, _ in row).rstrip() for row in rows] == whole
        assert all(row_width(row) <= 12 for row in rows)


def test_fold_cuts_between_graphemes() -> None:
    rows = fold([("a👩\u200d💻b中e\u0301c", "text")], 3)
    assert ["".join(t for t, _ in row) for row in rows] == ["a👩\u200d💻", "b中", "e\u0301c"]
