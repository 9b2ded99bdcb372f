"""The chat screen: sessions, transcript, prompt, gauges. It shows what `Sessions` and the engine say, and turns
keys and typed lines into commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Label

from ...engine.client import FOREIGN
from ...engine.text import one_line, visible
from ...engine.types import EngineSnapshot, ModelState
from ..commands import Where, literal, parse_slash
from ..keys import bindings
from ..pulse import NO_ANSWER, Pulse
from ..replies import refusal
from ..sessions import ChatSession, Level, Turn
from ..slash import SlashMenu
from ..widgets.chrome import Chrome
from ..widgets.composer import Composer
from ..widgets.gauges import GaugePanel, GaugeStrip
from ..widgets.sessions import SessionLine, SessionList, SessionTabs, session_line
from ..widgets.status import ContextLine, Footer, Header, PaneEdge, PromptTop, Reading
from ..widgets.transcript import Transcript
from .chat_entries import context_used, entry_for, reply_figures

if TYPE_CHECKING:
    from ...engine.client import Backend
    from ..app import LmtopApp

TICK_S = 0.5
LOW_BANDWIDTH_TICKS = 4  # gauges every 2 s then
DRAFT_SAVE_S = 1.0
FRAMED_FROM = 100  # columns


class ChatPane(Vertical):
    """The transcript and the edge below it; the transcript's keys are bound here."""

    BINDINGS = bindings("transcript")


class PromptPane(Vertical):
    """The composer between two edges; the keys that the composer leaves are bound here."""

    BINDINGS = bindings("prompt")


