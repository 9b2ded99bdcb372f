"""Facts about lmtop's keys, slash commands and command line, as data for templates."""

from dataclasses import dataclass, field

from .grammar import words


@dataclass(frozen=True)
class Fact:
    """One thing the demo model knows.

    `nouns` name it ("what is ..."), `verbs` are what people want to do ("how do I ..."), `asks` are whole
    questions; all three are templates. `answers` are what to say, `short` one brief sentence.
    """

    key: str
    answers: tuple[str, ...]
    short: tuple[str, ...]
    nouns: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """A key or slash command: `name` as lmtop writes it, `does` completes "it ..."."""

    name: str
    does: str
    verbs: tuple[str, ...]
    more: str = ""
    spelled: tuple[str, ...] = field(default=())


KEYS = (
    Key("enter", "sends your message", ("{send|submit} {a|my|the} {message|prompt|text|question}", "send",
        "send what i {typed|wrote}"),
        "{To go to a new line without sending|For a line break}, press `ctrl+j`.",
        ("enter", "return", "the enter key", "the return key")),
    Key("ctrl+j", "starts a new line in the prompt", ("{write|type|insert|add|start|make} a {new line|newline|line break|second line}",
        "write {several|two|more|multiple} lines", "go to the next line {without sending|}", "get a new line{ without sending|}",
        "write a multi-line {message|prompt}", "put a line break in my {message|prompt}"),
        "`enter` sends the message."),
    Key("esc", "stops the answer that is being written", ("stop {you|the answer|an answer|a reply|the reply|the output|it|the running answer}",
        "{interrupt|cancel|abort} {you|the answer|an answer|the model|generation|a reply|the generation|the running answer|it}",
        "make {you|it|the model} stop {talking|writing|}", "stop {generating|the generation|generation|the text}",
        "stop you {while|when} you {talk|are talking|write|are writing}", "shut you up", "stop the model", "end the answer early", "halt the {output|answer}"),
        "The text so far is kept. {With no answer running it goes to the transcript|In the prompt, with no answer running, it goes to the transcript}.",
        ("esc", "escape", "the escape key", "Esc", "ESC")),
    Key("ctrl+g", "opens the menu of all actions", ("{open|see|show|find|get} the menu", "see all actions",
        "find {a|some|any} {action|command}", "open the {key menu|which-key menu|action menu|command menu}"),
        "{There, one more key chooses an action|One more key chooses an action, for example `t` for the next theme}."),
    Key("ctrl+n", "starts a new session", ("{start|open|create|make|begin} a {new|fresh|second|another} {session|chat|conversation}",
        "{start|begin} {over|again|fresh}", "open another chat", "get a clean chat", "have two chats", "clear the {chat|screen|conversation}"),
        "`/new` does the same, and the old {session|one} stays in the list."),
    Key("ctrl+]", "goes to the next session", ("{go|switch|jump|move|change|get} to {the next|another|a different|my other} {session|chat|conversation}",
        "{switch|change} {sessions|session|chats|between sessions|between chats|between conversations}", "see my other {chats|sessions}"),
        "`F2` goes to the list of all sessions.", ("ctrl+]", "ctrl ]", "ctrl-]", "control ]", "^]")),
    Key("ctrl+t", "shows or hides the gauges", ("{show|hide|see|toggle|close|open|remove} the {gauges|gauge panel|side panel|meters|panel on the right|right panel}",
        "get rid of the {gauges|panel on the right}", "make room for the {text|chat}", "make the gauges go away"),
        "On a small screen the gauges take the place of the chat. `/gauges` does the same."),
    Key("ctrl+o", "opens your text in an editor", ("{write|edit} my {prompt|message|text} in {an editor|vim|nano|my editor|an external editor|emacs}",
        "open {an|the|my} {external |}editor", "use {my own editor|vim for the prompt}", "write a long {prompt|message}"),
        "It uses the program in your `EDITOR` variable. `/editor` does the same."),
    Key("F1", "opens the help", ("{get|open|see|find|show|get to} {help|the help|the help screen|the help page}", "{see|list|show} {all|all the|the} keys",
        "learn the {keys|shortcuts|keyboard shortcuts|key bindings}", "find out which keys there are"),
        "The help lists every key and command."),
    Key("F2", "goes to the session list", ("{see|open|show|find|get to} {the session list|my sessions|the list of sessions|all sessions|all my chats|my chats}",
        "find an old {session|chat|conversation}", "go back to an {old|older|earlier} {session|chat|conversation}"),
        "There `enter` opens a session, `n` starts one, `r` renames it and `d` deletes it."),
    Key("F3", "opens the monitor", ("{see|open|show|watch|get to} the {monitor|gpu monitor|full monitor|gpu screen}",
        "watch the gpu", "see {gpu usage|what the gpu does|the gpu load|the gpu processes}", "monitor the {gpu|memory|engine}"),
        "`lmtop top` shows the monitor alone."),
    Key("F4", "opens the load dialog", ("open the load {dialog|screen|window}", "choose {a|another|which} model",
        "see {which models|what models} {i have|are there|i can load}", "pick a {model|different model}"),
        "There you choose a model and see how much memory it needs. `ctrl+l` does the same."),
    Key("F8", "opens the sampling panel", ("{open|see|show|find} the sampling {panel|settings|options}",
        "{change|set|adjust|see} the {sampling|sampling settings|sampling options|generation settings}",
        "make {the answers|you} {more|less} {random|creative|careful|deterministic}"),
        "There you set temperature, top-p, top-k, min-p and the seed."),
    Key("ctrl+q", "quits lmtop", ("{quit|exit|leave|close|end} {lmtop|the program|this program|this app|the app|here|this thing|this|}",
        "get out{ of here| of lmtop| of this program| of this|}", "end {lmtop|the program}", "shut down lmtop", "close {the window|everything}"),
        "Your sessions are saved."),
    Key("ctrl+c", "copies the selected text", ("copy {the selection|selected text|what i selected|marked text}",),
        "Select with the mouse or with shift and the arrow keys. With nothing selected, pressing it twice quits."),
    Key("ctrl+l", "opens the load dialog", (), "`F4` does the same."),
    Key("tab", "completes a slash command", ("complete a {slash |}command",), "In the transcript it goes to the next code block, and `y` copies it."),
    Key("up", "brings back an earlier prompt", ("get {back|again} {what i typed|my last message|the last thing i typed|my last prompt|an earlier prompt}",
        "{repeat|edit|see|recall} my {last|previous|earlier} {prompt|message|question}", "get {my last message|my last prompt|the last thing i typed} back"),
        "It works in the first row of the prompt; `down` goes forward again.", ("up", "the up key", "the up arrow", "arrow up", "the arrow up key")),
    Key("y", "copies the selected message", ("copy {an answer|the answer|a message|a reply|text|your answer|the last reply|the response}",
        "get {the text|an answer|this text|your answer} {to|into} {the|my} clipboard", "put the answer on the clipboard"),
        "It works in the transcript; press `esc` first to leave the prompt. `/copy` does it from the prompt."),
    Key("r", "generates the answer again", ("{regenerate|redo|repeat|retry} {an answer|the answer|the last answer|the reply|a response|the response|}",
        "get {another|a different|a new} {answer|reply|response}{ to the same question|}", "ask for a new {version|answer}", "generate the answer again"),
        "It works in the transcript; from the prompt use `/regen`. The old answer is kept too."),
    Key("<", "goes to the previous variant of an answer", ("see {the|a} {previous|older|other|first} {version|variant} of {the|an} answer",
        "go back to the {old|first|previous} answer{ after regenerating|}", "{switch|choose} between {variants|versions|the answers}",
        "see the {old|other} answer{ again|}", "compare the {variants|versions}"),
        "`>` goes to the next one. Both work in the transcript; `esc` leads there.", ("<", "the < key", "`<`")),
    Key(">", "goes to the next variant of an answer", (), "`<` goes to the previous one. Both work in the transcript.", (">", "the > key", "`>`")),
    Key("/", "searches in the transcript", ("{search|find something|find a word|find text|look for a word} {in|inside} the {chat|transcript|conversation|text|session}",
        "search", "search {the |my |}{chat|messages|conversation}", "find {a word|text|something} in {this chat|the answer|my messages}"),
        "Press `esc` first to leave the prompt. `n` goes to the next match, `N` to the one before.", ("the slash key", "the / key in the transcript")),
    Key("j", "goes down a line in the transcript", (), "`k` goes up a line, `g` to the first line and `G` to the last.", ("the j key", "the key j", "`j`", "key j")),
    Key("k", "goes up a line in the transcript", (), "`j` goes down a line, `g` to the first line and `G` to the last.", ("the k key", "the key k", "`k`", "key k")),
    Key("i", "goes from the transcript back to the prompt", ("{get|go} {back|out of the transcript} to the {prompt|input}", "leave the transcript"),
        "`enter` does it too. `esc` leads from the prompt to the transcript."),
    Key("ctrl+d", "goes half a page down in the transcript", (), "`ctrl+u` goes half a page up."),
    Key("ctrl+u", "goes half a page up in the transcript", ("{go|move|scroll} {a page|half a page} up",), "`ctrl+d` goes half a page down."),
)  # fmt: skip

