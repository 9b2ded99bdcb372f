"""Question frames: how people ask for a fact, an action or a key, and the answers about keys."""

import re
from random import Random

from .corpus_keys import COMMANDS, KEYS, UNKNOWN_KEYS, Fact, Key
from .corpus_skills import nonsense
from .grammar import choice, expand, pick
from .noise import keep

_WHAT = (
    "{what is|what's|whats|what are} $n?", "what {does|do} $n mean?", "{explain|describe|define|clarify} $n{| to me| briefly| in simple words|, please| like i'm {5|five}| like i am five| to a {child|beginner}| in detail}", "{tell me|say something|i want to know|i would like to know} {about|more about|what you know about} $n", "can you explain $n?", "could you {explain|describe} $n{| to me}?", "what do you know about $n?", "$n?", "$n", "what is $n {for|good for}?", "why {do we need|is there|use|do people use} $n?", "how does $n work?", "{meaning|definition} of $n", "i {do not|don't} {understand|get} $n", "help me {understand|with} $n", "give me a {short|quick} explanation of $n", "what is meant by $n?", "teach me about $n", "in simple words, what is $n?", "do you know {what|about} $n{ is|}?", "{and|so} what is $n?", "what about $n?", "what's the {deal|point|idea|purpose} {with|of} $n?", "i {read|heard|saw} {about|of} $n, what is {it|that}?", "have you heard of $n?", "{info|information} {on|about} $n", "what exactly is $n?", "what does lmtop do with $n?", "how would you explain $n?", "anything about $n?", "talk about $n", "{please |}explain {in detail |}{how $n works|what $n is}{, and why it {matters|exists|is needed}| and what one can do about it|, please|}", "how exactly {does $n work|is $n used}?", "is $n {important|useful|good}?", "where {do i see|is} $n?",
)  # fmt: skip
_HOW = (
    "how do i $v?", "how do i $v?", "how can i $v?", "$v{| please| now}", "how to $v", "how {would|could|should|might} i $v?", "is there a {way|key|shortcut|command|button} to $v?", "which key {do i press|is there|should i press|do i need} to $v?", "what key {do i press|should i use|is it|do i need|is used} to $v?", "i {want|would like|need|wanna|wish} to $v", "can i $v{| here| in lmtop| in this program}?", "what do i {press|type|do|need} to $v?", "where can i $v?", "help me $v", "show me how to $v", "tell me how to $v", "what's the {key|shortcut|command|way} to $v?", "i can't figure out how to $v", "how does one $v?", "how do you $v {in|with|inside} lmtop?", "how do i $v in {lmtop|this program|this app|here}?", "is it possible to $v?", "what is the {key|shortcut|command|best way} to $v?", "let me $v", "i don't know how to $v", "explain how to $v", "how do people $v here?", "what if i want to $v?", "$v how?", "$v, {how|please|how do i do that}?", "i {just |}want to $v", "what {must|should|would} i do to $v?", "what is {needed|necessary} to $v?", "can you tell me {how to|the way to|which key i need to} $v?", "how am i supposed to $v?", "i need to $v", "i would love to $v", "which {key|command} {will|would} $v?", "what do i have to {do|press|type} {to|if i want to} $v?", "please tell me how i can $v", "how is it possible to $v", "{key|shortcut|command} to $v", "any {key|way|shortcut} to $v?", "i forgot how to $v", "could you tell me how to $v?", "do you know how to $v?", "in lmtop, how do i $v?",
)  # fmt: skip
_KEY_ASKS = (
    "what does $k do?", "what is $k {for|good for|used for}?", "what {happens|will happen} {when|if} i {press|hit|type|use} $k?", "$k?", "what about $k?", "and $k?", "which {action|function} is on $k?", "what's $k{ for|}?", "explain $k", "tell me about $k", "i pressed $k, what {happened|did it do}?", "should i press $k?", "{function|meaning|use} of $k", "when do i {use|press} $k?", "what is the {use|function|purpose|effect} of $k?", "$k does what?", "what can i do with $k?", "why would i press $k?", "does $k do {anything|something}?", "do you know $k?",
)  # fmt: skip
_WHICH = (
    "`$k` $does. $more",
    "`$k` $does. $more",
    "Press `$k`: it $does. $more",
    "Use `$k`, which $does. $more",
)
_COMMAND_WHICH = ("`$k` $does. $more", "`$k` $does. $more", "Type `$k`: it $does. $more", "Use `$k`, which $does. $more")  # fmt: skip


def fact_question(fact: Fact, rng: Random) -> str:
    """A question that this fact answers."""
    kinds = [
        kind for kind, items in (("noun", fact.nouns), ("verb", fact.verbs), ("ask", fact.asks)) if items
    ]
    kind = choice(kinds, rng)
    if kind == "noun":
        return pick(_WHAT, rng, n=pick(fact.nouns, rng))
    if kind == "verb":
        return pick(_HOW, rng, v=pick(fact.verbs, rng))
    return pick(fact.asks, rng) + choice(("?", ""), rng)


def fact_answer(fact: Fact, rng: Random, brief: bool = False) -> str:
    """What to say about it."""
    return pick(fact.short if brief else fact.answers, rng)


def spell_key(key: Key, rng: Random) -> str:
    """A key's name as someone may write it."""
    if key.spelled and (len(key.name) == 1 or rng.random() < 0.8):
        return choice(key.spelled, rng)
    name = key.name
    if name.startswith("ctrl+"):
        last = name[5:]
        return expand(
            "{ctrl+$c|ctrl+$c|ctrl $c|ctrl-$c|control $c|control+$c|^$c|Ctrl+$c|Ctrl-$c|CTRL+$c|strg+$c}",
            rng,
            c=choice((last, last.upper()), rng),
        )
    if name[0] == "F":
        return choice((name, name, name.lower(), f"the {name} key", f"key {name}", f"`{name}`"), rng)
    if name[0] == "/":
        return choice(
            (name, name, f"`{name}`", f"the {name} command", f"the command {name}", f"slash {name[1:]}"), rng
        )
    return choice(
        (
            f"the {name} key",
            f"the key {name}",
            f"the letter {name}",
            f"key {name}",
            f"`{name}`",
            f"pressing {name}",
        ),
        rng,
    )


def key_turn(rng: Random, brief: bool = False) -> tuple[str, str]:
    """Ask for a key by what it does, or for what a key does."""
    if rng.random() < 0.14:
        unknown = f"/{nonsense(rng)}" if rng.random() < 0.5 else choice(UNKNOWN_KEYS, rng)
        ask = pick(_KEY_ASKS, rng, k=keep(unknown))
        return ask, pick(
            (
                "I know no action for `$k`. `F1` lists {all keys|all keys and commands}.",
                "`$k` is not one that I know. {Look at the help with `F1`|`F1` shows all keys and commands}.",
            ),
            rng,
            k=unknown,
        )
    key = choice(KEYS if rng.random() < 0.62 else COMMANDS, rng)
    if key.verbs and rng.random() < 0.6:
        ask = pick(_HOW, rng, v=re.sub(r"\s+", " ", pick(key.verbs, rng)).strip())
    else:
        ask = pick(_KEY_ASKS, rng, k=keep(spell_key(key, rng)))
    forms = _COMMAND_WHICH if key.name[0] == "/" else _WHICH
    if brief:
        return ask, f"`{key.name}` {key.does}."
    return ask, pick(forms, rng, k=key.name, does=key.does, more=expand(key.more, rng)).strip()
