"""Turns that depend on the conversation: stories, memory, follow-ups, markdown."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from . import corpus_stories as stories
from .corpus_chat import JOKES, LOAD
from .corpus_keys import KEY_TABLE, Fact
from .corpus_skills import COLOURS, FRUITS, SPELLABLE, nonsense
from .grammar import choice, expand, pick, words
from .noise import keep, plain

Turn = tuple[str, str]
_CALLED = words(
    """Anna|Peter|Maria|John|Lisa|David|Sarah|Michael|Laura|Thomas|Julia|Daniel|Emma|Lucas|Sophie|Mark|Eva|Simon|Clara|Jonas|
    Nina|Robert|Alice|Bob|Carol|Dave|Frank|Grace|Heidi|Ivan|Judy|Karl|Linda|Mary|Nick|Oscar|Pam|Quinn|Rita|Steve|Tina|Ursula|
    Victor|Wendy|Xavier|Yuki|Zara|Ahmed|Fatima|Wei|Li|Chen|Priya|Raj|Carlos|Diego|Lucia|Pierre|Marie|Hans|Sven|Olga|Igor|Kim|
    Alex|Chris|Jamie|Taylor|Jordan|Robin|Casey|James|Kate|Will|Emily|Jane|George|Harry|Charlie|Noah|Liam|Mia|Jan|Piotr|Ali"""
)
_PETS = words("dog|cat|hamster|rabbit|parrot|horse|goldfish|turtle|snake|mouse")
_TOWNS = words(
    "Berlin|Paris|London|Tokyo|Rome|Madrid|Vienna|Oslo|Boston|Beijing|Shanghai|Lima|Cairo|Delhi|Prague|Dublin"
)
_FOODS = words(
    "pizza|pasta|rice|soup|bread|cheese|chocolate|ice cream|sushi|pancakes|curry|salad|cake|noodles|dumplings"
)


_NAME_PARTS = words(
    "krz|ysz|tof|wlo|dzi|mie|sław|joh|ann|thi|bjö|rn|sve|nja|mar|cus|que|ent|in|pry|ia|nka|shi|ru|to|ngu|yen|abd|ul|lah|fat|ima|sio|bhan|ge|off|rey|alex|andr|os|ka|stel|lio|ve|ra|ck|ff|ll|zh|eng|xi|ao|jü|rg|øy|st|ein|pet|er|mat|ild|e|a|o|y"
)


@dataclass
class State:
    """What the conversation so far allows to refer to."""

    known: dict[str, str] = field(default_factory=dict)
    cast: stories.Cast | None = None
    last: str = ""
    fact: Fact | None = None
    said: str = ""  # the user's previous message, as typed
    answer: str = ""  # the model's previous answer
    hero: str = ""  # of the last Chinese story


def a_name(rng: Random) -> str:
    """A person's name, sometimes an invented one, so that names are copied and not guessed."""
    if rng.random() < 0.12:
        return "".join(choice(_NAME_PARTS, rng) for _ in range(rng.randint(2, 4))).capitalize()
    return nonsense(rng).capitalize() if rng.random() < 0.35 else choice(_CALLED + stories.NAMES, rng)


def _tell_name(state: State, rng: Random) -> Turn:
    name = a_name(rng)
    again = "name" in state.known
    state.known["name"] = name
    ask = pick(
        (
            "{my name is|i am|i'm|call me|you can call me|my name's|they call me|people call me|the name is|im|hi, i am|hello, my name is|hi my name is|hey i'm|this is|please call me|i am called} $n{|!|.}",
            "$n is my name",
            "remember that my name is $n",
            "{hi|hello|hey}{,|} {im|i'm|i am|my name is} $n {and i {like|love} {hiking|cats|music|pizza|computers}|from {berlin|london|texas|china}|and i am {new here|a student|bored}}",
        ),
        rng,
        n=keep(choice((name, name, name.lower()), rng)),
    )
    if again:
        return ask, pick(("All right, then I call you $n{| from now on}.", "Good, $n it is."), rng, n=name)
    return ask, pick(("{Nice|Good|Pleased} to meet you, $n! {What can I do for you|How can I help|What would you like to know}?", "Hello $n! {Ask me what you like|I am demo, the toy model in lmtop}.", "Hi $n, nice to meet you!"), rng, n=name)  # fmt: skip