COMMANDS = (
    Key("/new", "starts a new session", (), "`ctrl+n` does the same."),
    Key("/load", "opens the load dialog", (), "`F4` does the same. `/load NAME` loads that model at once."),
    Key("/unload", "unloads the model and frees its memory", ("{unload|remove|drop} {a|the|this} model{ from memory|}", "free the memory{ of the model|}"), "Load one again with `F4`."),
    Key("/stop", "stops the answer that is being written", (), "`esc` does the same."),
    Key("/regen", "generates the last answer again", (), "In the transcript, `r` does the same."),
    Key("/system", "sets the system prompt of this session", ("{set|change|write|give you|edit|use|add} {a|the|my} system {prompt|message}",
        "{tell|instruct} you how to behave", "give you {a role|instructions}", "make you {a pirate|speak chinese|answer briefly}"),
        "For example: `/system Answer in one sentence.` `/system off` removes it."),
    Key("/set", "changes a sampling value", ("{set|change} {a|one} sampling {value|parameter}", "set the temperature to {0|1|0.5|zero|0.2}",
        "{limit|change} the length of {the answers|an answer}", "set {max tokens|the maximum number of tokens}"),
        "For example: `/set temp=0.7 top_p=0.9 max=512`."),
    Key("/theme", "changes the theme", ("{change|set|switch|pick} {the|my|a} {theme|colours|colors|colour scheme|color scheme}",
        "{get|use|have|switch to|want} {a light|a dark|another|a different|the light|the dark|a high contrast} {theme|mode}",
        "make {it|the screen|lmtop} {dark|light|brighter|darker}", "use other colours"),
        "For example: `/theme light`. There are `dark`, `light`, `contrast` and `ansi`; without a name it takes the next one."),
    Key("/copy", "copies the last answer", ("copy {a code block|the code|the whole chat|everything|only the code}", "{export|share} {a|the|this} {chat|conversation|session}"),
        "`/copy code` takes its last code block, `/copy all` the whole conversation."),
    Key("/rename", "renames this session", ("{rename|name|give a name to|give a title to} {a|the|this|my} {session|chat|conversation}", "change the {title|name} of {a|the|this} {session|chat}"),
        "For example: `/rename shopping list`. In the session list, `r` does the same."),
    Key("/delete", "deletes this session", ("{delete|remove|erase|throw away} {a|the|this|an old|my} {session|chat|conversation}", "delete {my history|my messages|old chats}"),
        "All its messages go too, so it asks first. In the session list, `d` does the same."),
    Key("/stats", "shows the statistics of the last answer", ("see {the|all} {statistics|figures|numbers} {of an|of the|of your} answer", "see how long {the answer|it} took"),
        "It tells the tokens, the seconds, tokens per second and what came from the prefix cache."),
    Key("/kv", "changes the zoom of the KV block map", ("zoom the {block |kv |}map", "zoom {in|out}{ on the map|}", "see the whole {pool|cache} in the map"), "There are three: used, pool and physical order."),
    Key("/gauges", "shows or hides the gauges", (), "`ctrl+t` does the same."),
    Key("/monitor", "opens the monitor", (), "`F3` does the same."),
    Key("/sessions", "goes to the session list", (), "`F2` does the same."),
    Key("/editor", "opens your text in an editor", (), "`ctrl+o` does the same."),
    Key("/lowbw", "sends fewer bytes to a slow terminal", ("use lmtop over a slow {line|connection|ssh connection|network}", "save {bandwidth|traffic|bytes}", "make {it|lmtop|the screen} {faster|smoother} over ssh", "turn on low bandwidth{ mode|}"),
        "It takes `on`, `off` or `auto`: `/lowbw on`."),
    Key("/help", "shows the help", (), "`F1` does the same."),
    Key("/quit", "quits lmtop", (), "`ctrl+q` does the same."),
)  # fmt: skip

