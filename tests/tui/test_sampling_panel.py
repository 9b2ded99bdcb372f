"""The sampling panel, F8 (check 20)."""

from __future__ import annotations

from typing import Any

import pytest
from support.dialogs import program, running, same_everywhere, screen_text, type_into
from support.fake_backend import FakeBackend
from support.waiting import wait_until
from textual.pilot import Pilot
from textual.widgets import Input

from lmtop.engine.types import SamplingParams
from lmtop.tui.app import LmtopApp
from lmtop.tui.render.glyphs import ASCII
from lmtop.tui.screens.sampling import FIELDS, PRESETS, SamplingPanel
from lmtop.tui.widgets.choice import Choice


async def opened(app: LmtopApp, pilot: Pilot[Any]) -> SamplingPanel:
    await pilot.press("f8")
    assert isinstance(app.screen, SamplingPanel)
    return app.screen


def shown(app: LmtopApp) -> dict[str, str]:
    return {name: app.screen.query_one(f"#{name}", Input).value for name, _ in FIELDS}


def preset(app: LmtopApp) -> str:
    return app.screen.query_one("#preset", Choice).value


async def ask(app: LmtopApp, pilot: Pilot[Any], backend: FakeBackend) -> SamplingParams:
    """The sampling of the next request."""
    known = len(backend.requests)
    app.chat.composer.text = "q"
    await pilot.press("enter")
    await wait_until(pilot, lambda: len(backend.requests) > known)
    return backend.requests[backend.last()].sampling


async def answer(app: LmtopApp, pilot: Pilot[Any], backend: FakeBackend) -> None:
    backend.push(backend.last(), "a")
    backend.finish(backend.last())
    await wait_until(pilot, lambda: not app.replies.active)


async def test_what_is_shown_is_what_the_next_request_says_and_only_it() -> None:
    """Check 20, by the keyboard alone."""
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        before = await ask(app, pilot, backend)
        panel = await opened(app, pilot)
        typed = ("1.5", "0.8", "40", "0.05", "1.1", "0.2", "-0.3", "7", "512", "END '\\n\\n' 'two words'")
        for (name, _), text in zip(
            FIELDS, typed, strict=True
        ):  # typing replaces what stands there; down goes on
            if len(text) < 4:
                await pilot.press(*text, "down")
            else:  # each key pressed costs the test a frame
                panel.query_one(f"#{name}", Input).value = text
                await pilot.press("down")
        assert tuple(shown(app).values()) == typed
        await pilot.press("enter")
        assert app.screen is app.chat
        assert backend.requests[backend.last()].sampling is before  # the running one is left alone
        assert "temp 1.5" in screen_text(app)
        await answer(app, pilot, backend)
        assert await ask(app, pilot, backend) == SamplingParams(
            temperature=1.5,
            top_p=0.8,
            top_k=40,
            min_p=0.05,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=-0.3,
            seed=7,
            max_new_tokens=512,
            stop=("END", "\n\n", "two words"),
        )
        await answer(app, pilot, backend)
        await opened(app, pilot)
        assert tuple(shown(app).values()) == typed


async def test_nothing_changes_what_was_not_touched() -> None:
    params = SamplingParams(temperature=0.123456789, logit_bias=((5, 1.0),), stop=("a b", "c\td"))
    async with running(FakeBackend(), sampling=params) as (app, pilot):
        await opened(app, pilot)
        assert preset(app) == "custom"
        await pilot.press("enter")
        assert app.actions.session.sampling is params or app.actions.session.sampling == params
        await opened(app, pilot)
        await type_into(pilot, "temperature", "1")
        await pilot.press("escape")
        assert app.actions.session.sampling == params