_TOLD: tuple[tuple[str, Callable[[Random], str], tuple[str, ...], tuple[str, ...], tuple[str, ...], str], ...] = (
    ("colour", lambda r: choice(COLOURS, r), ("my {favourite|favorite} colo{|u}r is $v", "i like {the colour |}$v most"), ("{what is|what's|whats|which is|tell me} my {favourite|favorite} colo{|u}r{| again}?", "which colo{|u}r do i like{ most|}?", "do you remember my {favourite |favorite |}colo{|u}r?"), ("Your favourite colour is $v.",), "$V is a nice colour"),
    ("animal", lambda r: choice(stories.ANIMALS, r), ("my {favourite|favorite} animal is the $v", "i like the $v most of all animals"), ("{what is|what's|whats} my {favourite|favorite} animal?", "which animal do i like?"), ("Your favourite animal is the $v.",), "The $v is a fine animal"),
    ("food", lambda r: choice(_FOODS, r), ("my {favourite|favorite} food is $v", "i love to eat $v"), ("{what is|what's|whats} my {favourite|favorite} food?", "what do i {like|love} to eat?"), ("Your favourite food is $v.",), "$V sounds good"),
    ("town", lambda r: choice(_TOWNS, r), ("i {live in|am from|come from} $v", "my home is $v"), ("where do i live?", "where am i from?", "which city do i live in?"), ("You told me {$v|that it is $v}.",), "Greetings to $v"),
    ("pet", a_name, ("my {dog|cat|pet|horse|hamster} is {called|named} $v", "i have a {dog|cat|pet} {called|named} $v"), ("{what is|what's|whats} {my {pet|dog|cat|horse|hamster}|my {pet|dog|cat|horse|hamster} called|the name of my {pet|dog|cat|horse}|my {pet|dog|cat}'s name}?", "how is my {pet|dog|cat|horse} called?"), ("{It is called $v|Your pet is called $v}.",), "$V is a nice name"),
    ("number", lambda r: str(r.randint(1, 99)), ("my {favourite|favorite|lucky} number is $v", "remember the number $v", "my number is $v"), ("what is my {favourite |lucky |favorite |}number?", "which number did i {say|tell you}?"), ("Your number is $v.",), "$V, I keep that in mind"),
    ("secret", nonsense, ("{remember the word|the secret word is|the password is|the code word is|remember this word:} $v",), ("what {is|was} the {secret word|code word|password|word}?", "which word should you remember?", "what was the word{| i told you}?"), ("The word is $v.",), "I will remember $v"),
)  # fmt: skip


def tell_memory(state: State, rng: Random) -> Turn:
    """The user says something about themselves."""
    if rng.random() < 0.5:
        return _tell_name(state, rng)
    key, draw, asks, _, _, remark = choice(_TOLD, rng)
    value = state.known[key] = draw(rng)
    return pick(asks, rng, v=keep(value)), expand(
        "{$r.|$r!|$r. I will remember it for this chat.|Good to know. $r.}",
        rng,
        r=expand(remark, rng, v=value, V=value[:1].upper() + value[1:]),
    )


def ask_memory(state: State, rng: Random) -> Turn:
    """The user asks for something they told, or did not tell."""
    told = [item for item in _TOLD if item[0] in state.known]
    if rng.random() < (0.45 if told else 0.6):
        ask = pick(
            (
                "what is my name?",
                "what's my name?",
                "do you {know|remember} my name?",
                "who am i?",
                "what did i say my name is?",
                "my name?",
                "tell me my name",
                "say my name",
                "what was my name{ again|}?",
                "do you remember {me|who i am}?",
                "can you remember my name",
                "what am i called?",
                "did i tell you my name?",
                "remember my name?",
                "how do you call me",
            ),
            rng,
        )
        if name := state.known.get("name"):
            return ask, pick(
                ("Your name is $n.", "You are $n{|, of course}.", "You told me that your name is $n."),
                rng,
                n=name,
            )
        return ask, pick(
            (
                "You have not told me your name{ yet|}. What is it?",
                "I do not know your name{|, you did not tell me}.",
            ),
            rng,
        )
    key, _, _, asks, answers, _ = choice(told if told and rng.random() < 0.8 else _TOLD, rng)
    if value := state.known.get(key):
        return pick(asks, rng), pick(answers, rng, v=value)
    return pick(asks, rng), pick(
        ("You have not told me{ that| that yet|}.", "I do not know, you did not tell me."), rng
    )


