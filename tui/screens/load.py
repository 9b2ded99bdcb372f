"""Choosing a model (F4), and the first thing a user sees who named none: what is here, what it would need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Label

from ...engine.config import EngineConfig
from ...engine.memory import given_back
from ...engine.text import one_line
from ...engine.types import LmtopError, ModelState
from ..plans import (
    DTYPES,
    KVS,
    TABLE,
    WEIGHTS,
    Fields,
    Item,
    Survey,
    Typed,
    matching,
    prediction,
    survey,
    verdict,
)
from ..render.lines import Row, wrap_text
from ..widgets.choice import Choice
from ..widgets.field import Field
from ..widgets.hints import Hints
from ..widgets.models import ModelList
from ..widgets.panel import Panel
from .dialog import Dialog

if TYPE_CHECKING:
    from ..app import LmtopApp

BAR = 24
ROWS = 16 + TABLE  # of the dialog beside the list of models, blank ones included
WELCOME = (
    "Welcome to lmtop. Press enter to chat with demo, a small built-in model; or choose another, or type a "
    "directory or a Hugging Face hub id."
)


class LoadDialog(Dialog[None]):
    """Filter or name a model, see what it would need, load it. Stays open, with progress, until it is loaded.

    `welcome` is shown when the program started without a model. A path or hub id in the filter is offered as a
    choice of its own. A load that is under way already is shown, and can be cancelled.
    """

    CSS_PATH = "load.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-medium"), (160, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (27, "-roomy")]
    BINDINGS = [
        Binding("escape", "leave", show=False, priority=True),
        Binding("enter", "load(False)", show=False, priority=True),
        Binding("ctrl+f", "load(True)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("pagedown", "move(8)", show=False, priority=True),
        Binding("pageup", "move(-8)", show=False, priority=True),
        Binding("tab", "app.focus_next", show=False),
        Binding("shift+tab", "app.focus_previous", show=False),
    ]
    AUTO_FOCUS = "#filter"

    app: LmtopApp

    @dataclass
    class Surveyed(Message):
        """The disk was looked at."""

        survey: Survey

    def __init__(self, config: EngineConfig, welcome: bool = False) -> None:
        super().__init__(id="load")
        self._config = replace(config, force=False)
        self._welcome = welcome
        self._survey: Survey | None = None
        self._listed = ""  # the filter that the list shows
        self._following = False
        self._began = False  # it has been seen to load
        self._base = self._shown = Fields.of(self._config)  # without a preset; as we filled them in
        self._preset = False  # they are how the marked model was loaded last
        self._keep: tuple[str, Fields] | None = None  # once it is loaded
        self._status: tuple[str, str] = ("", "")  # text and style; it stands in the verdict's place

    @property
    def busy(self) -> bool:
        """Whether a model is being loaded; then only cancelling is possible."""
        return self._following

    def compose(self) -> ComposeResult:
        glyphs, fields = self.app.glyphs, self._base
        with Vertical(id="dialog"):
            if self._welcome:
                yield Panel(glyphs=glyphs, id="welcome")
            yield Field(placeholder="filter, directory or hub id (owner/name)", id="filter")
            yield ModelList(glyphs=glyphs, id="models")
            with Horizontal(classes="fields"):
                yield Choice("type", DTYPES, fields.dtype, glyphs=glyphs, id="dtype")
                yield Choice("weights", WEIGHTS, fields.weights, glyphs=glyphs, id="weights")
                yield Choice("KV", KVS, fields.kv, glyphs=glyphs, id="kv")
            with Horizontal(classes="fields", id="sizes"):
                yield Label("context")
                yield Field(fields.context, placeholder="model's", id="context")
                yield Label("slots")
                yield Field(fields.slots, placeholder=str(self._config.max_batch_size), id="slots")
                yield Label("cache")
                yield Field(fields.cache, placeholder="auto", id="cache")
            yield Panel(glyphs=glyphs, id="prediction")
            yield Panel(glyphs=glyphs, id="status")
            yield Hints(glyphs=glyphs, id="hints")

    def on_mount(self) -> None:
        dialog = self.query_one("#dialog")
        dialog.border_title = Content("lmtop" if self._welcome else "load model")
        self._list()
        self._look()
        self.app.model_signal.subscribe(self, self._watch)
        if self.app.replies.model.status == "loading":
            self._follow()
            self._watch(self.app.replies.model)

    @work(thread=True)
    def _look(self) -> None:
        """Look at the disk without holding up the screen."""
        loaded = self.app.backend.snapshot().memory if self.app.backend is not None else None
        self.post_message(self.Surveyed(survey(self._config, given_back(loaded))))

    @on(Surveyed)
    def _surveyed(self, event: Surveyed) -> None:
        self._survey = event.survey
        models = event.survey.models
        broken = sum(1 for found in models if found.files is None)
        unfit = f", {broken} cannot be loaded" if broken else ""
        count = f"{len(models)} model{'' if len(models) == 1 else 's'} here{unfit}"
        self.query_one("#dialog").border_subtitle = Content(count)
        self._fit()
        self._list()

    def on_resize(self) -> None:
        self._fit()
        self.call_after_refresh(self._predict)
        self.call_after_refresh(self._show_welcome)

    def _show_welcome(self) -> None:
        for panel in self.query("#welcome").results(Panel):
            panel.show(wrap_text(WELCOME, panel.size.width, "value"))

    def _fit(self) -> None:
        """As many rows for the list as there are models, and room; the same whatever the filter says."""
        known = len(self._survey.models) if self._survey else 1
        low = self.size.height < 27
        room = (
            self.size.height - ROWS + (5 if low else -1) - (2 if self._welcome and low else 3 * self._welcome)
        )
        self.query_one("#models").styles.height = max(2, min(known + 1, room, 24))

    # --- choosing ------------------------------------------------------------------------------------------

    @on(Field.Changed, "#filter")
    def _list(self) -> None:
        query = self._listed = self.query_one("#filter", Field).value.strip()
        looking = self._survey is None
        models = self._survey.models if self._survey else ()
        if not self.busy:
            self._status = ("", "")
        items = matching(models, query)
        last = [place for place, item in enumerate(items) if item.name == self._config.model and not query]
        absent = "looking for models" if looking else "no models here"
        self.query_one(ModelList).show(items, absent, *last)

    @property
    def chosen(self) -> Item | None:
        """What enter would load."""
        return self.query_one(ModelList).marked

    @property
    def fields(self) -> Fields:
        """The fields as typed."""
        chosen = {name: self.query_one(f"#{name}", Choice).value for name in ("dtype", "weights", "kv")}
        typed = {name: self.query_one(f"#{name}", Field).value for name in ("context", "slots", "cache")}
        return Fields(**chosen, **typed)

    @on(Field.Changed, "#context, #slots, #cache")
    @on(Choice.Changed)
    def _fields_changed(self) -> None:
        if not self.busy:
            self._status = ("", "")
        self._predict()

    @on(ModelList.Marked)
    def _marked(self) -> None:
        """Fill in how the marked model was loaded last, unless somebody has typed, or asked by flag or file."""
        if self.fields == self._shown and not self.busy:
            found = self._preset_of(self.chosen.name) if self.chosen is not None else None
            self._preset = found is not None
            self._show_fields(found or self._base)
        self._fields_changed()

    def _preset_of(self, model: str) -> Fields | None:
        asked = self._base != Fields.of(EngineConfig(self._config.model))
        if asked if self._welcome else model == self._config.model:
            return None
        return self.app.presets.get(model)

    def _show_fields(self, fields: Fields) -> None:
        self._shown = fields
        for name in ("dtype", "weights", "kv"):
            self.query_one(f"#{name}", Choice).set(getattr(fields, name))
        for name in ("context", "slots", "cache"):
            self.query_one(f"#{name}", Field).value = getattr(fields, name)

    def _predict(self) -> None:
        """Show what the marked model would need; called at each key, so it must be quick."""
        panel, status = self.query_one("#prediction", Panel), self.query_one("#status", Panel)
        rows: list[Row] = []
        said: list[Row] = []
        width = max(20, panel.size.width)
        chosen, found = self.chosen, self._survey
        fits = True
        if isinstance(chosen, Typed):
            rows = [[("  what it needs is known once its files are here", "dim")]]
        elif chosen is not None and chosen.files is None:
            said = _said(chosen.problem, "bad", width)
        elif chosen is not None and found is not None and found.device is not None:
            try:
                config = self.fields.apply(self._config, chosen.name)
                plan, rows = prediction(
                    config, found.sizes[chosen.name], found.device, width, self.app.glyphs
                )
                said, fits = _indented(verdict(plan, width - 2)), plan.fits
            except LmtopError as error:
                said = _said(str(error), "bad", width)
        if not said and found is not None and found.problem:
            said = _said(found.problem, "warn", width)
        if self._preset and self.fields == self._shown:
            said = [*_said("as this model was loaded last", "label", width), *said]
        text, style = self._status
        panel.show(rows)
        said = _said(text, style, width) if text else said
        status.styles.height = max(2, min(4, len(said)))
        status.show(said)
        self._show_hints(fits)

    def _show_hints(self, fits: bool) -> None:
        if self.busy:
            hints = [("esc", "cancel loading", "leave")]
        else:
            leave = "later" if self._welcome else "cancel"
            hints = [("enter", "load", "load(False)"), ("^f", "load anyway", "load(True)")]
            hints += [("up down", "choose", ""), ("tab", "fields", "app.focus_next"), ("esc", leave, "leave")]
            hints = hints if not fits else [hints[0], *hints[2:4], hints[1], hints[4]]
        self.query_one(Hints).show(hints)

    def action_move(self, step: int) -> None:
        self.query_one(ModelList).move(step)

    # --- loading -------------------------------------------------------------------------------------------

    @on(ModelList.Chosen)
    def _clicked(self) -> None:
        self.action_load(False)

    def action_load(self, force: bool) -> None:
        """Load what is marked; `force`: also where the prediction says that it will not fit."""
        self.after_typing(lambda: self._load(force))

    def _load(self, force: bool) -> None:
        if self.query_one("#filter", Field).value.strip() != self._listed:
            self._list()
        chosen = self.chosen
        if chosen is None or self.busy or self.app.backend is None:
            return
        if not isinstance(chosen, Typed) and chosen.files is None:
            return  # its reason is shown
        try:
            config = self.fields.apply(self._config, chosen.name, force)
        except LmtopError as error:
            self._say(str(error), "bad")
            return
        self._keep = (chosen.name, self.fields)
        self._follow()
        self.app.load_config(config)

    def _follow(self) -> None:
        self._following, self._began = True, False
        self._say("starting", "label")

    def _watch(self, state: ModelState) -> None:
        """The engine's model changed state. After a failure the model before may be announced as ready again:
        by then nothing is followed any more, and the reason stays."""
        if not self._following:
            return
        match state.status:
            case "ready" if self._began:
                if self._keep is not None:
                    self.app.presets.keep(*self._keep)
                self.dismiss()
            case "loading":
                self._began = True
                self._say(self._progress(state), "label")
            case "failed" | "dead":
                self._stopped(state.message, "bad")
            case "none" if self._began:
                self._stopped(state.message or "loading was cancelled", "warn")

    def _progress(self, state: ModelState) -> str:
        glyphs = self.app.glyphs
        filled = int(state.progress * BAR)
        bar = glyphs.full * filled + glyphs.light * (BAR - filled)
        return f"{bar} {state.progress:4.0%} {one_line(state.message)}"

    def _stopped(self, text: str, style: str) -> None:
        self._following = False
        self._say(text, style)

    def _say(self, text: str, style: str) -> None:
        self._status = (text, style)
        self._predict()

    def action_leave(self) -> None:
        """Cancel the load under way, else close."""
        if self.busy and self.app.backend is not None:
            self.app.backend.cancel_load()
        else:
            self.dismiss()


def _said(text: str, style: str, width: int) -> list[Row]:
    return _indented(wrap_text(one_line(text, 500), width - 2, style))


def _indented(rows: list[Row]) -> list[Row]:
    return [[("  ", ""), *row] for row in rows]


def open(app: LmtopApp, welcome: bool = False) -> None:
    """Show the dialog."""
    app.push_screen(LoadDialog(app.engine, welcome))
