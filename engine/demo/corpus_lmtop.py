"""Facts about the program lmtop: what it is, its command line, where things are kept."""

from .corpus_keys import Fact

_CHAT = "```sh\nlmtop chat MODEL\n```"
_EXAMPLE = "```sh\nlmtop chat ~/models/my-model\n```"

LMTOP = (
    Fact("lmtop", (
        "lmtop is a terminal program to chat with a local language model and to watch the machine it runs on. It has its own engine{, with several sessions at once|}.",
        "lmtop is a chat, a monitor and an engine in one terminal program:\n\n- **chat** with several sessions at once\n- **monitor** for the GPU, memory and KV blocks\n- **engine** that runs the model"),
        ("A terminal program to chat with a local model and watch the engine at work.",),
        ("lmtop", "this program", "this app", "this tool", "{the |this |}lmtop {program|app|tool}", "LMTOP"), (),
        ("what am i {using|looking at}", "{explain|describe|show} lmtop{| to {a beginner|me|my mother}}", "tell me about {this program|lmtop}", "what program is this", "what can lmtop do", "what is lmtop {good |}for", "why should i use lmtop", "where am i", "what is this",
         "what does lmtop do", "features of lmtop", "what does the name lmtop mean")),
    Fact("load", (
        f"Press `F4` or type `/load`, {{choose a model|pick one}} and press load. Or start lmtop with it:\n\n{_CHAT}\n\nMODEL is a local Hugging Face directory or a hub id.",
        f"{{There are two ways|You can do it in two ways}}. Here in the program, press `F4` or type `/load`. From the shell, give its folder or hub id:\n\n{_EXAMPLE}",
        f"`F4` opens the load dialog. {{It lists the models on this machine and predicts the memory they need|There you can choose a model}}. In the shell it is:\n\n{_CHAT}"),
        ("Press `F4`, type `/load`, or start `lmtop chat MODEL`.",),
        ("loading a model", "a real model"),
        ("load a {real |bigger |better |different |new |large |}model", "{use|run|start|try|open|get} {a real|another|a bigger|a better|a different|my own|a proper|a smarter} model",
         "{switch|change} {the |}models{| here}", "{use|load|run} {a llama|llama|qwen|mistral|a qwen|internlm|phi|a hugging face} model", "load {qwen|llama|mistral|a hugging face model|a checkpoint|something smarter}",
         "replace you{ with a real model|}", "chat with a {real|better|bigger|smarter} model", "download a model", "load a local {model|directory|folder}", "get a smarter answer"),
        ("how do i get a real {model|answer}", "where do models come from", "can {lmtop|it|you} {run|load} {other|real|bigger} models", "{load|i need|i want|give me} a {real|better|bigger} model")),
    Fact("which_models", (
        "lmtop runs models of the Llama kind: Llama, Mistral, Qwen, InternLM, Yi, Baichuan, ChatGLM, Phi and more. They come as a Hugging Face directory or a hub id.",
        "Many families work: Llama, Qwen, Mistral, InternLM, Phi and others. {`lmtop list` shows what is on this machine|`F4` shows those on this machine}."),
        ("Llama, Qwen, Mistral, InternLM, Phi and other families.",), ("the supported models", "{the |}model families"), (),
        ("which models {are supported|work|can i use|can i load|does lmtop support|can lmtop run|do you support}", "{does lmtop|can lmtop|can i} {support|run|use} {llama|qwen|mistral|internlm|phi|other models}",
         "list of supported models")),
    Fact("chat_cmd", (
        f"`lmtop chat MODEL` opens the chat with that model. {{MODEL is a local Hugging Face directory, a hub id, or `demo`|With `demo` you get me}}.\n\n{_EXAMPLE}",),
        ("It opens the chat with a model.",), ("`lmtop chat`", "lmtop chat", "the chat command", "lmtop chat MODEL"), ("start a chat from the {shell|command line|terminal}",),
        ("how do i start lmtop with a model", "what does lmtop chat do")),
    Fact("demo_cmd", (
        "`lmtop chat demo` starts a chat with me, the built-in model. {Nothing has to be downloaded|It needs no download and no GPU}.",),
        ("It starts the chat with me.",), ("`lmtop chat demo`", "lmtop chat demo", "demo", "the demo model", "the demo"), ("start {the demo|you|the built-in model}",), ("what does demo mean",)),
    Fact("top_cmd", (
        "`lmtop top` shows the monitor alone: every NVIDIA GPU with utilisation, memory, temperature, power and processes. {It works without a GPU too|Without a GPU it shows CPU and RAM}.",),
        ("It is the monitor alone.",), ("`lmtop top`", "lmtop top", "the top command", "the monitor"), ("watch {the gpu|my gpus} without {a chat|chatting}",),
        ("what does lmtop top {show|do}", "can i use the monitor alone")),
    Fact("generate_cmd", (
        "`lmtop generate MODEL` answers one prompt and ends, {so it is good for scripts|which suits scripts and pipes}. The prompt is an argument or comes from standard input:\n\n```sh\necho \"Tell me a story\" | lmtop generate demo\n```\n\n`--json` prints one JSON object.",),
        ("It answers one prompt and ends; good for scripts.",), ("`lmtop generate`", "lmtop generate", "the generate command"),
        ("use lmtop in a {script|pipe|shell script}", "{get|print} {json|one answer}{ from lmtop|}", "run lmtop without the screen", "pipe text into lmtop"),
        ("what does lmtop generate do", "does lmtop work in {a pipe|pipes|scripts}", "what does --json do", "does generate read stdin")),
    Fact("list_cmd", (
        "`lmtop list` shows the models it can find, with family, size and context: the built-in one, those in the Hugging Face cache and in the folders you configured.",),
        ("It lists the models on this machine.",), ("`lmtop list`", "lmtop list", "the list command"), ("{list|see|show} {all |the |my |}models", "see which models are {here|on this machine|installed}"),
        ("which models {do i have|are installed|are on this machine}", "what does lmtop list do")),
    Fact("doctor_cmd", (
        "`lmtop doctor` checks this machine: packages, memory, GPU, terminal and folders, and lets the engine answer once. {Run it first when something does not work|It says what will not work}.",),
        ("It checks your machine.",), ("`lmtop doctor`", "lmtop doctor", "the doctor command", "the doctor"), ("check {my|the} {machine|installation|setup}", "find out {why|what} {it does not work|is wrong}"),
        ("lmtop does not work", "something is {broken|wrong}{ with lmtop|}", "why does it not work", "why is my gpu not {found|used|seen}", "it is broken", "there is a problem with lmtop", "lmtop {crashes|crashed|hangs}")),
    Fact("command_line", (
        "The commands are:\n\n- `lmtop` opens the start screen\n- `lmtop chat MODEL` opens a chat\n- `lmtop generate MODEL` answers one prompt\n- `lmtop top` is the monitor\n- `lmtop list` lists models\n- `lmtop doctor` checks the machine",),
        ("`lmtop`, `lmtop chat`, `lmtop generate`, `lmtop top`, `lmtop list`, `lmtop doctor`.",), ("the command line", "{the |}shell commands", "{the |}subcommands"), ("use lmtop from the {shell|command line}",),
        ("which {shell |command line |}commands does lmtop have", "what can i type in the shell", "list the subcommands", "how do i start lmtop", "how do i run lmtop")),
    Fact("plain", (
        "`lmtop chat MODEL --plain` chats without the full screen, so it works in pipes and simple terminals. Press enter twice to send; `exit` leaves and `end` starts a new conversation.",),
        ("Chat without the full screen: enter twice sends, `exit` leaves.",), ("--plain", "`--plain`", "plain mode", "the plain {mode|chat|flag|option}"), ("{chat|use lmtop} without {the full screen|a screen|colours}", "chat in a simple terminal"),
        ("is there a simple mode", "what does --plain do", "how do i leave plain mode", "how do i send in plain mode")),
    Fact("history", (
        "All sessions are kept in a SQLite database on this machine. Your message is saved before I answer, and my answer at least every half second, so even a killed program loses almost nothing.",
        "Chats are stored in a local SQLite database. {They survive a crash or a kill|Even after a crash your text is there}. `F2` shows the sessions."),
        ("In a SQLite database on this machine; it survives a crash.",), ("{the |my |}{chat |}history", "{the |}database", "SQLite"), ("find my {history|old messages}", "save {a|the|this|my} {chat|conversation|session}", "keep my {chats|history}"),
        ("where {is|are} {my history|the history|my chats|my sessions|my messages|conversations|the chats} {kept|stored|saved}", "are my {chats|messages|sessions} saved", "is this {saved|stored}{ anywhere|}",
         "what happens {if|when} {lmtop crashes|i kill lmtop|the power goes out|i close the terminal|it crashes|lmtop gets killed}", "do i lose {my text|my chats|anything} {when i quit|if it crashes}", "does it save {automatically|my chat}")),
    Fact("themes", (
        "There are four themes: `dark`, `light`, `contrast` and `ansi`. {Type `/theme light` for the light one|For example, `/theme light` sets the light one}. You can write your own as a TOML file too.",
        "Type `/theme` and a name: `dark`, `light`, `contrast` or `ansi`, which uses the colours of your terminal. {A theme is a small TOML file, so you can make your own|`NO_COLOR` switches colours off}."),
        ("Type `/theme` and `dark`, `light`, `contrast` or `ansi`.",), ("themes", "{the |}{colour|color} themes", "the colours", "a theme"), ("{make|write|add} my own theme",),
        ("which themes {are there|exist|do you have|can i use}", "what themes", "i {want|need|prefer} {light|dark} mode", "i do not like {the|these} {colours|colors}", "how does the ansi theme look", "is there a {dark|light|high contrast} {mode|theme}", "{dark|light} mode", "can i change the {colours|colors}", "the colours {hurt my eyes|are ugly}")),
    Fact("ascii", (
        "Start lmtop with `--ascii` and it draws with plain ASCII signs only. `NO_COLOR` switches the colours off.",), ("`--ascii` draws with ASCII only.",), ("--ascii", "`--ascii`", "NO_COLOR", "ascii mode"), ("switch off {colours|colors}", "turn off {colours|colors}"),
        ("my terminal shows {strange|odd|broken|wrong} {signs|characters|symbols}", "does it work without colours", "what does --ascii do")),
    Fact("config", (
        "lmtop reads `config.toml` in its configuration folder. Every flag is a key there and a variable `LMTOP_NAME` too. {`lmtop --help` says where the file lies|`lmtop chat --help` lists the flags}.",
        "Settings live in `config.toml`; `lmtop --help` names its place. For example:\n\n```toml\n[ui]\ntheme = \"light\"\n\n[sampling]\ntemperature = 0.5\n```"),
        ("`config.toml`; `lmtop --help` says where it is.",), ("{the |}config{uration|} {file|}", "{the |}settings{ file|}", "TOML", "config.toml", "the toml file", "{the |}environment variables"), ("configure lmtop", "change {the |}{settings|defaults|configuration}", "set a default{ theme| temperature|}"),
        ("where is the {config|configuration|settings file|config file}", "is there a config{uration|} file", "can i configure {it|lmtop}", "what can i configure", "where does lmtop look for its {settings|config}")),
    Fact("gpu", (
        "lmtop watches NVIDIA GPUs: utilisation, memory, temperature, power and clocks. {`F3` or `lmtop top` shows it all|Press `F3` to see all of it}. What cannot be read is shown as n/a.",),
        ("`F3` shows utilisation, memory, temperature and power of each GPU.",), ("the gpu {gauge|bar|panel|gauges|display}", "the gauges", "gpu utilisation", "gpu utilization", "{the |}gpu temperature"), ("see the {gpu temperature|temperature of the gpu|power of the gpu|utilisation}",),
        ("what do the gauges {show|mean}", "which gpus are {supported|shown}", "why does it {say|show} n/a", "what does n/a mean", "what is shown on the right")),
    Fact("cpu", (
        "Yes, lmtop works without a GPU: the engine then runs on the CPU. {I am small enough to be quick there|Small models like me are quick there, big ones are slow}.",
        "No GPU is needed: the engine runs on the CPU. {Small models like me are fine there|Big models are slow there}."),
        ("It works without a GPU, on the CPU.",), ("cpu mode", "running on {the |a |}cpu"), ("{use|run} {lmtop|this|it} without {a gpu|a graphics card}", "run on {the |}cpu"),
        ("do i need a {gpu|graphics card|video card|nvidia card}", "does {it|lmtop|this|this program} {work|run} {without a gpu|on a cpu|on cpu|on a laptop|on my laptop|with no gpu|on my old {laptop|computer|pc}|without a graphics card}", "i have no {gpu|graphics card}", "what if i have no {gpu|graphics card}", "is a gpu needed", "no gpu", "what hardware do i need", "can {it|lmtop|this} run on {a|my|an old} {laptop|computer|notebook|pc}",
         "would {this|it|lmtop|this program} run on {a|an old} {laptop|computer} with {8|4|16|eight} {gb|gigabytes} {|of memory }and no {gpu|graphics card}", "is my {laptop|computer|machine} {good|fast|strong} enough")),
    Fact("uses_gpu", (
        "`lmtop doctor` says what the engine uses on this machine, and the status line names the device. Without a usable GPU it is the CPU.",),
        ("`lmtop doctor` tells; without a usable GPU it is the CPU.",), (), (),
        ("does lmtop use my {gpu|graphics card}", "are you {running|computed} on {the|my|a} gpu", "is {the|my} gpu {used|working}", "why is my gpu {idle|not used|at 0 percent}", "do you use the gpu or the cpu", "which device do you use")),
    Fact("platform", (
        "lmtop is a Python program for the terminal. It needs Python 3.11 or newer and no GPU. `lmtop doctor` says whether anything is missing here.",),
        ("A terminal and Python 3.11 or newer.",), ("{the |}requirements", "{the |}system requirements"), (),
        ("does {it|lmtop|this} {work|run} on {a |}{mac|macos|linux|windows|ubuntu|a mac|my mac|a raspberry pi|wsl}", "which {python|python version|operating systems} {does it need|do i need|are supported}", "is there a {windows|mac} version", "what does lmtop need", "what language is lmtop written in")),
    Fact("install", (
        "In a clone of lmtop, `make run` installs it and starts it. With me at once:\n\n```sh\nmake run ARGS=\"chat demo\"\n```",),
        ("`make run` in a clone of it.",), ("the installation", "installing lmtop"), ("install {lmtop|this program|this}", "set up lmtop", "get lmtop on another machine", "update lmtop"), ("how is lmtop installed", "where do i get lmtop")),
    Fact("ssh", (
        "lmtop works over SSH and in tmux. On a slow line, type `/lowbw on`: then it sends fewer bytes to the terminal.",),
        ("Yes; on a slow line, type `/lowbw on`.",), ("low bandwidth{ mode|}", "--low-bandwidth"), ("use lmtop {over|through|with} ssh", "use lmtop in {tmux|screen}"),
        ("my {ssh |}connection is {slow|bad|laggy}", "{it|lmtop|the screen|typing} is {slow|laggy} over ssh", "does {it|lmtop} work {over ssh|in tmux|remotely|on a server}", "my {terminal|network|line} is {slow|laggy}", "ssh is slow, what can i do")),
    Fact("mouse", (
        "Yes, the mouse works: click a session, scroll, or mark text and copy it with `ctrl+c`. `--no-mouse` switches it off. Everything has a key too.",),
        ("Yes; `--no-mouse` switches it off.",), ("the mouse", "mouse support", "--no-mouse"), ("use the mouse", "{select|mark} text", "switch off the mouse"), ("does the mouse work", "can i use {the|a|my} mouse", "can i click", "is there mouse support")),
    Fact("other_programs", (
        "I do not know other programs. lmtop is a chat, a monitor and an engine in one terminal program, and you can watch the engine at work.",),
        ("I do not know others; lmtop is a chat, a monitor and an engine in one.",), (), (),
        ("{what is the |}difference between lmtop and {ollama|vllm|llama.cpp|lm studio|lmdeploy|nvitop|htop|chatgpt|nvtop}", "lmtop {vs|or|versus} {ollama|vllm|llama.cpp|lm studio|nvitop|htop|lmdeploy}", "is lmtop {better|faster} than {ollama|vllm|llama.cpp|lm studio|nvitop}", "how does lmtop compare to {ollama|vllm|llama.cpp|lm studio}", "is lmtop like {ollama|htop|top|vllm}")),
    Fact("slash_text", (
        "Begin the message with two slashes: `//tmp` sends `/tmp`. One slash begins a command.",), ("Type two slashes: `//`.",), (), ("send {a message|text} that {starts|begins} with a slash", "write a slash {first|at the start}"), ("my message {starts|begins} with a slash",)),
    Fact("formats", (
        "lmtop reads Hugging Face folders: `config.json`, a tokenizer and weights as safetensors. The load dialog, `F4`, says why a folder cannot be loaded.",),
        ("Hugging Face folders with safetensors.",), ("safetensors", "{the |}model {format|files}", "gguf", "a gguf file"), ("load {a gguf|a gguf file|a .bin file|safetensors}",),
        ("which {formats|file formats} {does lmtop|can lmtop|can you} {read|load|support}", "can {it|lmtop} {load|read} {gguf|safetensors|pytorch files|awq models|gptq models|int4 models}", "why can a model not be loaded")),
    Fact("hub_id", (
        "A hub id names a model on the Hugging Face hub, as `owner/name`. lmtop downloads it once and then finds it in the cache:\n\n```sh\nlmtop chat owner/name\n```",),
        ("A name like `owner/name`; lmtop downloads it.",), ("{a |the |}hub id", "the {hugging face |}hub", "huggingface"), ("{download|get} a model from {the hub|hugging face|huggingface}", "find a hub id", "stop a download"),
        ("does lmtop download models", "where are models downloaded to", "where do downloaded models go")),
    Fact("folders", (
        "List your model folders in `config.toml`, and `F4` and `lmtop list` find them:\n\n```toml\n[models]\nfolders = [\"~/models\"]\n```",),
        ("Name them in `config.toml` under `[models]`.",), ("model folders", "--folders"), ("add {a|my} model folder", "tell lmtop where my models are", "make lmtop find my models"), ("why does lmtop not find my model", "where does lmtop look for models")),
    Fact("sessions", (
        "A session is one conversation with its own history and settings. Several can generate at the same time. `ctrl+n` opens a new one, `ctrl+]` goes to the next and `F2` lists them.",),
        ("One conversation; `ctrl+n` opens a new one.",), ("{a |}session", "sessions", "several sessions", "multiple chats"), ("have several {chats|sessions|conversations}", "manage {my |}sessions"),
        ("can i have {several|two|many|multiple} {chats|sessions}", "how many sessions can i have", "what does the list on the left show")),
    Fact("system_prompt", (
        "The system prompt tells the model how to behave. Type `/system` and your text, for example:\n\n```\n/system Answer in one sentence.\n```",),
        ("It tells the model how to behave; set it with `/system`.",), ("{the |a |}system prompt", "{a |the |}system message"), (), ("where is the system prompt", "can i give you a system prompt", "do you {have|follow} a system prompt")),
    Fact("composer", (
        "Type your message in the prompt at the bottom. `enter` sends it, `ctrl+j` makes a new line, and `ctrl+o` opens your editor.",), ("Type it at the bottom and press `enter`.",),
        ("the prompt line", "{the |}composer", "the input {field|box|line}"), ("{write|enter|type} {a message|text|something|a question}", "ask {you |}{a question|something}"), ("where do i type", "how does this {chat |}work", "how do i {chat|talk to you}")),
    Fact("scroll", (
        "Press `esc` to go from the prompt to the transcript, then use `j` and `k` or the arrow keys. `g` goes to the top and `G` to the end.",), ("`esc`, then `j` and `k`; `G` goes to the end.",),
        ("the transcript", "scrolling"), ("scroll{ up| down|}", "{see|read} {older|earlier|the first} {messages|text}", "go {up|back up|to the top|to the end|to the bottom}"), ("i cannot see the {start|beginning} of the answer",)),
    Fact("privacy", (
        "lmtop runs the model on this machine. What you type here {stays on it|is not sent anywhere}.",), ("Everything stays on this machine.",), ("{my |}privacy", "data protection"), (),
        ("do you {send|share|sell|upload} my {data|text|messages|chats}{| anywhere| to the internet| to a server}", "is my {data|text} sent {anywhere|away|to the internet|to a server}", "where does my data go", "is {this|it|my data|lmtop} {private|safe|secure}", "who can {read|see} {this|my messages|what i write}", "do you spy on me", "does lmtop {phone home|send data|need the internet}",
         "does {it|this|lmtop} work offline", "do i need {internet|the internet|a connection}", "are you online")),
    Fact("license", (
        "lmtop is open source, under the Apache-2.0 licence. That includes me.",), ("Apache-2.0.",), ("{the |your |}licen{c|s}e", "Apache-2.0"), (), ("is lmtop {open source|free|free software}", "are you {open source|free}", "can i use lmtop {at work|for free|commercially}", "what does lmtop cost", "where is the source")),
    Fact("server", (
        "Not in this version: `lmtop --help` lists all it can do. For scripts there is `lmtop generate`.",), ("Not in this version; there is `lmtop generate`.",), ("{the |a |}server mode", "lmtop serve", "lmtop connect", "the api", "the http server"),
        ("connect to {a|another|my} server", "start {a|the} server", "use {an|the} api", "serve a model"), ("is there {a server|an api|a rest api|an openai api|an api server|a server mode}",  "does lmtop have {a server|an api}", "can lmtop serve a model", "does lmtop have plugins", "can i use tools or images")),
    Fact("engine", (
        "The engine is what runs the model: a scheduler plans each step, the model computes it, and the sampler draws the next tokens. {It is the same for me and for big models|I run on the very same engine as a big model}.",),
        ("It plans, computes and samples, step by step.",), ("{the |lmtop's |}engine", "the scheduler", "the inference engine"), (), ("what engine {is|does} {this|lmtop use}", "is this {a real|the real} engine", "what {runs|executes} {you|the model}", "does lmtop use {vllm|llama.cpp|ollama}")),
    Fact("memory_prediction", (
        "The load dialog, `F4`, predicts the memory before it loads: weights, KV cache and workspace, for each type of weights. It says whether the model fits.",), ("The load dialog, `F4`, predicts it before loading.",), ("the memory prediction",), ("know {if|whether} a model fits", "see how much memory a model needs"),
        ("will {a|the|my|llama|qwen|a big|llama 8b|an 8b|a 7b} model fit{ in memory| on my gpu| on my laptop|}", "will {llama|qwen|mistral} {7b|8b|14b|70b} {fit|run} on my {laptop|gpu|machine}", "can {you|lmtop|it} run a {7b|8b|13b|14b|32b|70b} model", "how much memory does a model need", "does a {7b|8b|13b|70b} model fit", "what if the model is too big")),
    Fact("stats", (
        "Beside an answer you see its time to first token, tokens per second and number of tokens. `/stats` tells more, also how many tokens came from the prefix cache.",), ("Time to first token, tokens per second, tokens; `/stats` tells more.",), ("{the |}statistics", "the numbers {below|under} {an|the|your} answer"), (),
        ("what do the numbers {below|under} {the|your|an} answer{s|} mean", "where do i see the speed", "where can i see tokens per second")),
    Fact("architecture", (
        "I have the Llama architecture: RMSNorm, rotary positions, SwiGLU and grouped-query attention. I have 7 layers of width 256 with 8 heads.",), ("A small Llama: 7 layers, width 256, 8 heads.",), ("your architecture", "your {structure|layers|heads}"), (),
        ("how many {layers|heads|attention heads} do you have", "what {kind of|} architecture {are|do} you{ have|}", "are you a transformer", "are you {a llama{ model|}|based on {llama|gpt|qwen|mistral}}", "how are you built", "what is your hidden size", "how many layers")),
    Fact("vocab", (
        "My vocabulary has 4096 tokens. It is a byte-level BPE, so any text can be written with it, Chinese too.",), ("4096 tokens, byte-level BPE.",), ("your vocabulary", "your tokenizer"), (), ("how {big|large} is your vocabulary", "how many words do you know", "what tokenizer do you use", "how many tokens do you know")),
)  # fmt: skip