async def test_presets_fill_the_fields_and_fields_name_the_preset() -> None:
    async with running(FakeBackend(), sampling=SamplingParams(temperature=0.33)) as (app, pilot):
        for name in PRESETS:
            await opened(app, pilot)
            await pilot.press("up", "right")  # from custom to the first, then from each to the next
            assert preset(app) == name
            assert {key: float(shown(app)[key]) for key in PRESETS[name]} == PRESETS[name]
            await type_into(pilot, "top_k", "3")
            assert preset(app) == "custom"
            await type_into(pilot, "top_k", "0")
            assert preset(app) == name
            await pilot.press("enter")
            for key, value in PRESETS[name].items():
                assert getattr(app.actions.session.sampling, key) == value


async def test_the_scope_is_this_session_or_new_ones_too() -> None:
    backend = FakeBackend()
    async with running(backend) as (app, pilot):
        await ask(app, pilot, backend)
        first = app.actions.session
        await opened(app, pilot)
        await pilot.press("1", "enter")
        await pilot.press("ctrl+n")
        assert (first.sampling.temperature, app.actions.session.sampling.temperature) == (1.0, 0.7)
        await opened(app, pilot)
        await pilot.press("0", "up", "up", "right", "enter")  # temperature, preset, applies to
        await ask(app, pilot, backend)
        await pilot.press("ctrl+n")
        assert (first.sampling.temperature, app.actions.session.sampling.temperature) == (1.0, 0.0)


BAD_VALUES = (
    ("temperature", "x", "temperature = 'x': must be a number"),
    ("temperature", "0.7 top_k=3", "temperature = '0.7 top_k=3': must be a number"),
    ("temperature", "9", "temperature = 9.0: must be from 0 to 2"),
    ("temperature", "nan", "temperature = nan: must be from 0 to 2"),
    ("top_p", "0", "top_p = 0.0: must be above 0"),
    ("top_k", "1.5", "top_k = '1.5': must be a whole number"),
    ("repetition_penalty", "-1", "repetition_penalty = -1.0"),
    ("seed", "9" * 30, "seed = "),
    ("max_new_tokens", "0", "max_new_tokens = 0: must be at least 1"),
    ("stop", "'open", "stop: no closing quotation"),
    ("temperature", "[bold]\x1b", "temperature = '[bold]"),
)


async def test_a_value_that_cannot_be_is_named_at_once_and_gets_the_cursor() -> None:
    async with running(FakeBackend()) as (app, pilot):
        panel = await opened(app, pilot)
        before = app.actions.session.sampling
        for field, text, words in BAD_VALUES:
            widget = panel.query_one(f"#{field}", Input)
            good, widget.value = widget.value, text
            panel.query_one("#preset").focus()
            await pilot.pause()
            assert words in screen_text(app) and "\x1b" not in screen_text(app)
            await pilot.press("enter")
            assert app.screen is panel and panel.focused is widget
            widget.value = good
        await pilot.press("escape")
        assert app.actions.session.sampling is before


async def test_no_hint_is_cut_at_80_columns() -> None:
    async with running(FakeBackend(), (80, 24)) as (app, pilot):
        await opened(app, pilot)
        for _, hint in FIELDS:
            assert f" {hint} " in screen_text(app), hint


async def test_the_mouse_steps_a_choice_and_keeps() -> None:
    async with running(FakeBackend()) as (app, pilot):
        panel = await opened(app, pilot)
        await pilot.click("#preset", offset=(9, 0))
        assert preset(app) == "wild"
        await pilot.click("#preset", offset=(7, 0))
        assert preset(app) == "balanced"
        await pilot.click("#preset", offset=(7, 0))
        await pilot.click(panel.query_one("Hints"), offset=(2, 0))
        assert app.actions.session.sampling.temperature == 0.2


async def test_ascii_has_a_twin_for_every_character_of_the_panel() -> None:
    async with running(FakeBackend(), ascii=True) as (app, pilot):
        await opened(app, pilot)
        assert "?" not in ASCII.plain(screen_text(app))


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_picture(size: tuple[int, int], snap_compare: Any) -> None:
    with same_everywhere():
        app = program(FakeBackend())

        async def play(pilot: Pilot[Any]) -> None:
            await wait_until(pilot, lambda: app.chat.session is not None)
            await opened(app, pilot)

        assert snap_compare(app, terminal_size=size, run_before=play)
