"""Short stories from a grammar: a hero, a place, a thing, a friend, and one of several plots."""

from dataclasses import dataclass
from random import Random

from .grammar import choice, expand, pick, words

ANIMALS = words(
    """fox|cat|dog|bear|wolf|owl|mouse|rabbit|hedgehog|squirrel|crow|duck|frog|turtle|whale|dolphin|penguin|lion|tiger|
    elephant|giraffe|monkey|horse|donkey|goat|sheep|pig|cow|chicken|rooster|goose|swan|eagle|parrot|sparrow|bee|ant|
    spider|butterfly|snail|worm|beetle|crab|octopus|shark|fish|seal|otter|beaver|badger|deer|moose|camel|kangaroo|koala|
    panda|crocodile|snake|lizard|bat|raven|kitten|puppy|pony|hamster|hare|raccoon|dinosaur|zebra|hippo|seagull|toad|lamb"""
)
CREATURES = words(
    "dragon|unicorn|ghost|giant|troll|monster|alien|snowman|dwarf|elf|goblin|vampire|mermaid|phoenix|genie|yeti|zombie"
)
MACHINES = words(
    """robot|computer|train|ship|rocket|clock|tractor|car|bus|boat|machine|lamp|kettle|toaster|GPU|satellite|fridge|
    plane|bicycle|drone|printer|submarine|spaceship|truck|keyboard|token|language model|terminal|chip|server|cursor"""
)
WOMEN = words("girl|queen|princess|witch|grandmother|woman|nurse|mother|fairy|sister")
MEN = words("boy|king|prince|knight|wizard|old man|grandfather|fisherman|sailor|farmer|man|father|brother")
PEOPLE = words(
    """baker|teacher|pirate|astronaut|programmer|painter|doctor|cook|student|gardener|thief|detective|musician|shepherd|
    tailor|miller|hunter|pilot|scientist|child|dancer|carpenter|ninja|soldier|cowboy|engineer|clown|magician|writer"""
)
# (as the story says it, as the user may say it)
PLACES = words(
    """in a forest|by the sea|on a mountain|in a small village|in a big city|in a castle|in a desert|on an island|
    on the moon|in a garden|in an old house|in a cave|by a river|on a farm|in a library|under a bridge|in the snow|
    in a valley|on a ship|in a school|in a kitchen|at the market|in a jungle|in a lighthouse|on the roof|by a lake|
    in space|under the sea|in a data centre|in a tower|in a museum|in a train station|in a swamp|on a cloud|in the rain"""
)
THINGS = words(
    """key|lantern|map|letter|bell|book|ring|stone|seed|mirror|feather|coin|box|kite|shell|drum|flute|button|apple|
    star|sword|crown|cake|shoe|hat|umbrella|violin|pearl|candle|treasure|door|cookie|ball|egg|bottle|rose|pen|guitar"""
)
THEMES = words(
    """friendship|love|courage|winter|summer|spring|autumn|hope|luck|kindness|the rain|the night|Christmas|music|time|
    patience|a long journey|adventure|magic|honesty|sharing|home|dreams|peace|happiness|fear|losing a friend|the stars"""
)
NAMES = words(
    """Mila|Tom|Ada|Finn|Nora|Oskar|Lina|Max|Ruby|Hugo|Ella|Leo|Greta|Otto|Ivy|Sam|Zoe|Paul|Tilda|Ben|Mina|Kurt|Lola|
    Emil|Pip|Juno|Milo|Wanda|Theo|Rosa|Fred|Alma|Gus|Olive|Jack|Luna|Bruno|Daisy|Felix|Hazel|Toby|Nina|Ralph|Vera"""
)
TRAITS = words(
    "little|brave|curious|shy|clever|quiet|cheerful|lonely|young|old|kind|sleepy|proud|small|hungry|friendly|funny"
)


@dataclass(frozen=True)
class Cast:
    """Who and what a story is about; enough to tell another story with the same cast."""

    hero: str
    friend: str
    place: str
    thing: str
    name: str
    theme: str = ""


