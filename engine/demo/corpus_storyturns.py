"""How people ask for stories, and what they say after one."""

from random import Random

from . import corpus_stories as stories
from .corpus_skills import SPELLABLE, nonsense
from .corpus_turns import State, Turn, a_name
from .grammar import choice, expand, pick
from .noise import keep

_STORY_ANY = (
    "{tell|write|make up|give|invent|create|read} {me |us |}{a|another|one|a short|a little|a nice|a good|a new|a funny|a small|some|a scary|a sad|a happy|an exciting|a strange|a random|a sweet} {story|tale|bedtime story|fairy tale}{|, please| please| for my kids| for children| to sleep}", "{a |}story{|, please| please| time}", "can you tell {me |}{a story|stories}?", "i {want|would like|'d like} {a story|to hear a story|to read a story}", "tell me any story", "do you know {a|any} {story|stories|fairy tales}?", "{story|tale}", "once upon a time", "tell a story about {anything|something|whatever you like}", "start a story", "let me hear a story", "another story", "can you write a story?", "i'd love a story", "make up a tale",
)  # fmt: skip
_STORY_ABOUT = (
    "{tell|write|make up|give|invent|create|make} {me |us |}{a|a short|a little|a nice|a good|a new|a funny|a small|one} {story|tale|bedtime story|fairy tale} {about|of|with} $t{|, please| please}", "{a |}{short |}story {about|of|with} $t{| please}", "can you {tell|write} {me |}a story about $t?", "i {want|would like} a story about $t", "story about $t", "$t story", "do you know a story about $t?", "tell me about $t in a story", "{a |}story where $t is the hero", "something about $t, as a story", "could you make a story about $t?", "tell me the {story|tale} of $t",
)  # fmt: skip


def _topic(rng: Random) -> tuple[str, stories.Cast]:
    """What to ask for, and the cast that honours it."""
    roll = rng.random()
    hero = (
        nonsense(rng)
        if rng.random() < 0.18
        else choice(SPELLABLE, rng)
        if rng.random() < 0.06
        else stories.random_hero(rng)
    )
    article = stories.with_article(hero)
    kept = expand("{a |the |a little |an old |a brave |}", rng) + keep(hero)
    if (
        kept.endswith(keep(hero))
        and kept.startswith("a ")
        and article.startswith("an ")
        and kept.count(" ") == 1
    ):
        kept = "an " + keep(hero)
    if roll < 0.5:
        return kept, stories.make_cast(rng, hero)
    if roll < 0.64:
        friend = stories.random_hero(rng)
        return f"{kept} and {stories.with_article(friend)}", stories.make_cast(
            rng, hero, friend if friend != hero else "owl"
        )
    if roll < 0.78:
        place = choice(stories.PLACES, rng)
        return f"{kept} {place}", stories.make_cast(rng, hero, place=place)
    if roll < 0.85:
        thing = choice(stories.THINGS, rng)
        return f"{kept} and {stories.with_article(thing)}", stories.make_cast(rng, hero, thing=thing)
    if roll < 0.9:
        name = a_name(rng)
        return f"{kept} {choice(('named', 'called'), rng)} {keep(name)}", stories.make_cast(
            rng, hero, name=name
        )
    if roll < 0.92:
        city = choice(
            ("Paris", "London", "Berlin", "Tokyo", "Rome", "China", "Africa", "New York", "Vienna"), rng
        )
        return f"{kept} in {keep(city)}", stories.make_cast(rng, hero, place=f"in {city}")
    if roll < 0.93:
        number = choice(("two", "three", "a few", "some"), rng)
        return f"{number} {keep(_plural(hero))}", stories.make_cast(rng, hero, friend=f"other {hero}")
    if roll < 0.95:
        aside = expand(
            "{who|that} {is afraid of {fire|the dark|water|cats}|cannot {sleep|fly|swim}|wants to {fly|learn|travel|be a king}|lost {a friend|the way|a shoe}|eats too much|loves {music|cheese|the moon}}",
            rng,
        )
        return f"{kept} {aside}", stories.make_cast(rng, hero)
    if roll < 0.965:
        thing = choice(stories.THINGS, rng)
        return stories.with_article(thing), stories.make_cast(rng, thing=thing)
    theme = choice(stories.THEMES, rng)
    return theme, stories.make_cast(rng, theme=theme)


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _for_someone(rng: Random) -> tuple[str, stories.Cast]:
    """A story for a child, who is then its hero."""
    name, who = a_name(rng), choice(("girl", "boy", "child"), rng)
    kin = {"girl": "daughter", "boy": "son", "child": "kid"}[who]
    ask = "{tell|write|can you write|can you tell|please write|i need} {me |}a {|bedtime |short |nice }story for {my $k |my little $k |}$n{, please| please|}"
    return expand(ask, rng, k=kin, n=keep(name)), stories.make_cast(rng, who, name=name)


