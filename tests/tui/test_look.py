"""What the program looks like: themes, few or no colours, ASCII, notices, the empty chat, the palette."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import Terminal
from support.dialogs import program, running, same_everywhere, screen_text, styles_of
from support.fake_backend import FakeBackend
from support.machine import engine_snapshot, pool
from support.model_list import survey_of
from support.waiting import wait_until
from textual.app import App
from textual.color import Color
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.style import Style

from lmtop import themes
from lmtop.tui.render import format, gauge_rows, kvmap
from lmtop.tui.render.glyphs import _TWINS, UNICODE
from lmtop.tui.render.lines import STYLES
from lmtop.tui.render.styles import GAUGE_STYLES
from lmtop.tui.screens import load

# lines and areas, which nobody has to read
DRAWN = {"frame", "rule", "table.rule", "code.box", "quote.bar", "kv.free"}
BUILT_IN = ("dark", "light", "contrast")
MINE = 'dark = true\n[colors]\nprimary = "teal"\nforeground = "#abcdef"\nbackground = "#000000"\n'


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder of themes."""
    monkeypatch.setattr(themes, "folder", lambda: tmp_path)
    monkeypatch.setattr(load, "survey", lambda config, reclaim: survey_of())
    with same_everywhere():
        yield tmp_path


# --- contrast ------------------------------------------------------------------------------------------------------