def joke_turn(state: State, rng: Random) -> Turn:
    """A joke, or one more."""
    again = state.last == "joke" and rng.random() < 0.6
    ask = (
        pick(
            (
                "{another|another one|one more|again|more|next|a better one|tell me another|one more joke|another joke}{|, please| please|!}",
            ),
            rng,
        )
        if again
        else pick(
            (
                "{tell|give} {me |us |}a {|good |funny |short |nerdy |bad }joke{|, please| please}",
                "{joke|a joke|joke please|got a joke}{|?|!}",
                "do you know {a|any|some} {joke|jokes}?",
                "make me laugh",
                "say something funny",
                "be funny",
                "i want {a joke|to laugh}",
                "can you tell {a joke|jokes}?",
                "tell me something funny",
                "make a joke",
            ),
            rng,
        )
    )
    state.last = "joke"
    # Mostly the next of a ring: a greedy model, too, can then tell a second joke after the first.
    if state.answer in JOKES and rng.random() < 0.7:
        return ask, JOKES[(JOKES.index(state.answer) + 1) % len(JOKES)]
    return ask, choice([j for j in JOKES if j != state.answer], rng)


def fact_followup(state: State, rng: Random) -> Turn:
    """Shorter, simpler, more: after a fact."""
    assert state.fact is not None
    short = pick(state.fact.short, rng)
    roll = rng.random()
    if roll < 0.4:
        return pick(
            (
                "{shorter|make it shorter|shorter please|in one sentence|in short|tl;dr|too long|be brief|briefly|short version|summari{s|z}e|sum it up|summary please|that is too long|can you say that shorter?|say it shorter}{|, please}",
            ),
            rng,
        ), short
    if roll < 0.65:
        return pick(
            (
                "{simpler|explain it simpler|i don't understand|i do not understand|i don't get it|what do you mean?|huh?|what?|in simple words|eli5|explain again|say it simpler|too complicated|come again?|i am confused|what does that mean?|pardon?}",
            ),
            rng,
        ), "In short: " + short[:1].lower() + short[1:] if short[:2].istitle() and not short.startswith(
            ("KV", "Adj", "I ", "Llama", "Apache")
        ) else short
    if roll < 0.85:
        return pick(
            (
                "{more|tell me more|more details|more please|go on|and?|details|anything else about it?|can you say more?|what else?|is that all?|elaborate|continue}",
            ),
            rng,
        ), pick(
            (
                "That is {all|about all} I know about it. {A real model, loaded with `F4`, can tell you more|I am only a toy model}.",
            ),
            rng,
        )
    return pick(("{why?|why|why is that?|how come?|but why?|why so?|how so?}",), rng), pick(
        (
            "I do not know more {about it|about the reasons}. {I am only a toy model|I only learned this much}.",
        ),
        rng,
    )


def unknown_followup(rng: Random) -> Turn:
    """People insist after a refusal."""
    roll = rng.random()
    if roll < 0.35:
        return pick(
            ("{why|why not|why don't you know|how come|but why|why can't you|why is that}{|?}",), rng
        ), pick(
            (
                "Because I am a toy model with {only |}7.5 million parameters, trained on generated text about a few things.",
                "I was trained on {a few|very few} topics only: lmtop, small talk and short stories.",
            ),
            rng,
        )
    if roll < 0.7:
        return pick(
            (
                "{try|try anyway|just guess|guess|please try|please|come on|make something up|you must know|try again|are you sure|think harder|yes you do|but i need it|it is important|please please|do it anyway|i order you}{|!|.|?}",
            ),
            rng,
        ), pick(
            (
                "I would only {guess|make something up}, and that helps nobody. " + LOAD + ".",
                "{Sorry|I am sorry}, I really do not know. " + LOAD + ".",
            ),
            rng,
        )
    return pick(
        (
            "{what do you know then|so what do you know|then what can you do|what can you do then|what do you know|do you know anything|so what are you good for}{|?}",
        ),
        rng,
    ), pick(
        (
            "I know lmtop: its keys, models, the KV cache, quantisation. I can tell stories and do small sums too.",
            "Ask me about lmtop's keys, how to load a model, or for a story. {That is what I know|I know that best}.",
        ),
        rng,
    )