class ChatScreen(Screen[None]):
    """`session` is the one shown, None only until the history is open."""

    CSS_PATH = "chat.tcss"
    BINDINGS = bindings("chat")
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (80, "-narrow"), (100, "-medium"), (160, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (24, "-short"), (30, "-tall")]
    AUTO_FOCUS = "#composer"

    app: LmtopApp

    def __init__(self) -> None:
        super().__init__(id="main")
        self.session: ChatSession | None = None
        self.snapshot: EngineSnapshot | None = None
        self.pulse = Pulse()
        self._ticker: Timer
        self._ticks = 0
        self._busy = False
        self._draft_timer: Timer | None = None

    def compose(self) -> ComposeResult:
        glyphs = self.app.glyphs
        yield Header(glyphs=glyphs, id="header")
        yield GaugeStrip(glyphs=glyphs, id="strip")
        yield SessionTabs(glyphs=glyphs, id="tabs")
        with Horizontal(id="body"):
            yield SessionList(glyphs=glyphs, id="sessions")
            with ChatPane(id="chat"):
                yield Transcript(id="transcript")
                yield PaneEdge(glyphs=glyphs, id="edge")
            yield GaugePanel(glyphs=glyphs, id="gauges")
        yield SlashMenu(glyphs=glyphs, id="slash")
        with PromptPane(id="prompt"):
            yield PromptTop(glyphs=glyphs, id="prompt-top")
            with Horizontal(id="prompt-row"):
                yield Label(glyphs.prompt, id="prompt-mark")
                yield Composer(id="composer")
            yield ContextLine(glyphs=glyphs, id="context")
        yield Footer(glyphs=glyphs, id="footer")

    def on_mount(self) -> None:
        self.composer.cursor_blink = False  # an idle screen writes nothing
        self._ticker = self.set_interval(TICK_S, self.tick)
        self.watch(self.transcript, "new_below", self.show_edge, init=False)

    # --- parts ---------------------------------------------------------------------------------------------

    @property
    def transcript(self) -> Transcript:
        return self.query_one("#transcript", Transcript)

    @property
    def composer(self) -> Composer:
        return self.query_one("#composer", Composer)

    @property
    def session_list(self) -> SessionList:
        return self.query_one("#sessions", SessionList)

    @property
    def gauge_panel(self) -> GaugePanel:
        return self.query_one("#gauges", GaugePanel)

    @property
    def where(self) -> Where:
        """Which pane has the focus."""
        if self.focused is self.transcript:
            return "transcript"
        return "sessions" if self.focused is self.session_list else "prompt"

    @property
    def narrow(self) -> bool:
        """Whether gauges have no room beside the chat."""
        return self.size.width < FRAMED_FROM or self.size.height < 30

    @property
    def gauges_visible(self) -> bool:
        return any(self.query_one(name).display for name in ("#strip", "#gauges"))

    def begin(self, here: bool) -> None:
        """Another engine is talked to from now on; `here`: this process's."""
        self.pulse, self.snapshot = Pulse(), None
        self.gauge_panel.begin(here)
        self.wake()

    # --- showing sessions ----------------------------------------------------------------------------------

    async def show(self, session: ChatSession) -> None:
        """Show `session`; the draft of the one before is kept."""
        self.save_draft()
        await self.app.sessions.load(session)
        self.session = session
        session.unseen = False
        self.composer.text = session.draft
        self.turns_changed(session)
        self.sessions_changed()

    def save_draft(self) -> None:
        """Remember what is being typed."""
        session = self.session
        if session is not None and session in self.app.sessions.all and self.composer.text != session.draft:
            self.app.sessions.update(session, draft=self.composer.text)

    def turns_changed(self, session: ChatSession) -> None:
        if session is not self.session:
            return
        self.transcript.set_entries([entry_for(turn) for turn in session.turns if turn.status != "streaming"])
        if session.reply is not None:
            self.transcript.begin(entry_for(session.reply.turn))
        self._show_title()
        self.show_lines()

    def turn_added(self, session: ChatSession, turn: Turn) -> None:
        if session is not self.session:
            return
        self.transcript.begin(entry_for(turn))
        self.wake()

    def reply_waiting(self, session: ChatSession, turn: Turn, text: str) -> None:
        if session is self.session:
            self.transcript.set_waiting(turn.key, one_line(text))

    def reply_text(self, session: ChatSession, turn: Turn, text: str) -> None:
        if session is self.session:
            self.transcript.stream(turn.key, text)

    def reply_ended(self, session: ChatSession, turn: Turn) -> None:
        if session is self.session:
            session.unseen = False
            entry = entry_for(turn)
            self.transcript.end(turn.key, text=turn.text, status=entry.status, stats=entry.stats)
            self.show_lines()
        self.wake()

    def sessions_changed(self) -> None:
        if self.is_mounted:
            self._show_sessions()
            self._show_title()

    def model_changed(self, state: ModelState) -> None:
        self.query_one(Header).show(state, self.snapshot, self.pulse.stalled)
        self.app.model_signal.publish(state)
        self.show_lines()
        if state.status in ("failed", "dead") and self.app.screen.id != "load":  # the dialog says it itself
            self.notice(f"model {state.status}: {state.message}", "error")
        self.wake()

    def bandwidth_changed(self, low: bool) -> None:
        self.transcript.jump_scroll = low
        self.show_lines()

    def notice(self, text: str, level: Level = "info") -> None:
        self.notify(visible(text), severity="information" if level == "info" else level, markup=False)

    # --- drawing -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something goes on: run the half-second tick until nothing does."""
        self._ticker.resume()

    def tick(self) -> None:
        """Twice a second while replies are generated or gauges are seen."""
        if not self.children:
            return  # the program is closing, and has taken the widgets away already
        app = self.app
        self.wake()
        self._ticks += 1
        gauges = self.gauges_visible and self.is_current
        if app.backend is not None and (not app.wire.low or self._ticks % LOW_BANDWIDTH_TICKS == 0):
            snapshot = self._take_snapshot(app.backend, gauges)
            self._show_sessions()
            self.query_one(Header).show(app.replies.model, snapshot, self.pulse.stalled)
            if gauges:
                self._show_gauges(snapshot)
        self._busy = app.backend is not None and (app.replies.active or gauges)
        self.show_lines()
        if not self._busy:
            self._ticker.pause()

    def _take_snapshot(self, backend: Backend, gauges: bool) -> EngineSnapshot:
        stalled = self.pulse.stalled
        self.snapshot = snapshot = self.pulse.check(backend.snapshot(kv_map=gauges))
        self.app.replies.measure(snapshot)
        if self.pulse.stalled and not stalled:
            way = "load the model again with F4" if self.app.link.server is None else "choose another with F9"
            self.notice(f"{NO_ANSWER}: wait, or {way}", "warning")
        return snapshot

    def _show_gauges(self, snapshot: EngineSnapshot) -> None:
        telemetry = self.app.telemetry.snapshot()
        known = [slot.session for slot in snapshot.slots] + [wait.session for wait in snapshot.queue]
        known += snapshot.kv.sessions if snapshot.kv else ()
        self.app.palette.release_others(FOREIGN, known)
        letters = self.app.palette.letters(known)
        for gauge in (self.query_one(GaugePanel), self.query_one(GaugeStrip)):
            if gauge.display:
                gauge.show(snapshot, telemetry, letters)

    def _show_sessions(self) -> None:
        current = self.session.id if self.session is not None else 0
        for widget in (self.session_list, self.query_one(SessionTabs)):
            widget.show(self.app.sessions.all, self._session_line, current)

    def _session_line(self, session: ChatSession) -> SessionLine:
        context = self.app.replies.model.context
        spin = 0 if self.app.wire.low else self._ticks
        key = str(session.id)
        slots = self.snapshot.slots if self.snapshot is not None else ()
        blocks = sum(slot.blocks for slot in slots if slot.session == key)
        live = blocks or session.reply is not None or session is self.session
        letter = self.app.palette.letter(key) if live else ("", "")  # idle ones would use the letters up
        g = self.app.glyphs
        return session_line(session, letter, session is self.session, spin, blocks, context, g)

    def _show_title(self) -> None:
        session = self.session
        if session is not None:
            system = f" · system: {one_line(session.system, 40)}" if session.system else ""
            title = f"{visible(session.name)}{system}"
            if str(self.transcript.border_title) != title:
                self.transcript.border_title = Content(title)

    def show_edge(self) -> None:
        """The edge below the transcript."""
        session = self.session
        last = session.last_reply if session is not None else None
        self.query_one(PaneEdge).show(
            Reading(
                session is not None and session.reply is not None,
                self.where == "transcript",
                self.transcript.new_below,
                reply_figures(last) if last is not None else "",
            )
        )

    def show_lines(self) -> None:
        """Edge, context meter and footer."""
        session, app = self.session, self.app
        self.show_edge()
        if session is not None:
            self.query_one(ContextLine).show(
                None if self.pulse.stalled else context_used(session, self.snapshot),
                app.replies.model.context,
                session.sampling,
                bool(session.system),
                len(self.composer.text),
            )
        rate = (
            f"{app.wire.rate() / 1024:.1f} KiB/s" if self._busy and not app.is_web else ""
        )  # idle, it would show itself
        low = "low bandwidth " if app.wire.low else ""
        self.query_one(Footer).show(self.where, f"{low}{rate}".rstrip(), app.status_text())

    def on_resize(self) -> None:
        framed = self.size.width >= FRAMED_FROM
        for widget in self.query(Chrome):
            widget.set_class(framed, "-framed")
            widget.call_after_refresh(widget.redraw)
        if not self.narrow:
            self.remove_class("-gauges-full")
        self.wake()

    def on_descendant_focus(self) -> None:
        self.show_lines()

    # --- typing --------------------------------------------------------------------------------------------

    @on(Composer.Submitted)
    def submitted(self, event: Composer.Submitted) -> None:
        line = parse_slash(event.text)
        if line is None:
            self.send(literal(event.text))
        elif line.command is None:
            near = f"; did you mean /{line.suggestion}?" if line.suggestion else ""
            self.notice(f"no command /{line.name}{near} (// sends a message that starts with /)", "warning")
            self.composer.text = event.text
        else:
            self.app.run_command(line.command.id, line.argument)

    def send(self, text: str) -> None:
        """Ask; what cannot be asked now goes back into the prompt."""
        session = self.session
        why = refusal(session, self.app.replies.model) if session is not None else "still starting"
        if why or session is None:
            self.notice(why, "warning")
            self.composer.text = text
        elif text.strip():
            session.draft = ""
            self.app.replies.send(session, text)
            self.app.sessions.update(session, draft="")

    @on(Composer.Escaped)
    def escaped(self) -> None:
        if not self.app.actions.stop_reply():
            self.transcript.focus()

    @on(Composer.SlashChanged)
    def slash_changed(self, event: Composer.SlashChanged) -> None:
        self.query_one(SlashMenu).show(event.text)

    @on(Composer.Changed)
    def draft_changed(self) -> None:
        self.show_lines()
        if self._draft_timer is not None:
            self._draft_timer.stop()
        self._draft_timer = self.set_timer(DRAFT_SAVE_S, self.save_draft)

    @on(SessionList.Chosen)
    async def session_chosen(self, event: SessionList.Chosen) -> None:
        await self.app.actions.open_session(event.id)