def luminance(color: Color) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [value / 255 for value in color.rgb]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast(Color.parse("#000"), Color.parse("#fff")) == pytest.approx(21)
    assert contrast(Color.parse("#777"), Color.parse("#fff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("ground", ["background", "surface"])
def test_every_text_can_be_read_on_every_ground(name: str, ground: str) -> None:
    """WCAG AA: 4.5:1."""
    app: App[None] = App()
    theme = themes.load(name)
    app.register_theme(theme)
    app.theme = theme.name
    variables = app.get_css_variables()
    behind = Color.parse(variables[ground])
    low = {}
    for table in (GAUGE_STYLES, STYLES):
        for style, spec in table.items():
            if style in DRAWN or style.startswith("bar."):
                continue
            color = Style.parse(spec, variables).foreground if spec else None
            color = color or Color.parse(variables["foreground"])
            seen = behind.blend(color, color.a, 1.0)
            if contrast(seen, behind) < 4.5:
                low[style] = round(contrast(seen, behind), 2)
    assert not low


# --- themes ---------------------------------------------------------------------------------------------------------


async def test_a_users_theme_is_chosen_by_name_command_and_palette(own: Path) -> None:
    (own / "mine.toml").write_text(MINE)
    async with running(FakeBackend(), theme="mine") as (app, pilot):
        assert app.theme_name == "mine" and app.current_theme.foreground == "#abcdef"
        app.run_command("theme.set", "light")
        await wait_until(pilot, lambda: app.theme_name == "light")
        titles = {command.title: command.callback for command in app.get_system_commands(app.screen)}
        assert {"Theme mine", "Theme dark", "Theme ansi"} <= set(titles)
        titles["Theme mine"]()
        await wait_until(pilot, lambda: app.theme_name == "mine")
        seen = []
        for _ in themes.names():
            app.run_command("theme.set")
            before = app.theme_name
            await wait_until(pilot, lambda before=before: app.theme_name != before)
            seen.append(app.theme_name)
        assert sorted(seen) == sorted(themes.names())


async def test_a_bad_theme_is_a_notice_while_running_and_is_passed_over(own: Path) -> None:
    (own / "mend.toml").write_text("[colors]\n")
    async with running(FakeBackend(), theme="light") as (app, pilot):
        app.run_command("theme.set", "mend")
        await wait_until(
            pilot, lambda: any("needs at least primary" in n.message for n in app._notifications)
        )
        app.run_command("theme.set", "nowhere")
        await wait_until(pilot, lambda: any("there are dark, light" in n.message for n in app._notifications))
        assert app.theme_name == "light"
        for _ in range(3):
            app.run_command("theme.set")
            await pilot.pause()
        assert app.theme_name == "dark"  # ansi, contrast, then past the bad one


@pytest.mark.parametrize("command", [["top"], ["chat", "demo"], []])
@pytest.mark.parametrize(("name", "words"), [("nowhere", "there are dark, light"), ("mend", "mend.toml")])
def test_a_bad_theme_at_the_start_is_one_line_and_code_2(
    command: list[str], name: str, words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "config" / "lmtop" / "themes"
    folder.mkdir(parents=True)
    (folder / "mend.toml").write_text("colours = 1\n")
    terminal = Terminal(tmp_path, *command, "--theme", name)
    assert terminal.wait() == 2
    line = terminal.output.decode().replace("\x1b", "").strip()
    assert line.startswith("lmtop: error:") and words in line and "\n" not in line


def test_names_of_files_that_cannot_be_typed_are_no_themes(own: Path) -> None:
    for name in ("two words", "[red]", "ok-1.x", "\x1b[31m"):
        (own / f"{name}.toml").write_text(MINE)
    assert set(themes.names()) == {"dark", "light", "ansi", "contrast", "ok-1.x"}


# --- few colours, no colours -----------------------------------------------------------------------------------------


async def test_sixteen_colours_are_the_terminals_own_and_less_important_text_is_dim() -> None:
    async with running(FakeBackend(), theme="ansi") as (app, pilot):
        backend = app.backend
        assert isinstance(backend, FakeBackend)
        app.chat.composer.text = "why?"
        await pilot.press("enter")
        await wait_until(pilot, lambda: bool(backend.requests))
        backend.push(backend.last(), "because")
        await wait_until(pilot, lambda: "because" in screen_text(app))
        strips = app.screen._compositor.render_strips()
        colours = {s.style.color for strip in strips for s in strip if s.style and s.style.color}
        assert all(color.triplet is None for color in colours)
        assert styles_of(app, "22:13")[0].dim or styles_of(app, ":13")[0].dim
        assert styles_of(app, "weights")[0].dim and not styles_of(app, "because")[0].dim
        cursor = app.chat.composer.get_component_rich_style("text-area--cursor")
        assert cursor.reverse


async def test_without_colours_states_are_words_and_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    backend = FakeBackend()
    app = program(backend)
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_until(pilot, lambda: app.chat.session is not None)
        await pilot.press("f4")
        await wait_until(pilot, lambda: "built in" in screen_text(app))
        filters = [type(it).__name__ for it in app._filters if it.enabled]
        assert "NoColor" in filters and "Monochrome" not in filters
        assert styles_of(app, "demo  ")[0].reverse  # the marked one
        assert styles_of(app, "Mixtral")[0].dim


# --- ASCII ------------------------------------------------------------------------------------------------------------

SCREENS = [
    "",
    "f1",
    "f2",
    "f3",
    "f4",
    "f8",
    "ctrl+g",
    "palette",
    "system",
    "delete",
    "quit",
    "slash",
    "notice",
]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=lambda s: f"{s[0]}x{s[1]}")
async def test_every_character_of_the_chrome_has_an_ascii_twin(size: tuple[int, int]) -> None:
    backend, looked = FakeBackend(), set[str]()
    async with running(backend, size, ascii=True) as (app, pilot):
        app.chat.composer.text = "q"
        await pilot.press("enter")
        await wait_until(pilot, lambda: bool(backend.requests))
        backend.push(backend.last(), "- a\n- b\n\n```sh\nls\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nc")
        for screen in SCREENS:
            await show(app, pilot, screen)
            seen = screen_text(app)
            assert not {char for char in seen if not char.isascii() and char not in _TWINS}, screen
            looked.add(seen)
            if app.screen is not app.chat:
                await pilot.press("q" if screen == "f3" else "escape")
                await wait_until(pilot, lambda: app.screen is app.chat)
            app.chat.composer.text = ""
            app.chat.composer.focus()
        assert len(looked) == len(SCREENS)  # each was really there


async def show(app: Any, pilot: Pilot[Any], screen: str) -> None:
    match screen:
        case "palette":
            app.action_command_palette()
            await wait_until(pilot, lambda: isinstance(app.screen, CommandPalette))
            await wait_until(pilot, lambda: "Copy" in screen_text(app))
        case "system":
            app.run_command("session.system")
        case "delete":
            app.run_command("session.delete")
        case "quit":
            await pilot.press("ctrl+q")
        case "slash":
            app.chat.composer.text = "/"
        case "notice":
            app.chat.notice("something happened", "warning")
        case key if key:
            await pilot.press(key)
    await pilot.pause()


# --- small things ---------------------------------------------------------------------------------------------------


async def test_an_empty_chat_says_how_to_begin_until_something_is_asked() -> None:
    backend = FakeBackend()
    async with running(backend, (80, 24)) as (app, pilot):
        text = screen_text(app)
        assert "Ask something." in text and "F4  load another model" in text
        app.chat.composer.text = "q"
        await pilot.press("enter")
        await wait_until(pilot, lambda: "Ask something." not in screen_text(app))


async def test_notices_cover_neither_the_prompt_nor_the_newest_text() -> None:
    app = program(FakeBackend())
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await wait_until(pilot, lambda: app.chat.session is not None)
        app.chat.notice("copied 12 characters")
        app.chat.notice("a longer one " * 6, "warning")
        await wait_until(pilot, lambda: "copied 12" in screen_text(app))
        rows = [
            y for y, line in enumerate(screen_text(app).split("\n")) if "copied" in line or "longer" in line
        ]
        assert rows and max(rows) < 8


async def test_the_palette_finds_and_runs_a_command() -> None:
    async with running(FakeBackend(), (80, 24)) as (app, pilot):
        await show(app, pilot, "palette")
        await pilot.press(*"theme light")
        await wait_until(pilot, lambda: "Theme light" in screen_text(app))
        await pilot.press("down", "enter")
        await wait_until(pilot, lambda: app.theme_name == "light")


def test_lengths_in_tokens_count_as_contexts_do() -> None:
    told = [format.tokens(n) for n in (None, 0, 940, 1024, 4096, 7680, 33_000, 131_072, 1 << 20)]
    assert told == ["n/a", "0", "940", "1k", "4k", "7.5k", "32k", "128k", "1M"]


def test_small_models_have_sizes_too_and_the_pad_block_holds_nothing() -> None:
    snapshot = engine_snapshot()
    kv = pool({2: 3, 1: 2}, 65)
    kv = type(kv)(
        kv.block_size, kv.total, kv.free - 1, kv.cached, kv.used, kv.owners[2:] + b"\0\0", kv.shared
    )
    laid_out = kvmap.layout(kv, "pool", 80, 4)
    assert sum(group.blocks for group in laid_out.groups) == 64 == kvmap.usable(kv)
    assert min(laid_out.order) == 1
    section = gauge_rows.kv_section(kv, "used", 34, {}, "", UNICODE, lambda m: None, lambda: "")
    assert "3/64 blk" in "".join(text for text, _ in section.title)
    assert snapshot.memory is not None
    small = type(snapshot.memory)("RAM", 16 << 30, 29 << 20, 0, 5 << 20, 1 << 20, 1 << 30)
    rows = gauge_rows.memory_section(small, 34, "", UNICODE).build(9)
    text = "\n".join("".join(part for part, _ in row) for row in rows)
    assert "weights 29M" in text and "KV rest 5M" in text and "others 1.0G" in text


# --- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light", "ansi"])
@pytest.mark.parametrize("key", ["", "palette"])
def test_picture(name: str, key: str, snap_compare: Any) -> None:
    app = program(FakeBackend(), theme=name)

    async def play(pilot: Pilot[Any]) -> None:
        await wait_until(pilot, lambda: app.chat.session is not None)
        await show(app, pilot, key)

    assert snap_compare(app, terminal_size=(80, 24), run_before=play)
