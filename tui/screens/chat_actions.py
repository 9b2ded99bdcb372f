"""What the chat's commands do: one method per command id, with "." as "_"; `argument` is what followed a slash."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ... import themes
from ...engine.config import EngineConfig
from ...engine.text import one_line
from ...engine.types import UsageError
from .. import dialogs
from ..editor import edit
from ..sampling import apply_settings
from ..sessions import TITLE_LENGTH, ChatSession, Turn
from ..slash import SlashMenu
from .ask import Ask, EditText
from .chat_entries import reply_statistics

if TYPE_CHECKING:
    from ..app import LmtopApp
    from .chat import ChatScreen


# commands that the transcript carries out itself: its actions
TRANSCRIPT = {
    "transcript.down": "line_down",
    "transcript.up": "line_up",
    "transcript.half_down": "half_down",
    "transcript.half_up": "half_up",
    "transcript.page_down": "page_down",
    "transcript.page_up": "page_up",
    "transcript.top": "home",
    "transcript.bottom": "end",
    "transcript.next": "cursor_next",
    "transcript.previous": "cursor_prev",
    "transcript.block": "next_block",
    "transcript.find_next": "find_next",
    "transcript.find_previous": "find_previous",
}


class ChatActions:
    """The commands of the chat screen."""

    def __init__(self, app: LmtopApp, screen: ChatScreen) -> None:
        self.app = app
        self.screen = screen

    def perform(self, command: str, argument: str) -> Any:
        """Carry out a command of the table; the result may have to be awaited."""
        if command in TRANSCRIPT:
            return getattr(self.screen.transcript, f"action_{TRANSCRIPT[command]}")()
        return getattr(self, command.replace(".", "_"))(argument)

    @property
    def session(self) -> ChatSession:
        """The session shown. UsageError while there is none yet."""
        if self.screen.session is None:
            raise UsageError("still starting")
        return self.screen.session

    # --- prompt --------------------------------------------------------------------------------------------

    def prompt_complete(self, argument: str) -> None:
        first = self.screen.query_one(SlashMenu).first
        if first is not None:
            self.screen.composer.complete(f"/{first.slash} ")
        else:
            self.screen.transcript.focus()

    async def editor_open(self, argument: str) -> None:
        composer = self.screen.composer
        composer.text = await edit(self.app, composer.text)

    # --- sessions ------------------------------------------------------------------------------------------

    async def session_new(self, argument: str) -> None:
        self.screen.save_draft()
        await self.screen.show(await self.app.sessions.create(one_line(argument, TITLE_LENGTH)))
        self.screen.composer.focus()

    async def session_next(self, argument: str) -> None:
        sessions = self.app.sessions.all
        await self.screen.show(sessions[(sessions.index(self.session) + 1) % len(sessions)])

    async def open_session(self, session_id: int) -> None:
        """Show a session of the list."""
        session = next((s for s in self.app.sessions.all if s.id == session_id), None)
        if session is not None:
            await self.screen.show(session)
            self.sessions_leave("")

    async def open_number(self, number: int) -> None:
        """Show the n-th session of the list, from 1."""
        if number <= len(self.app.sessions.all):
            await self.screen.show(self.app.sessions.all[number - 1])

    def sessions_focus(self, argument: str) -> None:
        self.screen.add_class("-list")
        self.screen.session_list.focus()

    def sessions_leave(self, argument: str) -> None:
        self.screen.remove_class("-list")
        self.screen.composer.focus()

    async def sessions_open(self, argument: str) -> None:
        await self.open_session(self.screen.session_list.cursor)

    def sessions_down(self, argument: str) -> None:
        self.screen.session_list.move(1)

    def sessions_up(self, argument: str) -> None:
        self.screen.session_list.move(-1)

    async def sessions_new(self, argument: str) -> None:
        self.screen.remove_class("-list")
        await self.session_new("")

    def sessions_rename(self, argument: str) -> None:
        self._rename(self._pointed())

    def sessions_delete(self, argument: str) -> None:
        self._delete(self._pointed())

    def session_rename(self, argument: str) -> None:
        if argument:
            self.app.sessions.update(self.session, title=one_line(argument, TITLE_LENGTH))
        else:
            self._rename(self.session)

    def session_delete(self, argument: str) -> None:
        self._delete(self.session)

    def _pointed(self) -> ChatSession:
        cursor = self.screen.session_list.cursor
        return next((s for s in self.app.sessions.all if s.id == cursor), self.session)

    def _rename(self, session: ChatSession) -> None:
        def done(title: str | None) -> None:
            if title:
                self.app.sessions.update(session, title=one_line(title, TITLE_LENGTH))

        self.app.push_screen(EditText("title", session.title), done)

    def _delete(self, session: ChatSession) -> None:
        async def done(answer: str | None) -> None:
            if answer == "d":
                await self._deleted(session)

        reply = " The reply being generated is stopped." if session.reply is not None else ""
        question = f"Delete {session.name!r} with all its messages?{reply}"
        self.app.push_screen(Ask(question, [("d", "delete")]), done)

    async def _deleted(self, session: ChatSession) -> None:
        self.app.replies.stop(session)
        await self.app.sessions.delete(session)
        self.app.palette.release(str(session.id))
        if session is self.screen.session:
            others = self.app.sessions.all
            await self.screen.show(others[0] if others else await self.app.sessions.create())

    def session_system(self, argument: str) -> None:
        session = self.session

        def done(text: str | None) -> None:
            if text is not None:
                self.app.sessions.update(session, system=text.strip())
                self.screen.show_lines()

        if argument:
            done("" if argument == "off" else argument)
        else:
            self.app.push_screen(EditText("system prompt", session.system, multiline=True), done)

    # --- replies -------------------------------------------------------------------------------------------

    def stop_reply(self) -> bool:
        """Stop the reply of the session shown; False when there is none."""
        session = self.screen.session
        if session is None or session.reply is None:
            return False
        self.app.flush_events()
        return self.app.replies.stop(session)

    def reply_stop(self, argument: str) -> None:
        if not self.stop_reply():
            raise UsageError("nothing is being generated in this session")

    def reply_regenerate(self, argument: str) -> None:
        self._regenerate(None)

    def transcript_regenerate(self, argument: str) -> None:
        turn = self._selected()
        self._regenerate(turn if turn is not None and turn.role == "assistant" else None)

    def _regenerate(self, turn: Turn | None) -> None:
        if self.session.reply is not None:
            raise UsageError("a reply is being generated: esc stops it")
        if not self.app.replies.regenerate(self.session, turn):
            raise UsageError("nothing to answer yet")

    async def transcript_variant_left(self, argument: str) -> None:
        await self._variant(-1)

    async def transcript_variant_right(self, argument: str) -> None:
        await self._variant(1)

    async def _variant(self, step: int) -> None:
        session, turn = self.session, self._selected() or self.session.last_reply
        if session.reply is not None:
            raise UsageError("a reply is being generated: esc stops it")
        if turn is not None:
            place = session.turns.index(turn)
            if await self.app.sessions.switch_variant(session, turn, step):
                self.screen.transcript.select(session.turns[place].key)

    def stats_show(self, argument: str) -> None:
        turn = self.session.last_reply
        if turn is None or not turn.stats:
            raise UsageError("no statistics yet")
        self.screen.notice(reply_statistics(turn))

    # --- transcript ----------------------------------------------------------------------------------------

    def _selected(self) -> Turn | None:
        entry = self.screen.transcript.selected
        return next((turn for turn in self.session.turns if entry and turn.key == entry.id), None)

    def transcript_stop(self, argument: str) -> None:
        if not self.stop_reply():
            self.screen.composer.focus()

    def transcript_leave(self, argument: str) -> None:
        self.screen.composer.focus()

    def transcript_find(self, argument: str) -> None:
        def done(text: str | None) -> None:
            if text is not None:
                self._find(text)

        self.app.push_screen(EditText("find in this session", ""), done)

    def _find(self, text: str) -> None:
        found = self.screen.transcript.find(text)
        if text and not found:
            self.screen.notice(f"{text!r} is not in this session", "warning")

    def transcript_copy(self, argument: str) -> None:
        self.app.copy(self.screen.transcript.selected_text())

    def transcript_copy_raw(self, argument: str) -> None:
        turn = self._selected() or self.session.last_reply
        if turn is not None:
            self.app.copy(turn.text)

    def copy_reply(self, argument: str) -> None:
        """/copy: the last reply; /copy code: its last code block; /copy N: its n-th; /copy all: everything."""
        last = self.session.last_reply
        if argument == "all":
            turns = self.session.turns
            self.app.copy("\n\n".join(f"**{turn.role}**\n\n{turn.text}" for turn in turns))
            return
        if last is None:
            raise UsageError("no reply to copy yet")
        if not argument:
            self.app.copy(last.text)
            return
        blocks = self.screen.transcript.code_blocks(last.key)
        number = len(blocks) if argument == "code" else int(argument) if argument.isdigit() else 0
        if not 1 <= number <= len(blocks):
            raise UsageError(f"/copy {argument}: the last reply has {len(blocks)} code blocks")
        self.app.copy(blocks[number - 1])

    # --- model ---------------------------------------------------------------------------------------------

    def model_load(self, argument: str) -> None:
        backend = self.app.backend
        if backend is not None and not backend.capabilities.can_load:
            if argument:
                self.app.link.choose(argument)
            else:
                dialogs.open_dialog(self.app, "model.choose")
        elif argument:
            self.app.load_config(with_model(self.app.options.engine, argument))
        else:
            dialogs.open_dialog(self.app, "model.load")

    def model_unload(self, argument: str) -> None:
        if self.app.backend is not None:
            self.app.backend.unload()

    async def servers_open(self, argument: str) -> None:
        if argument:
            await self.app.link.switch(self.app.link.named(argument))
        else:
            dialogs.open_dialog(self.app, "servers.open")

    def sampling_open(self, argument: str) -> None:
        dialogs.open_dialog(self.app, "sampling.open")

    def sampling_set(self, argument: str) -> None:
        if not argument:
            raise UsageError("/set name=value ..., for instance /set temp=0.7 top_p=0.9 max=512")
        self.app.sessions.update(self.session, sampling=apply_settings(argument, self.session.sampling))
        self.screen.show_lines()

    # --- display -------------------------------------------------------------------------------------------

    def gauges_toggle(self, argument: str) -> None:
        screen = self.screen
        off = screen.has_class("-gauges-off")
        if argument in ("on", "off"):
            screen.set_class(argument == "off", "-gauges-off")
        elif argument:
            raise UsageError(f"/gauges {argument}: on or off")
        elif screen.narrow and not off:
            screen.toggle_class("-gauges-full")
        else:
            screen.toggle_class("-gauges-off")
        screen.call_after_refresh(screen.tick)

    def gauges_zoom(self, argument: str) -> None:
        self.screen.gauge_panel.cycle_zoom()

    def theme_set(self, argument: str) -> None:
        if argument:
            self.app.set_theme(argument)
            return
        names = themes.names()
        at = names.index(self.app.theme_name) if self.app.theme_name in names else -1
        for name in [*names[at + 1 :], *names[:at]]:
            try:
                self.app.set_theme(name)
            except UsageError as error:  # a user's file: say what is wrong with it, and go on
                self.screen.notice(str(error), "warning")
            else:
                self.screen.notice(f"theme {name}")
                return

    def wire_lowbw(self, argument: str) -> None:
        wire = self.app.wire
        match argument or ("off" if wire.low else "on"):
            case "on" | "off" | "auto" as mode:
                wire.set_mode(mode)
            case other:
                raise UsageError(f"/lowbw {other}: on, off or auto")
        self.screen.show_lines()


def with_model(config: EngineConfig | None, model: str) -> EngineConfig:
    """The intent of the command line for another model."""
    return replace(config, model=model) if config is not None else EngineConfig(model)
