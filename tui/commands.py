"""The one table of commands: key bindings, slash commands, palette, which-key menu and help all come from it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Where = Literal["app", "chat", "prompt", "transcript", "sessions"]

WHERE_TITLES: dict[Where, str] = {
    "app": "anywhere",
    "chat": "chat",
    "prompt": "prompt",
    "transcript": "transcript",
    "sessions": "session list",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One thing a user can do.

    `keys` are Textual key names. `slash` is the name typed after "/", `usage` what may follow it. `menu` is
    the command's key in the which-key menu. A `priority` key works whatever has the focus. A `native` command
    is carried out by the focused widget itself: it is listed in help, and bound nowhere else.
    """

    id: str
    title: str
    where: Where = "chat"
    keys: tuple[str, ...] = ()
    slash: str = ""
    usage: str = ""
    menu: str = ""
    help: str = ""
    priority: bool = False
    native: bool = False


COMMANDS: tuple[Command, ...] = (
    # anywhere
    Command("help.open", "Help", "app", ("f1",), "help", menu="h", help="keys and commands"),
    Command("menu.open", "Menu", "app", ("ctrl+g",), help="every command by one key"),
    Command("monitor.open", "Monitor", "app", ("f3",), "monitor", menu="m", help="GPUs and processes, full screen"),
    Command("palette.open", "Command palette", "app", menu="p", help="find a command by its name"),
    Command(
        "copy.selection",
        "Copy selection",
        "app",
        ("ctrl+c",),
        help="copy what the mouse or shift+arrows selected; with nothing selected, twice quits",
        priority=True,
    ),
    Command("app.quit", "Quit", "app", ("ctrl+q",), "quit", menu="q", help="save and leave", priority=True),
    # prompt
    Command("prompt.send", "Send", "prompt", ("enter",), native=True),
    Command("prompt.newline", "New line", "prompt", ("ctrl+j", "shift+enter"), native=True),
    Command("prompt.previous", "Earlier prompt", "prompt", ("up",), help="in the first row", native=True),
    Command("prompt.next", "Later prompt", "prompt", ("down",), help="in the last row", native=True),
    Command(
        "prompt.escape",
        "Stop, or go to the transcript",
        "prompt",
        ("escape",),
        help="stops the reply while one is generated",
        native=True,
    ),
    Command("prompt.complete", "Complete the command", "prompt", ("tab",)),
    Command("editor.open", "Open $EDITOR", "chat", ("ctrl+o",), "editor", menu="e", help="write the prompt there"),
    # sessions
    Command("session.new", "New session", "chat", ("ctrl+n",), "new", "[title]", "n", "start another conversation"),
    Command("session.next", "Next session", "chat", ("ctrl+right_square_bracket",), menu="]", help="go round"),
    Command("sessions.focus", "Session list", "chat", ("f2",), "sessions", menu="o", help="show and choose sessions"),
    Command("session.rename", "Rename session", "chat", (), "rename", "[title]", "r", "give it another title"),
    Command("session.delete", "Delete session", "chat", (), "delete", "", "d", "with all its messages; asks first"),
    Command("session.system", "System prompt", "chat", (), "system", "[text | off]", "y", "for the next requests"),
    Command("sessions.open", "Open session", "sessions", ("enter",)),
    Command("sessions.down", "Down", "sessions", ("j", "down")),
    Command("sessions.up", "Up", "sessions", ("k", "up")),
    Command("sessions.new", "New session", "sessions", ("n",)),
    Command("sessions.rename", "Rename", "sessions", ("r",)),
    Command("sessions.delete", "Delete", "sessions", ("d",)),
    Command("sessions.leave", "Back to the prompt", "sessions", ("escape", "i")),
    # the reply
    Command("reply.stop", "Stop", "chat", (), "stop", "", "x", "end the reply, keep its text"),
    Command("reply.regenerate", "Regenerate", "chat", (), "regen", "", "g", "answer again as another variant"),
    Command("copy.reply", "Copy", "chat", (), "copy", "[code | N | all]", "c", "last reply, code block or everything"),
    Command("stats.show", "Statistics", "chat", (), "stats", "", "i", "of the last reply"),
    # transcript
    Command("transcript.down", "Down a line", "transcript", ("j", "down")),
    Command("transcript.up", "Up a line", "transcript", ("k", "up")),
    Command("transcript.half_down", "Half a page down", "transcript", ("ctrl+d",)),
    Command("transcript.half_up", "Half a page up", "transcript", ("ctrl+u",)),
    Command("transcript.page_down", "A page down", "transcript", ("pagedown",)),
    Command("transcript.page_up", "A page up", "transcript", ("pageup",)),
    Command("transcript.top", "First line", "transcript", ("g", "home")),
    Command("transcript.bottom", "Last line, and follow", "transcript", ("G", "end")),
    Command("transcript.next", "Next message", "transcript", ("right_square_bracket",)),
    Command("transcript.previous", "Previous message", "transcript", ("left_square_bracket",)),
    Command("transcript.block", "Next code block", "transcript", ("tab",), help="then y copies it"),
    Command("transcript.copy", "Copy message or code block", "transcript", ("y",)),
    Command("transcript.copy_raw", "Copy raw Markdown", "transcript", ("Y",)),
    Command("transcript.regenerate", "Regenerate", "transcript", ("r",)),
    Command("transcript.variant_left", "Previous variant", "transcript", ("less_than_sign",)),
    Command("transcript.variant_right", "Next variant", "transcript", ("greater_than_sign",)),
    Command("transcript.find", "Find", "transcript", ("slash",)),
    Command("transcript.find_next", "Next match", "transcript", ("n",)),
    Command("transcript.find_previous", "Previous match", "transcript", ("N",)),
    Command("transcript.stop", "Stop the reply", "transcript", ("escape",)),
    Command("transcript.leave", "Back to the prompt", "transcript", ("i", "enter")),
    # model
    Command("model.load", "Load model", "chat", ("f4", "ctrl+l"), "load", "[model]", "l", "choose one, or name it"),
    Command(
        "servers.open",
        "Servers",
        "chat",
        ("f9",),
        "server",
        "[name | URL | local]",
        "v",
        "choose where the model runs",
    ),
    Command("model.unload", "Unload model", "chat", (), "unload", "", "u", "free its memory"),
    Command("sampling.open", "Sampling", "chat", ("f8",), menu="s", help="temperature and the rest"),
    Command("sampling.set", "Set sampling", "chat", (), "set", "name=value ...", "", "e.g. /set temp=0.7 top_p=0.9"),
    # display
    Command("gauges.toggle", "Gauges", "chat", ("ctrl+t",), "gauges", "[on | off]", "a", "memory, KV cache, speed"),
    Command("gauges.zoom", "KV map zoom", "chat", (), "kv", "", "z", "used, pool, physical order"),
    Command("theme.set", "Theme", "chat", (), "theme", "[name]", "t", "without a name: the next one"),
    Command("wire.lowbw", "Low bandwidth", "chat", (), "lowbw", "[on | off | auto]", "b", "fewer bytes to a slow terminal"),
)  # fmt: skip