_OPEN = (
    "{Once upon a time|Once|Long ago|One day long ago}, there was $a_trait $hero {named|called} $name, who lived $place.",
    "{Once upon a time|Long ago|Not so long ago}, $a_trait $hero lived $place. The $hero's name was $name.",
    "$Place lived $a_trait $hero. {Everybody called the $hero $name|The name of the $hero was $name}.",
    "There was once $a_trait $hero $place. {Everyone|Everybody} called the $hero $name.",
)
_DAILY = (
    "Every {morning|day|evening}, $name {looked at the sky|went for a walk|sang a song|counted the clouds} and {dreamed of|thought about|wished for} {something new|an adventure|a friend}.",
    "$name {liked|loved} {quiet evenings|warm soup|long walks|old songs|funny stories|rain on the roof}, but {most of all|more than anything} $name {wanted|wished for} {a friend|an adventure|something to do}.",
    "",
)
_PLOTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (  # a thing is found and its owner is sought
        ("One {morning|day|evening}, $name found $a_thing {under a tree|on the path|behind a stone|in the grass}. It {was|looked} {old|strange|beautiful} and {shone|glowed} {a little|softly}.",),
        ("\"Who has lost this $thing?\" {asked|wondered} $name.", "\"This $thing must belong to someone,\" {said|thought} $name."),
        ("$name {asked|went to} {everyone|all the neighbours}, {until|and at last} $a_friend {came along|came by} and {cried|smiled}: \"{That is mine|That is my $thing|I have looked for it all week}!\"",),
        ("The $friend was so {happy|glad} that {the two|they} {shared a cake|drank tea|danced|sang} {together|until night}. {From that day on|From then on|After that}, they were {friends|good friends|the best of friends}.",),
    ),
    (  # something is lost
        ("One {day|night|morning}, {a strong wind|a storm|a big wave|a cheeky bird} {took|carried off|stole} $name's $thing.", "One {day|morning}, $name woke up and the $thing was gone."),
        ("$name {searched|looked} {high and low|everywhere}, {but found nothing|but could not find it}, and {sat down sadly|was very sad}.",),
        ("Then $a_friend {came by|came along} and said: \"{Do not worry|Do not cry|Cheer up}. {I will help you|Let us look together|Four eyes see more than two}.\"",),
        ("{Together|Step by step|Side by side} they {followed|went along} {the river|the path|the tracks|the light}, and {at sunset|at last|in the end} they found the $thing {in a nest|behind a hill|under the snow|at the top of a tower|in an old well}.",),
        ("\"{Thank you|I could not have done it alone|Two are better than one},\" said $name. {And they walked home together|They laughed all the way home|That night they both slept well}.",),
    ),
    (  # afraid of something
        ("$name had one secret, and that was {being|to be} afraid of {the dark|deep water|thunder|loud noises|high places|the night}.",),
        ("One {night|evening|day}, $name heard {a cry for help|someone call|a small voice}. It was $a_friend, {who was stuck|who was lost|who could not get out}.",),
        ("$name {trembled|was afraid|took a deep breath|closed both eyes}, but {took the $thing|held the $thing tightly} and went {on|out|forward}, one step {at a time|after the other}.",),
        ("When they were both {safe|outside}, the $friend said: \"{You are very brave|That was brave}.\" \"{I was afraid|I was very afraid},\" said $name, \"but I {went anyway|did it all the same}.\"",),
        ("{Since that day|From that day on|After that}, $name was {a little|much} less afraid.",),
    ),
    (  # wants to learn something
        ("$name wanted to {learn to fly|learn to swim|learn to sing|learn to dance|build a house|see the sea|paint the moon}. {Everybody|All the others|The neighbours} laughed.",),
        ("{Only|But} $a_friend did not laugh. \"{Try it|Start small|Try a little every day},\" said the $friend, \"{and do not give up|one step each day}.\"",),
        ("So $name {tried|practised} {every day|day after day}, and {failed|fell down} {many times|again and again}.", "On the first day it went badly. On the second day it went {badly too|a little better}. $name {kept trying|did not give up}."),
        ("Then, one {bright|cold|quiet} morning, {it worked|$name did it}! {Nobody laughed any more|The $friend clapped and cheered|Everybody came to see it}.",),
        ("And {whenever|when} someone asks how, $name says: \"{A little every day|I did not stop}.\"",),
    ),
    (  # a stranger in bad weather
        ("One {winter|stormy|rainy|cold} {night|evening}, there was a knock at the door. {Outside|In the dark} stood $a_friend, {wet and cold|tired and hungry}.",),
        ("\"{Come in|You can stay here},\" said $name, and made {hot soup|tea|pancakes} for the {guest|stranger}.",),
        ("In the morning, the $friend was gone, but on the table lay $a_thing with a note: \"{For a kind heart|Thank you for the warm night|Use it well}.\"",),
        ("{It turned out to be magic|The $thing brought luck}, and $name never {felt lonely|was cold} again. {And the door stayed open for every guest|Sometimes the $friend comes back to visit}.",),
    ),
    (  # a race or contest
        ("{One summer|One day}, there was a great {race|contest|feast with a race}, and {the prize was|the winner would get} $a_thing.",),
        ("$name wanted to win, and so did $a_friend, who {was very fast|had never lost}.",),
        ("{Half way|In the middle of the race}, the $friend {fell|stumbled|got stuck} and could not go on. {Now $name could win|The way was free for $name}.",),
        ("But $name {stopped|turned around} and {helped|came back to help}. {So they came last, side by side|They reached the end together, as the very last}.",),
        ("{Everybody|All the people} cheered louder for them than for the winner. {The $thing was soon forgotten, the friendship was not|And that was better than any $thing}.",),
    ),
    (  # a message
        ("One {day|morning}, $name {found|got} a letter with {no name|a golden seal|only one line}. It said: \"{Come to the old tower|Follow the river|Bring the $thing} {before night|at sunset}.\"",),
        ("$name {packed|took} the $thing and {some bread|a blanket|a lantern} and {set off|left at once}.",),
        ("On the way, $name met $a_friend who had {got the same letter|a letter too}. {They went on together|So they walked together}.",),
        ("At the end of the way, there was {a big table with lights|music and warm light|a feast}: {all their friends had planned a surprise|it was a party, just for them}!",),
        ("{They celebrated until the sun came up|It was the best night of the year}, and {nobody ever learned|to this day nobody knows} who wrote the letters.",),
    ),
)  # fmt: skip
_END = ("", "", "The end.", "{And|So} if you {listen|look} closely {at night|in the evening}, you can {still hear|still see} $name {laugh|sing|wave}.", "{The lesson|The moral} is {simple|clear}: {be kind|help each other|never give up|good friends are worth more than gold}.")  # fmt: skip


