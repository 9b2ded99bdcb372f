"""F8: how the next token is chosen, for this session or for every new one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Label

from ...engine.text import one_line
from ...engine.types import LmtopError, SamplingParams, UsageError
from ..sampling import apply_settings
from ..widgets.choice import Choice
from ..widgets.field import Field
from ..widgets.hints import Hints
from ..widgets.panel import Panel
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import LmtopApp

PRESETS: dict[str, dict[str, float]] = {
    "precise": {"temperature": 0.2, "top_p": 0.9, "top_k": 0, "min_p": 0.0},
    "balanced": {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0},
    "wild": {"temperature": 1.2, "top_p": 1.0, "top_k": 0, "min_p": 0.05},
    "greedy": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
}
CUSTOM = "custom"
FIELDS = (
    ("temperature", "0 to 2; 0: always the likeliest"),
    ("top_p", "the likeliest that sum to p; 1: off"),
    ("top_k", "the k likeliest; 0: off"),
    ("min_p", "p times the likeliest; 0: off"),
    ("repetition_penalty", "above 1 avoids repeating; 1: off"),
    ("presence_penalty", "-2 to 2, for what was said; 0: off"),
    ("frequency_penalty", "-2 to 2, each time it was; 0: off"),
    ("seed", "the same seed, the same reply"),
    ("max_new_tokens", "the longest reply"),
    ("stop", "texts that end it; quote 'two words'"),
)
EMPTY = {"seed": "another each time", "max_new_tokens": "rest of context", "stop": "none"}
SCOPES = ("this session", "this and new sessions")


NOT_HERE = "not understood by this server"


class SamplingPanel(Dialog[tuple[SamplingParams, str] | None]):
    """The result is the settings and one of `SCOPES`; None after escape. They apply from the next request on. Fields
    that are not `understood` (None: all are) are shown, and cannot be changed."""

    CSS_PATH = "sampling.tcss"
    BINDINGS = [
        Binding("escape", "dismiss(None)", show=False, priority=True),
        Binding("enter", "keep", show=False, priority=True),
        Binding("down,tab", "app.focus_next", show=False, priority=True),
        Binding("up,shift+tab", "app.focus_previous", show=False, priority=True),
    ]
    AUTO_FOCUS = "#temperature"

    app: LmtopApp

    def __init__(self, params: SamplingParams, understood: frozenset[str] | None = None) -> None:
        super().__init__()
        self._params = params
        self._understood = understood
        self._shown = {name: _text(params, name) for name, _ in FIELDS}

    def compose(self) -> ComposeResult:
        glyphs = self.app.glyphs
        with Vertical(id="dialog"):
            preset = _preset_of(self._params)
            yield Choice("preset", (CUSTOM, *PRESETS), preset, glyphs=glyphs, id="preset")
            for name, hint in FIELDS:
                with Horizontal(classes="field"):
                    known = self._understood is None or name in self._understood
                    yield Label(name.replace("_", " "), classes="name")
                    yield Field(
                        self._shown[name], placeholder=EMPTY.get(name, ""), id=name, disabled=not known
                    )
                    yield Label(Content(hint if known else NOT_HERE), classes="hint")
            yield Choice("applies to", SCOPES, SCOPES[0], glyphs=glyphs, id="scope")
            yield Panel(glyphs=glyphs, id="status")
            yield Hints(
                [
                    ("enter", "keep", "keep"),
                    ("up down", "fields", ""),
                    ("left right", "preset, scope", ""),
                    ("esc", "cancel", "dismiss(None)"),
                ],
                glyphs=glyphs,
            )

    def on_mount(self) -> None:
        self.query_one("#dialog").border_title = Content("sampling")

    @on(Choice.Changed, "#preset")
    def _use_preset(self) -> None:
        for name, value in PRESETS.get(self.query_one("#preset", Choice).value, {}).items():
            self.query_one(f"#{name}", Field).value = f"{value:g}"

    @on(Field.Changed)
    def _check(self) -> None:
        """Say at once what cannot be; show which preset the values are."""
        problem = ""
        try:
            self.query_one("#preset", Choice).set(_preset_of(self._read()))
        except LmtopError as error:
            problem = str(error)
        self.query_one("#status", Panel).show([[(one_line(problem), "bad")]])

    def action_keep(self) -> None:
        self.after_typing(self._keep)

    def _keep(self) -> None:
        """Close with the settings; a value that cannot be gets the cursor instead."""
        try:
            params = self._read()
        except LmtopError as error:
            wrong = next((name for name, _ in FIELDS if str(error).startswith(name)), "temperature")
            self.query_one(f"#{wrong}").focus()
            return
        self.dismiss((params, self.query_one("#scope", Choice).value))

    def _read(self) -> SamplingParams:
        """The settings as typed; what was not touched stays as it was. UsageError names a field."""
        params = self._params
        for name, _ in FIELDS:
            text = self.query_one(f"#{name}", Field).value
            if text == self._shown[name]:
                continue
            if name == "stop":
                params = replace(params, stop=_stops(text))
                continue
            try:
                params = apply_settings(f"{name}={shlex.quote(text.strip() or 'none')}", params)
            except UsageError as error:
                raise UsageError(str(error).removeprefix("set: ")) from None
        return params


def _preset_of(params: SamplingParams) -> str:
    for name, values in PRESETS.items():
        if all(getattr(params, key) == value for key, value in values.items()):
            return name
    return CUSTOM


def _text(params: SamplingParams, name: str) -> str:
    value = getattr(params, name)
    if name == "stop":
        return shlex.join(stop.replace("\n", "\\n").replace("\t", "\\t") for stop in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _stops(text: str) -> tuple[str, ...]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"stop: {str(error).lower()}") from None
    return tuple(word.replace("\\n", "\n").replace("\\t", "\t") for word in words)


def open(app: LmtopApp) -> None:
    """Show the panel for the session that is shown."""
    session = app.actions.session

    def done(result: tuple[SamplingParams, str] | None) -> None:
        if result is None:
            return
        params, scope = result
        app.sessions.update(session, sampling=params)
        if scope != SCOPES[0]:
            app.sessions.sampling = params
        app.chat.show_lines()

    understood = app.backend.capabilities.sampling if app.backend is not None else None
    app.push_screen(SamplingPanel(session.sampling, understood), done)