BY_ID: dict[str, Command] = {command.id: command for command in COMMANDS}
BY_SLASH: dict[str, Command] = {command.slash: command for command in COMMANDS if command.slash}
BY_MENU: dict[str, Command] = {command.menu: command for command in COMMANDS if command.menu}


@dataclass(frozen=True, slots=True)
class SlashLine:
    """A typed line as a command. `name` is what was typed; `command` has that name, or is the only one whose
    name begins so, or is None."""

    name: str
    argument: str
    command: Command | None

    @property
    def suggestion(self) -> str:
        """The nearest command's name, or ""."""
        close = get_close_matches(self.name, list(BY_SLASH), n=1)
        return close[0] if close else ""


def parse_slash(text: str) -> SlashLine | None:
    """`text` as a slash command, or None when it is a message. "//..." is a message that starts with "/"."""
    if not text.startswith("/") or text.startswith("//"):
        return None
    name, _, argument = text[1:].strip().partition(" ")
    begins = [command for slash, command in BY_SLASH.items() if name and slash.startswith(name)]
    found = BY_SLASH.get(name) or (begins[0] if len(begins) == 1 else None)
    return SlashLine(name, argument.strip(), found)


def literal(text: str) -> str:
    """The message that a typed line means: a leading "//" stands for "/"."""
    return text[1:] if text.startswith("//") else text


def complete_slash(text: str) -> list[Command]:
    """Commands whose name starts with what follows "/", while the name is still being typed."""
    if not text.startswith("/") or text.startswith("//") or any(c.isspace() for c in text):
        return []
    return sorted(
        (command for name, command in BY_SLASH.items() if name.startswith(text[1:])), key=lambda c: c.slash
    )