def with_article(noun: str) -> str:
    if noun.startswith("other "):
        return f"an{noun}"
    return ("an " if noun[:1].lower() in "aeio" or noun.startswith(("um", "uncle")) else "a ") + noun


def random_hero(rng: Random) -> str:
    """Return a noun that can be a story's hero."""
    group = choice((ANIMALS, ANIMALS, CREATURES, MACHINES, WOMEN, MEN, PEOPLE), rng)
    return choice(group, rng)


def hero_after(hero: str) -> str:
    """The hero of "another one": a fixed successor, so that a greedy second story differs from the first."""
    return random_hero(Random(f"after {hero}"))


def make_cast(
    rng: Random,
    hero: str = "",
    friend: str = "",
    place: str = "",
    thing: str = "",
    theme: str = "",
    name: str = "",
) -> Cast:
    """Fill in whatever the user did not ask for."""
    hero = hero or random_hero(rng)
    usual = Random(hero)  # half of a hero's stories go alike, so greedy stories differ between heroes
    liked = (random_hero(usual), choice(PLACES, usual), choice(THINGS, usual), choice(NAMES, usual))
    draws = [rng.random() < 0.4 for _ in liked]
    friend = friend or (liked[0] if draws[0] else "")
    while not friend or friend == hero:
        friend = random_hero(rng)
    place, thing, name = (
        given or (usually if draw else "")
        for given, usually, draw in zip((place, thing, name), liked[1:], draws[1:], strict=True)
    )
    return Cast(
        hero,
        friend,
        place or choice(PLACES, rng),
        thing or choice(THINGS, rng),
        name or choice(NAMES, rng),
        theme,
    )