UNKNOWN_KEYS = words(
    """ctrl+b|ctrl+s|F5|F6|F7|F9|F10|F11|F12|ctrl+1|alt+x|shift+F3|ctrl+5|ctrl+shift+t|alt+enter|print screen|
    caps lock|scroll lock|the windows key|alt+f4|insert|ctrl+4|ctrl+9|alt+tab|F13|pause|alt+q|alt+2"""
)

KEY_TABLE = """| key | action |
|---|---|
| `enter` | send |
| `ctrl+j` | new line |
| `esc` | stop the answer |
| `ctrl+n` | new session |
| `ctrl+]` | next session |
| `ctrl+g` | menu |
| `ctrl+t` | gauges |
| `F1` | help |
| `F4` | load a model |
| `ctrl+q` | quit |"""

FUNCTION_KEYS = """- `F1` help
- `F2` sessions
- `F3` monitor
- `F4` load a model
- `F8` sampling"""

COMMAND_LIST = """- `/new` starts a session
- `/load` loads a model
- `/stop` stops the answer
- `/regen` generates it again
- `/system` sets the system prompt
- `/set` changes a sampling value
- `/theme` changes the theme
- `/copy` copies the last answer
- `/help` shows all commands
- `/quit` leaves"""

LISTS = (
    Fact("keys", (f"{{These are the main keys|The keys you need most}}:\n\n{KEY_TABLE}\n\n`F1` {{shows all of them|lists the rest}}.",),
        ("`enter` sends, `esc` stops, `ctrl+g` opens the menu, `F1` shows all keys.",),
        ("the keys", "the {keyboard |}shortcuts", "the {key|keyboard} bindings", "lmtop's keys"), (),
        ("{which|what} {keys|shortcuts|keyboard shortcuts|key bindings|hotkeys} {are there|can i use|do you know|exist|does lmtop have}",
         "{show|list|give|tell} me {all |}{the |}{keys|shortcuts|key bindings|hotkeys}", "{keys|shortcuts|hotkeys|key bindings|keyboard}",
         "list {all |the |}{keys|shortcuts}", "what can i press", "{show|make} {me |}a table of {the |}{keys|shortcuts}",
         "which buttons are there", "how do i {control|operate|use|navigate} {lmtop|this|this program|this app}")),
    Fact("function_keys", (f"{{The function keys are|These are the function keys}}:\n\n{FUNCTION_KEYS}",),
        ("`F1` help, `F2` sessions, `F3` monitor, `F4` load, `F8` sampling.",),
        ("the function keys", "the F keys"), (),
        ("{which|what} function keys {are there|exist|can i use}", "list {the|all} function keys", "what do the {F|function} keys do")),
    Fact("commands", (f"{{The most used commands are|You can type these commands, and some more|These are the main slash commands}}:\n\n{COMMAND_LIST}",),
        ("Type `/` in the prompt and the commands are listed, for example `/new`, `/load`, `/set`, `/theme` and `/quit`.",),
        ("{the |}slash commands", "{the |}commands"), (),
        ("{which|what} {slash |}commands {are there|can i use|do you know|exist|can i type|does lmtop have}",
         "{show|list|give|tell} me {all |}{the |}{slash |}commands", "list {the|all} {slash |}commands", "what can i type after the slash",
         "what does the slash do", "commands", "slash commands")),
)  # fmt: skip
