"""Questions about the rest of the world, composed from common words, none of which the model knows about.

The fixed lists of `corpus_unknown.py` teach what to refuse; these teach that unfamiliar words in familiar
sentences are to be refused too, and not answered with the nearest fact about lmtop.
"""

from random import Random

from .grammar import choice, pick, words

_NOUNS = words(
    """egg|bank|volcano|glacier|lawyer|kidney|pension|bicycle|monsoon|orchestra|bakery|mushroom|tractor|opera|parliament|rainbow|muscle|
    mortgage|satellite|lighthouse|pancake|tomato|sofa|carpet|passport|dentist|engine oil|vitamin|protein|mitochondrion|enzyme|antibody|
    neutron|electron|magnet|lens|telescope|microscope|fossil|desert|canyon|tide|hurricane|tornado|blizzard|drought|harvest|tractor|wheat|
    barley|rice|coffee|chocolate|honey|vinegar|yeast|olive oil|garlic|ginger|cinnamon|saffron|vanilla|dough|oven|fridge|dishwasher|vacuum cleaner|
    ladder|hammer|screw|paint|concrete|brick|roof|chimney|gutter|lawn|hedge|compost|fertiliser|tulip|orchid|cactus|oak|pine|bamboo|moss|
    salmon|tuna|shrimp|jellyfish|coral|pigeon|owl|falcon|wolf|hamster|guinea pig|puppy|kitten|flea|mosquito|wasp|termite|cholesterol|
    allergy|asthma|toothache|insomnia|bruise|sunburn|blister|pregnancy|diet|marathon|gym|push-up|yoga mat|tent|backpack|compass|kayak|surfboard|
    ski|skateboard|violin|trumpet|drum kit|choir|ballet|novel|poem by goethe|newspaper|podcast|documentary|sitcom|cartoon|comic|puzzle|board game|
    casino|lottery|tax|invoice|salary|budget|loan|stock|dividend|auction|contract|lawsuit|judge|election|senate|treaty|border|embassy|
    wedding|funeral|birthday|divorce|birthday cake|christmas tree|easter|ramadan|diwali|halloween costume|pyramid|cathedral|castle in scotland|
    viking|knight of the round table|samurai|pharaoh|emperor|columbus|dinosaur|mammoth|neanderthal|planet|galaxy|comet|eclipse|rocket engine|
    telephone|camera|printer driver|router|password manager|spam|phishing mail|laptop battery|phone screen|headphone|charger|cable|projector|
    airport|ferry|subway|traffic light|parking ticket|driving licence|car insurance|brake|tyre|gearbox|horsepower|diesel|electric car|windmill"""
)
_VERBS = words(
    """eat|cook|bake|clean|repair|buy|sell|rent|build|paint|plant|grow|cut|wash|store|freeze|boil|fry|ride|drive|park|feed|train|teach|
    learn|understand|measure|weigh|open|remove|replace|install|design|invent|discover|protect|cure|treat|avoid|prevent|recycle|sharpen|tune|
    translate|publish|advertise|negotiate|calculate|predict|photograph|collect|decorate|organise|cancel|return|order|insure|inherit"""
)
_DOES = words(
    "erupt|work|grow|fly|sleep|breathe|melt|break|rust|smell|float|sink|burn|spread|change colour|get sick|cost so much|last long|hurt|taste bitter|live so long|migrate|explode|shrink|glow"
)
_ADJECTIVES = words(
    "healthy|dangerous|legal|safe|expensive|cheap|normal|possible|useful|rare|common|poisonous|good for you|bad for you|hard|easy|popular|heavy|valuable|allowed"
)
_PLACES = words(
    "bank|post office|library|supermarket|museum|zoo|pharmacy|school|gym|restaurant|shop|town hall|cinema|swimming pool|train station|airport"
)
_TIMES = words(
    "every day|at night|in winter|in summer|on sunday|before breakfast|after work|during pregnancy|with a fever|in the rain|at home|abroad|without money|for a week|in germany|in the us"
)
_PEOPLE = words(
    "first man on the moon|mayor of chicago|inventor of the telephone|richest man|fastest runner|best singer|youngest president|king of spain|author of dracula|last pharaoh|head of the un|founder of ikea|coach of the team|first woman in space|oldest person alive"
)
_FRAMES = (
    "is it $a to $v {a |the |my |}$n{ $w|}?", "is {a |the |my |}$n $a{ $w|}?", "what does {a |the |}$n do{| in the body| all day| for us}?", "how do {$n|a $n and a $m} $d?",
    "how does {a |the |}$n $d?", "why {do|does|did} {the |a |my |}$n $d{ $w|}?", "what time does the $l {open|close}{ $w|}?", "where is the {nearest |next |}$l?", "when {is|does} the $l {open|closed|close}?",
    "what is the best way to $v {a |my |}$n{s|}?", "how do i $v {a |the |my |}$n{ $w|}?", "how can i $v {a |my |}$n {without|with} a $m?", "how to $v {a |}$n", "should i $v {a |the |my |}$n{ $w|}?",
    "can i $v {a |the |my |}$n{ $w|}?", "what is {a |the |}$n{ made of| good for|}?", "what's the difference between {a |}$n and {a |}$m?", "what is the {distance|relation|ratio} between {the |}$n and {the |}$m?",
    "which $n is {best|better|cheapest|biggest|the oldest}?", "who {is|was} the $p?", "who {invented|discovered|built|painted|sells} the $n?", "when was the $n {invented|discovered|built}?",
    "how {much|many} $n{s|} {do i need|are there|should i $v}?", "how long does {a |the |}$n {last|take|live}?", "how {big|old|heavy|fast|tall} is {a |the |}$n?", "tell me about {the |}$n{s|}", "tell me {everything|something} about the {history|price|use|origin} of {the |}$n",
    "{explain|describe} {a |the |}$n{| to me| in detail}", "what do you know about {the |}$n{s|}?", "give me {tips|advice|ideas|a recipe|instructions} {for|about|with} {a |my |}$n", "do you {know|recommend} {the |a |}$n?", "i {need|want} {a|the} $n, {any ideas|what should i do|which one}?",
    "my $n is broken", "my $n {hurts|smells|is too loud|does not work}", "$n or $m?", "$n", "$n and $m", "the $n", "what happens {if|when} {i|you} $v {a |the |}$n?", "why is {the |a |}$n {so |}$a?", "is there {a |any |}$n in {space|the sea|my food|africa|the city}?",
    "what year {was the $n invented|did the $p die|did columbus sail|did the war end}?", "write {a |an |}{essay|letter|email|report|speech|review} about {the |}$n", "recipe for $n", "price of {a |}$n", "history of {the |}$n", "{best|cheapest} $n {for beginners|in town|online}", "how many $n{s|} can {a|one} $m $v?",
    "i am looking for a $n", "the $n is $a", "i {bought|saw|lost|broke} {a|my} $n {yesterday|today|last week}", "what did the $p {say|do|eat|write}?", "did the $p {really |}$v a $n?",
)  # fmt: skip


def question(rng: Random) -> str:
    """One question or remark about the world."""
    lists = {
        "n": _NOUNS, "m": _NOUNS, "v": _VERBS, "d": _DOES, "a": _ADJECTIVES, "l": _PLACES, "w": _TIMES, "p": _PEOPLE,
    }  # fmt: skip
    return pick(_FRAMES, rng, **{slot: choice(items, rng) for slot, items in lists.items()})