def tell(cast: Cast, rng: Random, long: bool = False, title: bool = False) -> str:
    """Tell a story of about 60 to 120 words; a long one has two or three chapters."""
    slots = _slots(cast, rng)
    plots = rng.sample(_PLOTS, 2 + (rng.random() < 0.4)) if long else [_plot(cast, rng)]
    parts = []
    if cast.theme:
        parts.append(
            pick(("This is a story about $theme. ", "Here is a story about $theme. "), rng, theme=cast.theme)
        )
    parts.append(pick(_OPEN, rng, **slots) + " " + pick(_DAILY, rng, **slots))
    chapters = [" ".join(pick(step, rng, **slots) for step in plot) for plot in plots]
    if long:
        text = f"{parts[0]}{parts[1] if len(parts) > 1 else ''}".strip()
        heads = ("The beginning", "The next day", "The last chapter")
        body = "\n\n".join(f"**{heads[i]}**\n\n{chapter}" for i, chapter in enumerate(chapters))
        text = f"{text}\n\n{body}"
    else:
        gap = "\n\n" if rng.random() < 0.4 else " "
        text = "".join(parts).strip() + gap + chapters[0]
    ending = pick(_END, rng, **slots)
    text = f"{text}\n\n{ending}" if long and ending else f"{text} {ending}".rstrip()
    head = (
        expand("{## $name and the $thing|## The $hero and the $friend}", rng, **slots) + "\n\n"
        if title
        else ""
    )
    return head + text.replace("  ", " ")


def _plot(cast: Cast, rng: Random) -> tuple[tuple[str, ...], ...]:
    return choice(_PLOTS, Random(f"{cast.hero} plot") if rng.random() < 0.5 else rng)


def next_chapter(cast: Cast, rng: Random) -> str:
    """Go on with the same hero."""
    slots = _slots(cast, rng)
    later = expand(
        "{The next day|A week later|Some time later|In the following spring} there was more to tell. ", rng
    )
    return later + " ".join(pick(step, rng, **slots) for step in choice(_PLOTS, rng))


def tell_short(cast: Cast, rng: Random) -> str:
    """Tell it in two or three sentences."""
    return pick(
        (
            "$A_hero named $name {lived|was alone} $place. One day $name {met|helped} $a_friend, and {they shared $a_thing|together they found $a_thing}. They have been friends ever since.",
            "$name, $a_hero, lost $a_thing $place. $A_friend helped to look for it. They found it, and a friendship too.",
            "$name was $a_trait $hero $place. When $a_friend needed help, $name came at once. That night nobody was alone.",
        ),
        rng,
        **_slots(cast, rng),
    )


def _slots(cast: Cast, rng: Random) -> dict[str, str]:
    trait = choice(TRAITS, rng)
    return {
        "hero": cast.hero, "friend": cast.friend, "place": cast.place, "thing": cast.thing, "name": cast.name,
        "Place": cast.place[:1].upper() + cast.place[1:],
        "a_trait": with_article(trait), "a_hero": with_article(cast.hero), "A_hero": _cap(with_article(cast.hero)), "a_friend": with_article(cast.friend), "A_friend": _cap(with_article(cast.friend)),
        "a_thing": with_article(cast.thing),
    }  # fmt: skip


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
