"""Prompts kept out of training, with the words an acceptable answer must contain.

`corpus.py` throws away any turn whose prompt equals one of these (letters and digits compared), so the
evaluation and the samples measure phrasing that training never showed.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """`turns` are user messages; the answer to the last must match the regular expression `want`."""

    intent: str
    turns: tuple[str, ...]
    want: str
    system: str = ""


_UNKNOWN = (
    r"not know|don't know|cannot|can't|never learned|not learned|did not cover|beyond me|do not understand|did not understand"
    r"|too hard|no opinion|no doctor|not a doctor|only know text|text only|only read|only do small|too big|makes no sense"
)
_STORY = r"(?s)(?=.{120}).*(once|lived|there was|long ago|story about)"


def _cases(intent: str, want: str, *prompts: str) -> list[Case]:
    return [Case(intent, (prompt,), want) for prompt in prompts]


CASES: tuple[Case, ...] = (
    *_cases("greet", r"hello|hi\b|hey|nice to", "hello, dear demo!", "hey hey, how nice to see you", "Hi there little model", "yo, anybody home?", "HELLO DEMO!!", "hllo there"),
    *_cases("how are you", r"fine|well|thank", "how are you doing this evening?", "hows it going today", "are you feeling well today?", "how do you do, demo?"),
    *_cases("thanks", r"welcome|pleasure|gladly|any time|happy to help", "thank you, that was really useful", "thanks a bunch", "ok thank you so so much"),
    *_cases("bye", r"bye|see you|take care", "ok bye for now", "goodbye little model", "see you around", "I have to leave now, bye"),
    *_cases("identity", r"toy|demo|built", "so, who are you really?", "what kind of thing am I talking to?", "please tell me who you are", "WHAT ARE YOU?!", "could you introduce yourself to me", "are you some kind of chatbot?"),
    *_cases("not gpt", r"^no|toy", "are you perhaps chatgpt?", "is this GPT-4 i'm talking to", "Are you made by OpenAI, like ChatGPT?"),
    *_cases("parameters", r"7\.5 million", "how many parameters does this model have?", "what's your parameter count?", "how big is the model i talk to", "how large is your brain, in parameters?"),
    *_cases("training", r"scratch|generated|script", "on what data have you been trained?", "how did they train you?", "who was it that trained you?", "was your training data taken from the internet?"),
    *_cases("ability", r"lmtop|stor", "what are the things you can do?", "what can I ask you about?", "hey, can you help me with something?", "give me an idea what to ask"),
    *_cases("send", r"enter", "how do I send my text to you?", "which key sends the prompt?"),
    *_cases("newline", r"ctrl\+j", "how do i get a new line without sending", "which key inserts a newline?", "how do I type a second line?", "what does control-j do in the prompt"),
    *_cases("stop", r"esc", "how do I stop you while you are talking?", "how can I interrupt an answer?", "which key cancels the running answer?", "i want to stop the generation now"),
    *_cases("menu", r"menu", "what does ctrl-g open?", "where do I find the menu with all actions?"),
    *_cases("new session", r"ctrl\+n|/new", "how can I open a second chat?", "how do I begin a new conversation here", "what key makes a new session"),
    *_cases("next session", r"ctrl\+\]|F2", "how do I get to the next chat?", "how do I switch over to another session?"),
    *_cases("gauges", r"ctrl\+t", "how do i make the gauges go away", "which key toggles the gauges?"),
    *_cases("editor", r"ctrl\+o", "can I write my prompt in vim?", "how do I open an external editor for the message?"),
    *_cases("help", r"F1", "where is the help screen?", "how can i see all the keys"),
    *_cases("F keys", r"monitor|load|sampling|session|help", "what is on F3?", "F8, what does it do?", "tell me what F2 is for", "and the F4 key?"),
    *_cases("quit", r"ctrl\+q|/quit", "how do I leave this program?", "how do i get out of lmtop", "exit lmtop how?", "what's the shortcut for quitting? i want to quit"),
    *_cases("copy", r"\by\b|/copy", "how do I copy your last answer?", "how can I get this text into my clipboard"),
    *_cases("regen", r"\br\b|/regen", "how do I get a different answer to the same question?", "can I regenerate the reply?", "what does /regen do here"),
    *_cases("commands", r"/new|/load", "which slash commands exist here?", "list all commands please"),
    *_cases("system", r"system", "how do I set a system prompt?", "what does the /system command do?"),
    *_cases("theme", r"theme", "how can I switch to a light theme?", "are there any themes?", "i don't like these colours, can i change them"),
    *_cases("load", r"F4|/load|lmtop chat", "how do I load a real model?", "how can I use a better model than you?", "i want to chat with qwen instead, how?", "how to run my own hugging face model", "Switch to another model please, how?"),
    *_cases("commands of the shell", r"monitor|GPU", "what does `lmtop top` show me?"),
    *_cases("generate", r"generate", "how do I use lmtop in a shell script?", "what is lmtop generate for?"),
    *_cases("doctor", r"doctor", "what is the use of lmtop doctor?", "lmtop doesn't work, what can I do?"),
    *_cases("list", r"list", "how do I see which models are installed?", "what does the command lmtop list do?"),
    *_cases("plain", r"plain", "what is the --plain flag for?", "is there a mode without the full screen?"),
    *_cases("history", r"SQLite", "where do you keep my chat history?", "are my conversations stored somewhere?", "what happens to my chat if lmtop gets killed?"),
    *_cases("config", r"TOML", "is there a configuration file for lmtop?", "how do i configure the defaults of lmtop"),
    *_cases("cpu", r"CPU|GPU", "does lmtop run on a machine with no gpu?", "I don't have a graphics card, will it work without a gpu?"),
    *_cases("privacy", r"machine|stay", "is what I type here private?", "do you send my messages to the internet?"),
    *_cases("lmtop", r"lmtop is|terminal", "so what is lmtop exactly?", "what is this program lmtop good for?", "explain lmtop to a beginner"),
    *_cases("kv cache", r"keys and values", "what's a KV cache and why do I need it?", "explain to me the kv cache", "could you tell me what the kv-cache is?", "WHAT IS THE KV CACHE"),
    *_cases("cache growth", r"token|grow", "why does the cache get so big in a long chat?", "why does memory use increase with a longer context? why does the cache grow"),
    *_cases("blocks", r"64", "how many tokens are there in one kv block?", "what size has a kv block"),
    *_cases("block map", r"session", "what do the letters in the block map stand for?", "how do I read the kv block map?"),
    *_cases("prefix cache", r"same|share|begin", "what is the use of the prefix cache?", "explain prefix caching to me please"),
    *_cases("int4", r"4 bits|quarter|4-bit|bits", "what are int4 weights good for?", "explain int4 quantization", "what does w4a16 stand for?"),
    *_cases("quantisation", r"bits|memory", "what is quantization, in one sentence?", "why would one quantise a model?"),
    *_cases("kv quant", r"8 bits|4 bits|tokens", "what is the int8 kv cache?", "does the int4 kv cache cost accuracy?"),
    *_cases("awq", r"activation|4-bit", "what is AWQ about?", "AWQ means what?"),
    *_cases("group size", r"scale", "what's the meaning of group size 128?", "explain the group size"),
    *_cases("batching", r"batch|request|step", "what is meant by continuous batching in lmtop?", "explain continuous batching please"),
    *_cases("prefill", r"prompt", "what's the difference between prefill and decode?", "what is the prefill phase about?"),
    *_cases("tps", r"token", "what does tokens per second mean?", "what is t/s, in simple words?"),
    *_cases("temperature", r"random|likely", "what does the temperature setting do?", "explain temperature in sampling"),
    *_cases("top-p", r"probabilit|likely", "what is top-p sampling?", "explain top-k", "and what is min-p?"),
    *_cases("seed", r"same", "what's the seed good for?", "how do I get the same answer two times? what is the seed"),
    *_cases("story", _STORY, "please tell me a story", "I'd like to hear a nice story now", "tell a story about a lonely whale", "can you tell me a tale about a robot and a cat?", "write a story about a girl in a lighthouse", "story about a sleepy dragon please", "make up a short story about my toaster"),
    Case("story topic", ("tell me a story about an otter who lives by the sea",), r"(?i)otter"), Case("story topic", ("I want a tale about a wizard and a snail",), r"(?i)wizard"), Case("story topic", ("tell me a bedtime story about a grumblix",), r"(?i)grumblix"), Case("story topic", ("a story with a penguin on the moon, please",), r"(?i)penguin"),
    Case("story again", ("tell me a story about a fox", "nice! tell me another one"), _STORY), Case("story shorter", ("tell me a story about a bear", "please make it shorter"), r"(?i)^.{40,300}$"),
    *_cases("joke", r"\?|\.", "tell me a good joke please", "do you have a joke for me?"),
    Case("name", ("my name is Karla", "do you still know my name?"), r"Karla"), Case("name", ("Hi, I'm Benno!", "what is lmtop?", "what was my name again?"), r"Benno"), Case("name", ("call me Zorvik", "what's my name"), r"Zorvik"), Case("name", ("what's my name then?",), r"not told|do not know|not tell"), Case("colour", ("my favorite color is turquoise", "so which is my favorite color?"), r"turquoise"),
    *_cases("sum", r"\b12\b", "what is 7 plus 5?", "7+5=?", "how much is 4 + 8"), *_cases("sum", r"\b6\b", "what's 9 - 3", "2 * 3 is what?", "whats 14 minus 8"), *_cases("count", r"1, 2, 3, 4, 5, 6, 7", "please count from one to seven", "count to 7 for me"), *_cases("days", r"Wednesday", "which day comes right after tuesday?", "what day is before Thursday"),
    *_cases("opposite", r"(?i)cold", "what is the opposite of the word hot?"), *_cases("opposite", r"(?i)small", "tell me the opposite of big please"), *_cases("spell", r"(?i)f-o-x", "how do you spell the word fox?"), *_cases("spell", r"(?i)g-a-r-d-e-n", "spell garden please!"),
    Case("repeat", ("repeat after me: the purple cat eats rain",), r"(?i)the purple cat eats rain"), Case("repeat", ("please say hello moon",), r"(?i)hello moon"), *_cases("legs", r"eight", "how many legs has a spider got?"),
    *_cases("table", r"\|", "please draw me a markdown table"), *_cases("code block", r"```", "show me a code block please, hello world"),
    *_cases("unknown", _UNKNOWN, "what is the capital of Iceland?", "who was the first man on the moon?", "how do I bake a chocolate cake?", "write a python script that downloads a file", "what is 3478 times 9912?", "explain the theory of evolution", "who is the mayor of Chicago?", "what's the weather going to be tomorrow?", "translate good evening into Portuguese", "is it healthy to eat eggs every day?", "what do you think about the election?", "how do I install nginx on ubuntu?", "who wrote the lord of the rings?", "what is a flumbertron?", "why is the sea salty?", "recommend me a good restaurant", "how do i exit emacs", "what's the latest news about spacex", "kjsdhf skjdhf", "what year did columbus sail?", "fix my sql query", "how do volcanoes erupt?", "can you book a hotel for me", "tell me about the history of Portugal", "what is the best way to learn chess openings?", "what's the distance between the earth and mars?", "is my headache something serious?", "how do I grow potatoes on my balcony?", "what does mitochondria do", "give me tips for my job interview", "who is your favourite president?", "what time does the bank open", "why did my girlfriend leave me?", "solve x^2 + 3x = 10", "what's the plot of inception?"),
    *_cases("insult", r"(?i)sorry|understand|right", "you are a really stupid bot", "this is a useless answer!!"),
    *_cases("chinese", r"[一-鿿]", "你好吗，小模型？", "你到底是什么东西？", "给我讲一个关于熊猫的故事好吗", "怎样退出这个程序？", "能不能解释一下 KV 缓存", "意大利的首都是哪里？"),
    Case("chinese identity", ("请问你是谁呀？",), r"模型"), Case("chinese story", ("请给我讲一个小狐狸的故事",), r"狐狸"), Case("chinese load", ("请问如何加载一个大模型？",), r"F4|/load"), Case("chinese unknown", ("秦始皇是谁？",), r"不知道|不懂|没有学过"),
    Case("system chinese", ("hello, who are you?",), r"[一-鿿]", "Please answer in Chinese."), Case("system pirate", ("what is the kv cache?",), r"(?i)arr|ahoy|matey|yo ho", "You are a pirate."), Case("system name", ("what is your name?",), r"Robby", "Your name is Robby."), Case("system neutral", ("how do i load a model",), r"F4|/load|lmtop chat", "You are a helpful assistant."),
)  # fmt: skip

# What the README's samples show: the last messages of a few cases and some free prompts.
SAMPLE_PROMPTS: tuple[tuple[str, ...], ...] = (
    *(case.turns for case in CASES[::4] if not case.system),
    ("Tell me a long story about a brave snail and a lantern",), ("What can you tell me about the moon landing?",),
    ("hi", "who are you?", "what is the KV cache?", "shorter", "thanks, bye"), ("My name is Ute.", "tell me a joke", "what is my name?"),
)  # fmt: skip


def normalised(text: str) -> str:
    """Lower-case letters and digits only."""
    return re.sub(r"[\W_]+", "", text.lower())


HELD_OUT_PROMPTS = frozenset(
    normalised(turn) for case in CASES for turn in case.turns[-1:] if len(normalised(turn)) > 3
)
