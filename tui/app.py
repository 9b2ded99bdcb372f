"""The terminal program: it owns history, sessions, bridge, wire and the way out; screens only show them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App, SystemCommand
from textual.screen import Screen
from textual.signal import Signal

from .. import themes
from ..engine.client import Backend
from ..engine.config import EngineConfig
from ..engine.faults import Faults
from ..engine.types import Event, LmtopError, ModelState, SamplingParams
from . import clipboard, crash, paint, paste, signals
from .app_actions import AppActions
from .bridge import LOW_BANDWIDTH_S, NORMAL_S, Bridge
from .commands import BY_ID, COMMANDS
from .dialogs import open_dialog
from .keys import bindings
from .link import Link
from .presets import Presets
from .render.glyphs import Glyphs, glyphs
from .render.kvmap import OwnerPalette
from .replies import Replies
from .screens.chat import ChatScreen
from .screens.chat_actions import ChatActions, with_model
from .sessions import Sessions
from .store import Store
from .tab import in_tab
from .wire import Mode, TerminalDriver, Wire

if TYPE_CHECKING:
    from ..engine.arguments import Options
    from ..engine.servers import Server
    from ..engine.telemetry import Sensors, Telemetry

CLOSE_S = 1.2  # what the engine gets to end in, of the two seconds a signal leaves
INTERNAL_ERROR = 70


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What the program starts with. `model` None: none is loaded yet. `history`, `presets` None: nothing is kept on disk.
    `engine` is the intent for any model that is loaded. `server`: talk to it, not to this machine; `servers`: begin
    with choosing one. `backend`, `telemetry` and `clock` replace the real ones in tests."""

    model: str | None = None
    engine: EngineConfig | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    system: str = ""
    history: Path | None = None
    presets: Path | None = None
    require_history: bool = False
    theme: str | None = None
    ascii: bool = False
    mouse: bool = True
    lowbw: Mode = "auto"
    server: Server | None = None
    servers: bool = False
    backend: Backend | None = None
    telemetry: Telemetry | None = None
    clock: Callable[[], float] = time.time

    @classmethod
    def from_options(cls, options: Options) -> AppOptions:
        """The command line's part."""
        from .history import default_path
        from .link import server_of
        from .presets import default_path as presets_path

        values = options.values
        path = None
        if values["save"]:
            path = Path(values["history_file"]) if values["history_file"] else default_path()
        return cls(
            model=options.model,
            engine=options.engine_config(options.model or "demo"),
            sampling=options.sampling(),
            system=values["meta_instruction"],
            history=path,
            presets=presets_path() if values["save"] else None,
            require_history=values["require_history"],
            theme=values["theme"],
            ascii=values["ascii"],
            mouse=values["mouse"],
            lowbw=values["low_bandwidth"],
            server=server_of(options) if options.command == "connect" else None,
            servers=options.command == "connect" and options.extra["server"] is None,
        )