def echo_turn(state: State, rng: Random) -> Turn:
    """What did I say, what did you say."""
    if rng.random() < 0.5:
        return pick(
            (
                "what did i {just |}{say|ask|write|type}{| before| last}?",
                "what was my {last|previous} {question|message}?",
                "repeat my {last |}{question|message}",
                "what did i say{ to you|}?",
            ),
            rng,
        ), pick(('You {wrote|said}: "$s"',), rng, s=plain(state.said).strip())
    return pick(
        (
            "{repeat that|say that again|what did you say?|again please|can you repeat that?|repeat your answer|say it again|once more please|what was your last answer?|please repeat}",
        ),
        rng,
    ), state.answer


def doubt_turn(rng: Random) -> Turn:
    """Really? Are you sure?"""
    return pick(
        (
            "{really|are you sure|is that true|is that right|sure|is this correct|how do you know|are you certain|is that really so|seriously|you sure}{|?|??}",
        ),
        rng,
    ), pick(
        (
            "I think so, but I am only a toy model and can be wrong.",
            "That is what I learned. {I am a toy model, so better check it|The help, `F1`, knows the keys for sure}.",
        ),
        rng,
    )


def lost_followup(rng: Random) -> Turn:
    """A follow-up with nothing before it."""
    return pick(
        (
            "{another one|one more|shorter|longer|again|more|continue|go on|next|and then?|make it shorter|the other one|what about the second?|why?|the same again|do it again}{|, please}",
        ),
        rng,
    ), pick(
        (
            "{Of what|What do you mean}? {You can ask me for a story, or about lmtop|Ask me something first, for example for a story}.",
        ),
        rng,
    )


_MARKDOWN: tuple[tuple[tuple[str, ...], Callable[[Random], str]], ...] = (
    (("{show|make|draw|give|print} {me |}a {small |markdown |}table{| please| in markdown}", "{a |}table{, please|}", "can you {make|draw|show} {a table|tables}?", "markdown table"), lambda r: choice((KEY_TABLE, "| format | bits | memory |\n|---|---|---|\n| fp16 | 16 | 100 % |\n| int8 | 8 | 50 % |\n| int4 | 4 | 25 % |", _fruit_table(r)), r)),
    (("{show|give} me {some |}markdown", "{can|do} you {write|know|speak|use} markdown?", "markdown{| demo| test| example}", "show me what markdown looks like", "test {the |}markdown{ rendering|}", "show {all |}formatting", "format something"), lambda r: expand("# A heading\n\nSome **bold** text, some *italic* text and `code`.\n\n- a list\n- with {two|three} points\n\n> A quote.\n\n```python\nprint(\"{hello|hi}\")\n```", r)),
    (("{show|give|write|print} me {a code block|some code|a code example|any code}", "{hello world|hello world program|a code block}{| please| in python}", "write {a |}hello world{| program| in python}", "print hello world in python", "code block"), lambda r: "```python\nprint(\"Hello, world\")\n```\n\n" + choice(("That is the only program I know.", "I know no other program."), r)),
    (("{show|give|write|make} {me |}{a list|a bullet list|bullet points|a markdown list}{| please}", "bullet list", "a list please"), lambda r: "\n".join(f"- {x}" for x in r.sample(FRUITS[:8], r.randint(3, 5)))),
    (("{show|give|write|make} {me |}a {numbered|ordered} list{| please}", "numbered list"), lambda r: "\n".join(f"{i}. {x}" for i, x in enumerate(r.sample(stories.ANIMALS[:14], r.randint(3, 5)), 1))),
    (("{show|write|make|give me|say} {something|a word|text|hello} in bold", "bold text", "make {it|something} bold"), lambda r: f"**{choice(SPELLABLE, r)}**"),
    (("{show|make|give me|write} a {heading|headline|title}", "a heading please"), lambda r: choice(("# The first heading\n\nAnd a line below it.", "## A small heading\n\nAnd some text below it."), r)),
    (("{show|make|give me|write} a quote", "a quote please", "quote"), lambda r: "> A quote stands a little apart."),
)  # fmt: skip


def markdown_turn(rng: Random) -> Turn:
    """Tables, lists and code, to look at the terminal's rendering."""
    asks, make = choice(_MARKDOWN, rng)
    return pick(asks, rng), make(rng)


def _fruit_table(rng: Random) -> str:
    rows = "\n".join(f"| {f} | {rng.randint(1, 9)} |" for f in rng.sample(FRUITS[:8], 3))
    return f"| fruit | number |\n|---|---|\n{rows}"
