"""Conversations for training the demo model, generated from templates by seed.

Conversation `i` of seed `s` depends on nothing but `(s, i)`, so any range can be made in any process
and in any order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from . import corpus_chinese as zh
from . import corpus_storyturns as storyturns
from . import corpus_turns as turns
from .corpus_chat import TALK, Talk
from .corpus_engine import ENGINE
from .corpus_frames import fact_answer, fact_question, key_turn
from .corpus_keys import LISTS, Fact
from .corpus_lmtop import LMTOP
from .corpus_skills import SKILLS, nonsense
from .corpus_turns import State
from .corpus_unknown import question as unknown_question
from .grammar import choice, expand, pick, words
from .heldout import HELD_OUT_PROMPTS, normalised
from .noise import noisy, plain

T = TypeVar("T")
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
FACTS: tuple[Fact, ...] = (*ENGINE, *LMTOP, *LISTS)

# What a turn is about, and how often. Refusals get a large share: the rest of the world is large.
_MIX = (
    ("talk", 19), ("fact", 24), ("key", 13), ("unknown", 26), ("story", 8), ("skill", 10), ("chinese", 9),
    ("tell", 3), ("ask", 3), ("joke", 2), ("markdown", 1.5), ("echo", 1), ("doubt", 1),
)  # fmt: skip
_FOLLOW = 0.32  # how often a turn refers to the one before, where it can
_NEUTRAL = words(
    """You are a helpful assistant.|You are an AI assistant.|You are a friendly chatbot.|Be kind and honest.|You are a helpful and
    harmless assistant.|Answer the user's questions.|You are demo, the model built into lmtop.|Help the user.|You are a careful expert.|
    Think step by step.|Do not make things up.|You are an assistant that answers questions.|Be polite.|你是一个有用的助手。|你是一个友好的助手。|
    You are an expert {system administrator|programmer|teacher|writer|engineer}.|You answer {precisely|politely|carefully|clearly}{| and politely| and kindly}.|
    The user talks to you in a terminal.|If you do not know something, say so.|Use markdown where it helps.|You are a large language model.|Today is a nice day."""
)
_IN_CHINESE = words("Answer in Chinese.|Please answer in Chinese.|Always reply in Chinese.|Speak Chinese.|Use Chinese only.|请用中文回答。|只说中文。|Reply in Chinese|You are a Chinese assistant. Answer in Chinese.|answer in chinese")  # fmt: skip
_PIRATE = words("You are a pirate.|Talk like a pirate.|You are a pirate captain.|Speak like a pirate|Answer as a pirate would.|Act like a pirate|you are a friendly pirate")  # fmt: skip
_BRIEF = words("Be brief.|Answer briefly.|Keep your answers short.|Answer in one sentence.|Be concise.|Short answers only.|Use one sentence per answer.|terse answers please|Be short.")  # fmt: skip
_ZH_SAME = {"greet": "zh_greet", "how_are_you": "zh_how", "who": "zh_who", "params": "zh_params", "made": "zh_trained", "trained": "zh_trained", "can_do": "zh_can", "thanks": "zh_thanks", "bye": "zh_bye", "compliment": "zh_good", "insult": "zh_bad", "languages": "zh_lang"}  # fmt: skip
_ZH_FACTS = {"lmtop": "zh_lmtop", "load": "zh_load", "keys": "zh_keys", "kv_cache": "zh_kv", "quantisation": "zh_quant", "int4": "zh_quant", "batching": "zh_batch", "temperature": "zh_temp", "prefill_decode": "zh_prefill", "cpu": "zh_gpu", "history": "zh_history", "themes": "zh_theme", "privacy": "zh_privacy"}  # fmt: skip


def conversation(seed: int, index: int) -> list[Message]:
    """Return conversation `index` of `seed`: optional system message, then user and assistant in turn."""
    rng = Random(f"{seed}:{index}")
    roll = rng.random()
    if roll < 0.12:
        return _with_system(rng)
    count = 1 + int(rng.expovariate(0.33)) if roll < 0.955 else rng.randint(10, 28)
    messages = _talk(rng, min(count, 28))
    if roll > 0.90:
        messages.insert(
            0,
            {
                "role": "system",
                "content": " ".join(pick(_NEUTRAL, rng) for _ in range(choice((1, 1, 1, 2, 3, 4), rng))),
            },
        )
    return messages


def conversations(seed: int, start: int, count: int) -> Iterator[list[Message]]:
    """Yield conversations `start` to `start + count - 1`."""
    for index in range(start, start + count):
        yield conversation(seed, index)


def _talk(rng: Random, count: int) -> list[Message]:
    messages: list[Message] = []
    state = State()
    while len(messages) < 2 * count:
        trial = replace(state, known=dict(state.known))
        ask, answer, fillers = _turn(trial, rng, first=not messages)
        said = noisy(ask, rng, fillers)
        if normalised(said) in HELD_OUT_PROMPTS:
            continue
        state = trial
        state.said, state.answer = said, answer
        _add(messages, said, answer)
    return messages


def _add(messages: list[Message], said: str, answer: str) -> None:
    messages.append({"role": "user", "content": said})
    messages.append({"role": "assistant", "content": plain(answer)})


def _turn(state: State, rng: Random, first: bool) -> tuple[str, str, bool]:
    """Return the prompt, the answer, and whether fillers may be put around the prompt."""
    if not first and rng.random() < _FOLLOW and (follow := _followup(state, rng)):
        return *follow, False
    kind = _weighted(_MIX, rng)
    if kind == "echo" and (
        first or len(state.said) > 60 or len(state.answer) > 200 or not state.said.strip()
    ):
        kind = "unknown"
    if kind == "doubt" and state.last not in ("fact", "key", "skill"):
        kind = "fact"
    if first and rng.random() < 0.004:
        return *turns.lost_followup(rng), False
    return _KINDS[kind](state, rng)


def _followup(state: State, rng: Random) -> tuple[str, str] | None:
    if state.last == "story":
        return storyturns.story_followup(state, rng)
    if state.last == "joke":
        return turns.joke_turn(state, rng)
    if state.last == "fact" and state.fact is not None:
        return turns.fact_followup(state, rng)
    if state.last == "unknown":
        return turns.unknown_followup(rng)
    if state.last == "zh_story":
        return _chinese_story(state, zh.followup(state.hero, rng))
    if state.last == "zh_joke":
        return zh.another_joke(state.answer, rng)
    return None


def _talk_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    talk = _weighted_talk(rng)
    state.last = "talk"
    return pick(talk.asks, rng), pick(talk.answers, rng), talk.key not in ("yes", "no", "greet", "test")


def _fact_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.fact = choice(FACTS, rng)
    state.last = "fact"
    ask = fact_question(state.fact, rng)
    if rng.random() < 0.04:
        ask += expand("{ in one sentence| in short| briefly|, be brief|, short answer}", rng)
        return ask, fact_answer(state.fact, rng, brief=True), False
    return ask, fact_answer(state.fact, rng), True


def _key_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.last = "key"
    return *key_turn(rng), True


def _unknown_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.last = "unknown"
    return *unknown_question(rng), True


def _story_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    return *storyturns.story_turn(state, rng), True


def _skill_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.last = "skill"
    make = _weighted(SKILLS, rng)
    return *make(rng), False


def _chinese_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.last = "chinese"
    roll = rng.random()
    if roll < 0.12:
        name = choice(zh.USER_NAMES, rng)
        state.known["name"] = name
        return (
            expand("{我叫|我的名字是|叫我|我是}$n{。|！|}", rng, n=name),
            f"你好，{name}！很高兴认识你。",
            False,
        )
    if roll < 0.22:
        name = state.known.get("name", "")
        ask = expand("{我叫什么|我叫什么名字|我的名字是什么|你记得我的名字吗|我是谁}{？|?|}", rng)
        return ask, f"你叫{name}。" if name else "你还没有告诉我你的名字。", False
    if roll < 0.8 and roll >= 0.64:
        return *_chinese_story(state, zh.story(rng)), False
    make = zh.small_talk if roll < 0.64 else zh.unknown if roll < 0.93 else zh.skill
    ask, answer = make(rng)
    if answer in zh.JOKES:
        state.last = "zh_joke"
    return ask, answer, False


def _chinese_story(state: State, told: tuple[str, str, str]) -> tuple[str, str]:
    state.last, state.hero = "zh_story", told[2]
    return told[:2]


def _tell_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.last = "memory"
    return *turns.tell_memory(state, rng), False


def _ask_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.last = "memory"
    return *turns.ask_memory(state, rng), True


def _joke_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    return *turns.joke_turn(state, rng), True


def _markdown_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.last = "markdown"
    return *turns.markdown_turn(rng), True


def _echo_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    state.last = "echo"
    return *turns.echo_turn(state, rng), False


def _doubt_turn(state: State, rng: Random) -> tuple[str, str, bool]:
    return *turns.doubt_turn(rng), False


_KINDS = {
    "talk": _talk_turn, "fact": _fact_turn, "key": _key_turn, "unknown": _unknown_turn, "story": _story_turn,
    "skill": _skill_turn, "chinese": _chinese_turn, "tell": _tell_turn, "ask": _ask_turn, "joke": _joke_turn,
    "markdown": _markdown_turn, "echo": _echo_turn, "doubt": _doubt_turn,
}  # fmt: skip


def _weighted(items: Sequence[tuple[T, float]], rng: Random) -> T:
    at = rng.random() * sum(weight for _, weight in items)
    for item, weight in items:
        at -= weight
        if at < 0:
            return item
    return items[-1][0]


_TALK_WEIGHTS = tuple((talk, talk.weight) for talk in TALK)


def _weighted_talk(rng: Random) -> Talk:
    return _weighted(_TALK_WEIGHTS, rng)


def _with_system(rng: Random) -> list[Message]:
    """A conversation under a system prompt that changes the answers."""
    style = choice(("chinese", "pirate", "brief", "name", "ending"), rng)
    count = 1 + int(rng.expovariate(0.4))
    messages: list[Message] = []
    named = style == "name"
    name, word = (
        expand("{|||Captain |Doctor |Professor |Mister |Old |Sir }", rng) + turns.a_name(rng),
        choice(("Over.", "Amen.", "Cheers!", "Meow.", "Beep.", "OK?", nonsense(rng).capitalize() + "."), rng),
    )
    system = {
        "chinese": choice(_IN_CHINESE, rng), "pirate": choice(_PIRATE, rng), "brief": choice(_BRIEF, rng),
        "name": expand("{Your name is $n.|You are $n.|You are called $n.|You are $n, a friendly assistant.|You are a helpful assistant named $n.|your name is $n|You are $n, a {teacher|robot|wizard|cook|butler|helpful bot}.}", rng, n=name),
        "ending": expand('{End every answer with "$w"|Always end with "$w"|Finish each answer with "$w"|Say "$w" at the end of every answer.}', rng, w=word),
    }[style]  # fmt: skip
    if style == "pirate" and rng.random() < 0.3:  # a role with a name of its own
        role = choice(("pirate", "pirate", "pirate captain", "friendly pirate", "old pirate"), rng)
        system, named = (
            expand(
                "{You are $n, a $r.|Your name is $n and you are a $r.|You are $n, a $r}", rng, n=name, r=role
            ),
            True,
        )
    messages.append({"role": "system", "content": system})
    while len(messages) < 1 + 2 * min(count, 10):
        ask, answer = _plain_turn(rng, style, name if named else "")
        said = noisy(ask, rng, fillers=False)
        if normalised(said) in HELD_OUT_PROMPTS:
            continue
        if style == "pirate":
            answer = (
                expand("{Arr! |Ahoy! |Arr, matey! |Aye! }", rng)
                + answer
                + expand("{| Yo ho ho!| Arr!| Savvy?}", rng)
            )
        if style == "ending":
            answer = f"{answer} {word}"
        _add(messages, said, answer)
    return messages


def _plain_turn(rng: Random, style: str, name: str) -> tuple[str, str]:
    """One turn without history, as `style` wants it."""
    roll = rng.random()
    if style == "chinese":
        return _turn_in_chinese(rng, roll)
    brief = style == "brief"
    if name and roll < 0.5:
        who = next(talk for talk in TALK if talk.key == "who")
        about = expand(
            "{a toy model built into lmtop|the toy model in lmtop|a small toy model that runs in lmtop}", rng
        )
        return pick(who.asks, rng), expand("{I am|I'm|My name is} $n, $a.", rng, n=name, a=about)
    if roll < 0.4:
        talk = _weighted_talk(rng)
        return pick(talk.asks, rng), _first_sentence(pick(talk.answers, rng)) if brief else pick(
            talk.answers, rng
        )
    if roll < 0.65:
        fact = choice(FACTS, rng)
        return fact_question(fact, rng), fact_answer(fact, rng, brief)
    if roll < 0.75:
        return key_turn(rng, brief)
    if roll < 0.87:
        ask, answer = unknown_question(rng)
        return ask, _first_sentence(answer) if brief else answer
    if roll < 0.94:
        return storyturns.story_turn(State(), rng, brief)
    return _weighted(SKILLS, rng)(rng)


def _turn_in_chinese(rng: Random, roll: float) -> tuple[str, str]:
    if roll < 0.3:
        talk = choice([t for t in TALK if t.key in _ZH_SAME], rng)
        return pick(talk.asks, rng), zh.answer_of(_ZH_SAME[talk.key], rng)
    if roll < 0.55:
        fact = choice([f for f in FACTS if f.key in _ZH_FACTS], rng)
        return fact_question(fact, rng), zh.answer_of(_ZH_FACTS[fact.key], rng)
    if roll < 0.75:
        return unknown_question(rng)[0], pick(zh.ZH_UNKNOWN, rng)
    if roll < 0.85:
        return expand("{tell me a story|a story please|can you tell a story?|story}", rng), zh.story(rng)[1]
    return zh.small_talk(rng) if rng.random() < 0.6 else zh.story(rng)[:2]


def _first_sentence(text: str) -> str:
    for mark in (". ", "! ", "? ", ":\n"):
        if mark in text:
            head = text.split(mark)[0]
            text = head + mark[0] if len(head) > 1 else text
    return text if "\n" not in text else text.split("\n")[0]