class LmtopApp(App[None], inherit_bindings=False):
    """Commands arrive at `run_command`, engine events at `deliver`; `leave` is the only way out."""

    TITLE = "lmtop"
    CSS_PATH = "app.tcss"
    BINDINGS = bindings("app")
    COMMAND_PALETTE_BINDING = ""
    ENABLE_COMMAND_PALETTE = True

    def __init__(self, options: AppOptions) -> None:
        # NO_COLOR: the terminal's own colours, which Textual then takes away; else it would paint in grey
        driver = None if in_tab() else TerminalDriver  # None: Textual's own for a tab
        super().__init__(driver_class=driver, ansi_color=True if "NO_COLOR" in os.environ else None)
        self.options = options
        self.wire = Wire(options.lowbw, options.ascii)
        self.wire.changed = self._bandwidth_changed
        self.store = Store(options.history, self._not_saved, options.require_history)
        self.sessions = Sessions(self.store, options.sampling, options.system)
        self.palette = OwnerPalette()
        self.backend: Backend | None = None
        self.link: Link
        self.engine = options.engine or EngineConfig("demo")  # the newest intent
        self.presets = Presets(options.presets)
        self.replies: Replies
        self.telemetry: Sensors
        self.model_signal: Signal[ModelState] = Signal(self, "model")  # each state, in order
        self.chat = ChatScreen()
        self.actions = ChatActions(self, self.chat)
        self.own_actions = AppActions(self)
        self.theme_name = themes.DEFAULT
        self.failure: BaseException | None = None
        self.crash_log: Path | None = None
        self.animation_level = "none"
        self._bridge: Bridge | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._route: clipboard.Route | None = None
        self._faults = Faults.from_environment()

    @property
    def ascii(self) -> bool:
        """Whether to draw with ASCII characters only."""
        return self.options.ascii

    @property
    def glyphs(self) -> Glyphs:
        """The characters that the terminal can show."""
        return glyphs(self.ascii)

    def set_theme(self, name: str) -> None:
        """Show the theme `name`. UsageError when there is none, or its file is wrong."""
        theme = themes.load(name)
        self.register_theme(theme)
        self.theme = theme.name
        self.theme_name = name

    def status_text(self) -> str:
        """The status line's left part: where we are, and how saving goes."""
        where = "ssh" if os.environ.get("SSH_CONNECTION") else "local"
        kept = {"rw": "history on", "ro": "history read-only", "memory": "history off"}
        saved = kept[self.store.history.mode] if self.store.is_open else "starting"
        colours = self.console.color_system or "no colour"
        return f" {self.glyphs.dot} ".join((where, os.environ.get("TERM", ""), colours, saved))

    # --- start ---------------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        few_colours = self.console.color_system == "standard" and not self.is_headless
        name = self.options.theme or themes.DEFAULT
        self.set_theme("ansi" if few_colours and name == themes.DEFAULT else name)
        if not self.is_headless:
            signals.install(self.leave)
        asyncio.get_running_loop().set_exception_handler(self._loop_exception)
        self.push_screen(self.chat)
        self.call_after_refresh(self.run_worker, self._start)

    async def _start(self) -> None:
        """After the first frame: history, engine, sessions. Everything slow runs on other threads."""
        try:
            await self.store.open()
        except LmtopError as error:
            self.failure = error
            self.exit(return_code=error.exit_code)
            return
        self.replies = Replies(self.sessions, self.options.clock)
        self.link = Link(self, self.options.backend, self.options.telemetry)
        try:
            await self.link.use(self.options.server)
        except LmtopError as error:
            self.failure = error
            self.exit(return_code=error.exit_code)
            return
        self.sessions.view = self.chat
        more = await self.sessions.open()
        prompts = await self.store.attempt(self.store.history.prompts)
        self.chat.composer.prompts[:0] = reversed(prompts or [])
        await self.chat.show(await self.sessions.create())
        self.chat.tick()
        if self.options.servers:
            open_dialog(self, "servers.open")
        elif self.options.model is not None:
            self.load_config(with_model(self.options.engine, self.options.model))
        elif self.replies.model.status == "none" and self.options.server is None:
            open_dialog(self, "model.load", welcome=True)
        while more:
            more = await self.sessions.open()

    def attach(self, backend: Backend, telemetry: Sensors) -> None:
        """Talk to `backend` from now on. What is open on the one before ends, with the text that it has."""
        if self._bridge is not None:
            self._bridge.flush()
        bridge = Bridge(backend, self.deliver)
        bridge.interval = LOW_BANDWIDTH_S if self.wire.low else NORMAL_S
        bridge.start()
        self.replies.use(backend, bridge.mailbox)
        if self._bridge is not None:
            self._bridge.stop()
        self.backend, self.telemetry, self._bridge = backend, telemetry, bridge
        self.chat.begin(self.link.server is None)

    def load_config(self, config: EngineConfig) -> None:
        """Load a model in place of the present one."""
        self.engine = config
        if self.backend is not None:
            self.backend.load(config)

    # --- events and commands -------------------------------------------------------------------------------

    def deliver(self, events: list[Event]) -> None:
        """What the bridge drained, on the event loop."""
        try:
            self.replies.deliver(events)
        except Exception as error:  # noqa: BLE001 - a callback of the loop has nobody else to tell
            self._handle_exception(error)

    def flush_events(self) -> None:
        """Take at once what the engine has said."""
        if self._bridge is not None:
            self._bridge.flush()

    async def action_command(self, command: str) -> None:
        await self._run(command, "")

    def run_command(self, command: str, argument: str = "") -> None:
        """Carry out a command of the table soon; what cannot be done is said in a notice."""
        self.call_later(self._run, command, argument)

    async def _run(self, command: str, argument: str) -> None:
        self._faults("command")
        owner = self.own_actions if BY_ID[command].where == "app" else self.actions
        try:
            result = owner.perform(command, argument)
            if isawaitable(result):
                await result
        except LmtopError as error:
            self.chat.notice(str(error), "warning")

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The command palette: every command that needs no place to point at."""
        for command in COMMANDS:
            if command.where in ("app", "chat") and command.id != "palette.open":
                yield SystemCommand(
                    command.title, command.help or command.title, lambda id=command.id: self.run_command(id)
                )
        for name in themes.names():
            yield SystemCommand(
                f"Theme {name}", "colours", lambda name=name: self.run_command("theme.set", name)
            )

    def copy(self, text: str) -> None:
        """To the clipboard of the user's terminal; says so. UsageError when it is too long."""
        if not text:
            return
        if self._route is None:
            self._route = clipboard.find_route()
        sequence = clipboard.sequence(text, self._route)
        self._clipboard = text  # for pasting inside the program
        if self._route == "tmux":
            clipboard.to_tmux(text)
        elif self._driver is not None:
            self._driver.write(sequence)
        self.chat.notice(f"copied {len(text)} characters")

    def copy_to_clipboard(self, text: str) -> None:
        """Textual's own widgets copy through here."""
        with contextlib.suppress(LmtopError):
            self.copy(text)

    def _bandwidth_changed(self) -> None:
        if self._bridge is not None:
            self._bridge.interval = LOW_BANDWIDTH_S if self.wire.low else NORMAL_S
        self.chat.bandwidth_changed(self.wire.low)

    def _not_saved(self, text: str) -> None:
        self.chat.notice(text, "warning")

    # --- the way out ---------------------------------------------------------------------------------------

    async def _on_exit_app(self) -> None:
        """A tab that was closed comes here without having asked: save first."""
        if self.is_web and self._leaving is None:
            self.leave(0)
        else:
            await super()._on_exit_app()

    def leave(self, code: int) -> None:
        """Stop, save and end with `code`; once."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave(code))

    async def _leave(self, code: int) -> None:
        await self._save_all()
        if self.backend is not None:
            await self.link.close(CLOSE_S)
        self.exit(return_code=code)

    async def _save_all(self) -> None:
        """Keep what was generated and typed. Nothing is generated after this."""
        if self._bridge is not None:
            self._bridge.flush()
            self.replies.interrupt()
            self._bridge.stop()
        if self.store.is_open:
            self.chat.save_draft()
        await self.store.close()

    def _loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            self._handle_exception(error)

    def _fatal_error(self) -> None:
        """Instead of Textual's screen of tracebacks and local variables: save, log, one line, code 70."""
        if self.failure is None:
            self.failure = self._exception or RuntimeError("unknown")
            self.crash_log = crash.write_log(self.failure) if not self.is_headless else None
            with contextlib.suppress(Exception):
                self.replies.interrupt()
                self.chat.save_draft()
            self.store.close_now()
        self._close_messages_no_wait()

    def panic(self, *renderables: object) -> None:
        """Textual's threads report here, with a traceback already rendered."""
        self._exception = self._exception or RuntimeError("the terminal could not be read")
        self._fatal_error()


def run_app(options: AppOptions) -> int:
    """Run the terminal program; returns its exit code: 0, 128 + n after signal n, 70 after a bug.

    LmtopError before the first frame, such as a history that belongs to something else, is raised.
    """
    themes.load(options.theme or themes.DEFAULT)  # a bad one is refused while the terminal is still as it was
    paint.install()
    paste.install()
    app = LmtopApp(options)
    app.run(mouse=options.mouse)
    if isinstance(app.failure, LmtopError):
        raise app.failure
    if app.failure is not None:
        print(crash.crash_line(app.failure, app.crash_log), file=sys.stderr)
        return INTERNAL_ERROR
    return app.return_code or 0