def story_turn(state: State, rng: Random, brief: bool = False) -> Turn:
    """A story on request, free or about something."""
    long = not brief and rng.random() < 0.1
    if rng.random() < 0.35:
        state.cast = stories.make_cast(rng)
        ask = expand(choice(_STORY_ANY, rng), rng)
    elif rng.random() < 0.06:
        ask, state.cast = _for_someone(rng)
    else:
        topic, state.cast = _topic(rng)
        ask = pick(_STORY_ABOUT, rng, t=topic)
    state.last = "story"
    if long:
        ask = ask.replace("a story", "a long story", 1) if "a story" in ask else f"{ask} (a long one)"
        return ask, stories.tell(state.cast, rng, long=True, title=rng.random() < 0.5)
    if brief or rng.random() < 0.05:
        ask = (
            ask
            if brief
            else f"{ask}, {choice(('very short', 'in two sentences', 'keep it short', 'a very short one'), rng)}"
        )
        return ask, stories.tell_short(state.cast, rng)
    return ask, stories.tell(state.cast, rng, title=rng.random() < 0.1)


def story_followup(state: State, rng: Random) -> Turn:
    """What people say after a story."""
    cast = state.cast
    assert cast is not None
    roll = rng.random()
    state.last = "story"
    if roll < 0.35:
        state.cast = stories.make_cast(rng, stories.hero_after(cast.hero) if rng.random() < 0.5 else "")
        return pick(
            (
                "{another|another one|one more|again|next|a different one|tell me another|a new one|more stories|another story|and another|next one|more|one more please|do another}{|, please| please|!}",
            ),
            rng,
        ), stories.tell(state.cast, rng)
    if roll < 0.5:
        return pick(
            (
                "{shorter|make it shorter|a shorter version|too long|shorter please|short version|in two sentences|summari{s|z}e it|tl;dr|summary|can you make it shorter?}",
            ),
            rng,
        ), stories.tell_short(cast, rng)
    if roll < 0.6:
        return pick(
            ("{longer|make it longer|a longer version|too short|longer please|more details}",), rng
        ), stories.tell(cast, rng, long=True)
    if roll < 0.72:
        return pick(
            (
                "{continue|go on|what happened next?|and then?|what happened then?|next chapter|keep going|how does it go on?|and after that?|then what?}",
            ),
            rng,
        ), stories.next_chapter(cast, rng)
    if roll < 0.8:
        return pick(
            (
                "who {was|is} the {hero|main character|story about}?",
                "what {was|is} the {hero called|name of the hero|name of the $h}?",
                "what was the $h called?",
                "what was {its|his|her|the} name{| again}?",
                "{its|his|her} name?",
                "who was it about?",
            ),
            rng,
            h=cast.hero,
        ), f"The hero was {stories.with_article(cast.hero)} named {cast.name}."
    if roll < 0.88:
        hero = nonsense(rng) if rng.random() < 0.2 else stories.random_hero(rng)
        state.cast = stories.make_cast(rng, hero)
        return pick(
            (
                "{now|and|please|one|another one|now one|the same|a story|make it|how} about {a |}$h{|, please| please|?}",
                "now with {a |}$h",
                "{and one|one more} {about|with} a $h",
                "change the hero to a $h",
                "can the hero be a $h?",
            ),
            rng,
            h=keep(hero),
        ), stories.tell(state.cast, rng)
    if roll < 0.94:
        return pick(
            (
                "what is the {moral|lesson}{ of the story|}?",
                "what can we learn from {it|this|that}?",
                "what does it mean?",
                "moral?",
            ),
            rng,
        ), pick(
            (
                "{The lesson is|I think it says}: {be kind and help each other|good friends are worth more than gold|do not give up}.",
            ),
            rng,
        )
    return pick(
        (
            "is {it|this|that|the story} true?",
            "did {it|that} really happen?",
            "where did you {get|read|hear} {it|that|this story}?",
            "did you {write|invent|make up} {it|this|that}?",
        ),
        rng,
    ), pick(
        (
            "No, I made it up, {token by token|one token after the other}.",
            "I made it up. It is only a story.",
        ),
        rng,
    )
