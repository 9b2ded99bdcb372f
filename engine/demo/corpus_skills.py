"""Small abilities: counting, sums, days, colours, opposites, spelling, repeating, a few plain facts, markdown."""

from collections.abc import Callable
from random import Random

from .corpus_stories import ANIMALS, MACHINES, PEOPLE, THINGS, with_article
from .grammar import choice, expand, pick, words
from .noise import keep

Turn = tuple[str, str]  # what the user says (with `keep` marks), what the model answers

DAYS = words("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
MONTHS = words("January|February|March|April|May|June|July|August|September|October|November|December")
COLOURS = words("red|blue|green|yellow|orange|purple|pink|brown|black|white|grey|turquoise")
FRUITS = words(
    "apple|banana|pear|cherry|plum|orange|lemon|grape|peach|mango|strawberry|kiwi|melon|fig|apricot"
)
NUMBERS = words("zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty")  # fmt: skip
_LISTS = {
    "animals": ANIMALS[:14], "colours": COLOURS, "colors": COLOURS, "fruits": FRUITS, "days of the week": DAYS,
    "months": MONTHS, "professions": words("baker|teacher|painter|doctor|cook|gardener|musician|pilot|engineer|writer|nurse|farmer"),
    "machines": words("robot|computer|train|clock|tractor|car|bus|printer|drone|submarine"),
    "vegetables": words("carrot|potato|onion|tomato|bean|pea|cabbage|spinach|leek|pumpkin|cucumber|beetroot"),
}  # fmt: skip
_OPPOSITE_PAIRS = words(
    """hot/cold|big/small|up/down|left/right|day/night|black/white|good/bad|fast/slow|old/new|high/low|happy/sad|
    open/closed|full/empty|hard/soft|long/short|light/dark|early/late|rich/poor|strong/weak|wet/dry|loud/quiet|
    near/far|thick/thin|clean/dirty|first/last|true/false|yes/no|inside/outside|love/hate|war/peace|begin/end|
    easy/difficult|heavy/light|deep/shallow|brave/cowardly|always/never|more/less|before/after|above/below|buy/sell|
    give/take|push/pull|win/lose|laugh/cry|wide/narrow|sharp/blunt|sweet/sour|summer/winter|north/south|east/west|
    alive/dead|awake/asleep|young/old|tall/short|cheap/expensive|friend/enemy|question/answer|start/stop"""
)
_FACTS = words(
    """legs a spider has/A spider has eight legs.|legs a dog has/A dog has four legs.|legs an insect has/An insect has six legs.|
    legs a bird has/A bird has two legs.|arms an octopus has/An octopus has eight arms.|legs a cat has/A cat has four legs.|
    days a week has/A week has seven days.|days a year has/A year has 365 days, and a leap year 366.|
    months a year has/A year has twelve months.|hours a day has/A day has 24 hours.|minutes an hour has/An hour has 60 minutes.|
    seconds a minute has/A minute has 60 seconds.|letters the alphabet has/The English alphabet has 26 letters.|
    wheels a car has/A car has four wheels.|wheels a bicycle has/A bicycle has two wheels.|sides a triangle has/A triangle has three sides.|
    sides a square has/A square has four sides.|fingers a hand has/A hand has five fingers.|bits a byte has/A byte has eight bits.|
    weeks a year has/A year has 52 weeks and a day or two.|days January has/January has 31 days.|eggs a dozen has/A dozen is twelve."""
)
_PLAIN = (
    (("what colo{|u}r is the sky", "why is the sky blue", "is the sky blue"), ("The sky is blue on a clear day{|, because air scatters blue light most}.",)),
    (("what colo{|u}r is grass", "what colo{|u}r {are leaves|is a leaf|is a frog}", "is grass green"), ("{It is|Mostly} green.",)),
    (("what colo{|u}r is {snow|milk}",), ("{It is white|White}.",)),
    (("what colo{|u}r is a banana", "what colo{|u}r is {a lemon|the sun}"), ("{It is yellow|Yellow}.",)),
    (("what colo{|u}r is {blood|a tomato|a strawberry|a fire engine}",), ("{It is red|Red}.",)),
    (("what colo{|u}r is {coal|the night}",), ("{It is black|Black}.",)),
    (("what is the sun", "is the sun a star"), ("The sun is a star. {The Earth goes around it once a year|It gives us light and warmth}.",)),
    (("what is the moon", "does the moon go around the earth"), ("The moon goes around the Earth. {At night it shines in the light of the sun|It has no light of its own}.",)),
    (("what is water", "at what temperature does water {freeze|boil}", "when does water {freeze|boil}"), ("Water is a liquid that freezes at 0 degrees Celsius and boils at 100.",)),
    (("what does a {dog|puppy} say", "what sound does a dog make"), ("Woof!",)), (("what does a {cat|kitten} say", "what sound does a cat make"), ("Meow!",)),
    (("what does a cow say", "what sound does a cow make"), ("Moo!",)), (("what does a {duck|goose} say", "what sound does a duck make"), ("Quack!",)),
    (("what does a sheep say", "what sound does a sheep make"), ("Baa!",)), (("what does the fox say", "what sound does a fox make"), ("A fox barks and yelps. In my stories it mostly talks.",)),
    (("is the earth {round|flat}", "what shape is the earth"), ("The Earth is round{, like a ball|}.",)), (("is {fire|the sun} hot",), ("Yes, very hot.",)), (("is {ice|snow} cold",), ("Yes, it is cold.",)),
    (("can {birds|a bird} fly",), ("Most birds can fly. Penguins cannot.",)), (("can {pigs|a pig|dogs|cats|cows} fly",), ("No, only in stories.",)), (("can fish {swim|fly}",), ("Fish swim. They do not fly, with few exceptions.",)),
    (("where does the sun rise", "in which direction does the sun rise"), ("The sun rises in the east.",)), (("where does the sun set",), ("The sun sets in the west.",)),
)  # fmt: skip
WORDS = words(
    """house|water|green|happy|table|light|night|mother|garden|window|paper|music|river|bridge|orange|purple|yellow|
    banana|cherry|school|friend|morning|summer|winter|letter|number|cache|block|model|memory|session|keyboard|screen|
    python|linux|server|batch|queue|prompt|answer|story|dragon|castle|island|forest|desert|mountain|hello|world|book|
    bread|cheese|sugar|coffee|chair|mouse|cloud|storm|thunder|flower|silver|golden|planet|rocket|engine|strawberry|
    elephant|butterfly|chocolate|umbrella|computer|language|terminal|monday|friday|september|apple|yes|cat|dog|sun"""
)
SPELLABLE = sorted(
    {w for w in (*WORDS, *ANIMALS, *THINGS, *PEOPLE, *MACHINES, *FRUITS) if w.isalpha() and w.islower()}
)
PHRASES_A = words("the {|small |red |old |quiet |green |happy |blue }{fox|cat|robot|queen|ship|house|moon|river|dog|bird|tree|king}|i|my {friend|dog|brother|cat|sister}|we|nobody|everybody|the weather|this model|lmtop|it")  # fmt: skip
PHRASES_B = words("{likes|loves|sees|wants|needs|eats} {apples|tea|music|the sea|long walks|bread|stars|rain|blocks|nothing}|is {here|nice|cold|blue|asleep|ready|late|fun|tiny|fast}|sings {at night|in the rain|loudly}|runs {fast|home|away}|{can|will} {fly|win|wait|dance|sleep}")  # fmt: skip


def arithmetic(rng: Random) -> Turn:
    """Sums and differences of small numbers, products up to ten times ten."""
    top = choice((10, 10, 20, 50, 100), rng)
    a, b = rng.randint(0, top), rng.randint(0, top)
    op = choice("++++--- *", rng)
    if op in "* ":
        a, b = rng.randint(0, 12), rng.randint(0, 12)
    op = op.strip() or "*"
    if op == "-" and b > a and rng.random() < 0.8:
        a, b = b, a
    value = a + b if op == "+" else a - b if op == "-" else a * b
    sign = {"+": "{+|+|plus| + |and}", "-": "{-| - |minus}", "*": "{*|x|times| * }"}[op]
    left, right = (_number(n, rng) for n in (a, b))
    frame = "{what is |what's |how much is |calculate |compute |||whats |can you add |how many is |solve }$a$op$b{?| =| = ?|=}"
    if op != "+" or "and" not in sign:
        frame = frame.replace("|can you add ", "")
    word = expand(sign, rng)
    if word == "and":
        frame = "{what is the sum of |add |sum |can you add |the sum of }$a$op$b"
    spaced = f" {word} " if word.isalpha() and len(word) > 1 else word
    ask = expand(frame, rng, a=left, b=right, op=spaced)
    shown = {"+": "+", "-": "-", "*": "×"}[op]
    return keep(ask), pick(("$a $s $b = $v", "$a $s $b is $v.", "$a $s $b = $v.", "That is $v: $a $s $b = $v."), rng, a=str(a), b=str(b), s=shown, v=str(value))  # fmt: skip


def too_hard(rng: Random) -> Turn:
    """Numbers and operations out of reach are refused, not guessed."""
    big = str(rng.randint(101, 99999))
    ask = pick(
        ("{what is |calculate |what's |}$a {*|/|+|-|times|divided by|x|plus|minus} $b{?|}", "{what is |what's |calculate |}$e{ | }{*|x|times|×}{ | }$f{?|}", "{what is |calculate |how much is |}$e + $f {+|-|*} $c{?|}", "{solve |}$c{x|y} {+|-} $d = $e{| for x}", "{solve |}{x^2|x²} {+|-} $c{x|} = $e", "$e {+|-|*} $a{?|}", "{what is |}$e{ / |/| divided by }$d{?|}", "{what is |calculate |}$c% of $e{?|}", "how many {seconds|minutes|hours} are in a {year|day|week|month}?", "{what is |}the square root of $a", "{what is |}$a {to the power of|**|^} $c", "$c% of $a", "is $a a prime number?", "solve {x|y} + $c = $a", "{what is |}the {sine|cosine|logarithm|factorial} of $c", "integrate x^$c", "{what is |}$c / $d", "derivative of x^$c", "convert $a {miles to km|dollars to euros|pounds to kg}"),
        rng, a=big, b=str(rng.randint(3, 9999)), c=str(rng.randint(2, 40)), d=str(rng.randint(3, 17)), e=str(rng.randint(13, 100)), f=str(rng.randint(13, 100)),
    )  # fmt: skip
    return keep(ask), pick(
        (
            "{That is too hard for me|I cannot do that}. I only add and subtract up to 100, and multiply up to 12.",
            "{I can only do small sums|Such numbers are too big for me}, like 7 + 5. {A real model, loaded with `F4`, may know|Load a real model with `F4` for that}.",
        ),
        rng,
    )


def counting(rng: Random) -> Turn:
    """Count to a number, from one to another, or backwards."""
    kind = rng.random()
    if kind < 0.6:
        top = choice((3, 5, 10, 10, 12, 15, 20, 20, 25, 30, 50, 100), rng)
        first, step = 1, 1
        ask = pick(
            (
                "{count|please count|can you count|count up} {to|from 1 to|from one to|up to} $n",
                "numbers from 1 to $n",
                "{list|say|write|name} the numbers {1 to|from 1 to|up to} $n",
                "{count|can you count}{|?}" if top == 10 else "count to $n",
            ),
            rng,
            n=_number(top, rng),
        )
    elif kind < 0.8:
        top = choice((3, 5, 10, 10, 20), rng)
        first, top, step = top, 1, -1
        ask = pick(
            (
                "count {down|backwards} from $n",
                "countdown from $n",
                "count from $n {down to|to} 1",
                "{countdown|count backwards}" if first == 10 else "count down from $n",
            ),
            rng,
            n=_number(first, rng),
        )
    else:
        first = rng.randint(2, 30)
        top, step = first + rng.randint(2, 12), 1
        ask = f"count from {first} to {top}"
    return keep(ask), ", ".join(str(n) for n in range(first, top + step, step)) + choice((".", ".", ""), rng)


def calendar(rng: Random) -> Turn:
    """Days and months: the next, the one before, all of them."""
    names, unit = (DAYS, "day") if rng.random() < 0.6 else (MONTHS, "month")
    at, size = rng.randrange(len(names)), len(names)
    if rng.random() < 0.25:
        verb = expand("{list|name|tell me|what are|say|which are} {the|all|all the}", rng)
        ask = expand(
            "{$v days{| of the week}|days of the week|weekdays|$v seven days}"
            if unit == "day"
            else "{$v months{| of the year}|months of the year|$v twelve months}",
            rng,
            v=verb,
        )
        return ask, ", ".join(names) + "."
    slots = {"d": keep(names[at]), "u": unit, "n": names[(at + 1) % size], "p": names[at - 1], "D": names[at]}
    if rng.random() < 0.5:
        return pick(
            (
                "{what|which} $u {comes|is} {after|next after} $d?",
                "{the |}$u after $d?",
                "what {comes|follows} after $d?",
                "what follows $d?",
            ),
            rng,
            **slots,
        ), pick(("After $D comes $n.", "$n."), rng, **slots)
    return pick(
        ("{what|which} $u {comes|is} before $d?", "{the |}$u before $d?", "what comes before $d?"),
        rng,
        **slots,
    ), pick(("Before $D comes $p.", "$p."), rng, **slots)


def opposites(rng: Random) -> Turn:
    """The opposite of a common word."""
    pair = choice(_OPPOSITE_PAIRS, rng).split("/")
    if (
        rng.random() < 0.5
        and pair != ["young", "old"]
        and pair != ["heavy", "light"]
        and pair != ["tall", "short"]
    ):
        pair.reverse()
    ask = pick(
        (
            "{what is |what's |}the opposite of $w{?|}",
            "opposite of $w",
            "{opposite|antonym}: $w",
            "what is the opposite word {for|of|to} $w",
            "{give|tell} me the opposite of $w",
            "$w, opposite?",
        ),
        rng,
        w=keep(pair[0]),
    )
    return ask, pick(
        ("The opposite of $a is $b.", "$B.", "The opposite of $a is $b."),
        rng,
        a=pair[0],
        b=pair[1],
        B=pair[1].capitalize(),
    )


def spelling(rng: Random) -> Turn:
    """Spell a word, count its letters, name its first or last letter, write it in capitals."""
    word = choice(SPELLABLE, rng)
    kind, slots = rng.random(), {"w": keep(word)}
    dashed = "-".join(word.upper())
    if kind < 0.55:
        return pick(
            (
                "{spell|how do you spell|please spell|can you spell|how do i spell|spell the word|how to spell} $w",
                "spelling of $w",
                "spell $w for me",
            ),
            rng,
            **slots,
        ), dashed
    if kind < 0.75:
        return pick(
            (
                "how many letters {does $w have|are in $w|has $w|are there in the word $w}?",
                "number of letters in $w",
            ),
            rng,
            **slots,
        ), f"{dashed}: {len(word)} letters."
    if kind < 0.85:
        return pick(
            ("{what is |}the first letter of $w{?|}", "which letter does $w {start|begin} with?"),
            rng,
            **slots,
        ), f"The first letter of {word} is {word[0].upper()}."
    if kind < 0.92:
        return pick(
            ("{what is |}the last letter of $w{?|}", "which letter does $w end with?"), rng, **slots
        ), f"The last letter of {word} is {word[-1].upper()}."
    return pick(
        (
            "{write|say|put} $w in {capitals|capital letters|upper case|uppercase}",
            "$w in {capitals|upper case}",
        ),
        rng,
        **slots,
    ), word.upper()


def repeating(rng: Random) -> Turn:
    """Copy a word or phrase."""
    phrase = (
        choice(SPELLABLE, rng)
        if rng.random() < 0.3
        else nonsense(rng)
        if rng.random() < 0.35
        else expand(choice(PHRASES_A, rng), rng) + " " + expand(choice(PHRASES_B, rng), rng)
    )
    if rng.random() < 0.25:
        phrase = " ".join(choice(SPELLABLE, rng) for _ in range(rng.randint(2, 6)))
    phrase = phrase[:1].upper() + phrase[1:] if rng.random() < 0.2 else phrase
    quote = choice(('"', "", "", "'"), rng)
    ask = expand(
        "{repeat after me:|repeat:|repeat|say|say:|please say|please repeat|can you say|repeat after me|echo|copy this:|write|repeat this:|say this:|repeat the following:|now say}",
        rng,
    )
    return f"{ask} {keep(quote + phrase + quote)}", phrase


def lists(rng: Random) -> Turn:
    """Name some things of a kind."""
    name = choice(sorted(_LISTS), rng)
    items, count = _LISTS[name], rng.randint(2, 6)
    if rng.random() < 0.2 and name not in ("days of the week", "months"):
        one = with_article(name.removesuffix("s"))
        ask = pick(
            (
                "{name|say|tell me|give me|think of|pick|choose} {$o|any $p|one $p}{|, please}",
                "$o{, please| please}",
            ),
            rng,
            o=one,
            p=name.removesuffix("s"),
        )
        return ask, _cap(choice(items, rng)) + "."
    ask = pick(
        (
            "{name|list|tell me|give me|say|can you name|write} $c $k",
            "$c $k{, please|}",
            "{a list of|list|give me a list of} $c $k",
        ),
        rng,
        c=_number(count, rng),
        k=name,
    )
    chosen = rng.sample(items, count) if name not in ("days of the week", "months") else items[:count]
    return ask, "\n".join(f"- {i}" for i in chosen) if rng.random() < 0.5 else _cap(", ".join(chosen)) + "."


def compare(rng: Random) -> Turn:
    """Which number is bigger; even or odd."""
    a, b = rng.sample(range(60), 2)
    if rng.random() < 0.4:
        return keep(
            expand("is $a {even|odd|even or odd}?", rng, a=str(a))
        ), f"{a} is {'odd' if a % 2 else 'even'}."
    big = rng.random() < 0.6
    ask = expand(
        "{which is|what is|which number is} "
        + ("{bigger|larger|greater|more}" if big else "{smaller|less}")
        + "{:|,|} $a or $b?",
        rng,
        a=str(a),
        b=str(b),
    )
    return keep(
        ask
    ), f"{max(a, b)} is bigger than {min(a, b)}." if big else f"{min(a, b)} is smaller than {max(a, b)}."


def plain_fact(rng: Random) -> Turn:
    """A few facts that every child knows."""
    if rng.random() < 0.5:
        what, answer = choice(_FACTS, rng).split("/")
        noun, rest = what.split(" ", 1)
        owner = rest.removesuffix(" has")
        return pick(
            (
                "how many $n does $o have?",
                "how many $n {are in|has} $o?",
                "do you know how many $n $o has?",
                "number of $n {of|in} $o?",
                "tell me how many $n $o has",
            ),
            rng,
            n=noun,
            o=owner,
        ), answer
    asks, answers = choice(_PLAIN, rng)
    return pick(asks, rng) + "?", pick(answers, rng)


def alphabet(rng: Random) -> Turn:
    """The alphabet, whole or one step of it."""
    at = rng.randrange(25)
    if rng.random() < 0.35:
        return pick(
            ("{say|write|list|recite|tell me} the alphabet", "alphabet", "the abc", "abc"), rng
        ), " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    if rng.random() < 0.5:
        return pick(
            ("{what|which} letter {comes|is} after $l?", "what comes after the letter $l"),
            rng,
            l=keep(chr(65 + at)),
        ), f"After {chr(65 + at)} comes {chr(66 + at)}."
    return pick(
        ("{what|which} letter {comes|is} before $l?",), rng, l=keep(chr(66 + at))
    ), f"Before {chr(66 + at)} comes {chr(65 + at)}."


_SYLLABLES = words("ba|be|bi|bo|bu|da|de|di|do|fa|fi|fo|ga|go|gu|ka|ke|ki|ko|la|le|li|lo|lu|ma|me|mi|mo|mu|na|ne|ni|no|pa|pe|po|ra|re|ri|ro|ru|sa|se|si|so|su|ta|te|ti|to|tu|va|ve|vo|wa|we|xa|xo|ya|yo|za|ze|zi|zo|bla|bri|cho|dra|fle|glo|gri|kro|ple|qui|sha|ska|sno|spli|stra|thu|tro|wim|zor|plon|grum|blix|mek|dov|fer|lin|tor|ster|wick|gan|bor")  # fmt: skip


def nonsense(rng: Random) -> str:
    """A word that does not exist; it teaches copying, and to admit ignorance."""
    return "".join(choice(_SYLLABLES, rng) for _ in range(rng.randint(2, 3))) + choice(
        ("", "", "n", "x", "r", "l", "s", "t"), rng
    )


def _number(n: int, rng: Random) -> str:
    return NUMBERS[n] if n <= 20 and rng.random() < 0.15 else str(n)


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]


SKILLS: tuple[tuple[Callable[[Random], Turn], float], ...] = (
    (arithmetic, 6.0), (too_hard, 2.4), (counting, 1.6), (calendar, 2.0), (opposites, 2.0), (spelling, 3.0), (repeating, 3.0),
    (lists, 1.2), (compare, 1.0), (plain_fact, 2.0), (alphabet, 0.8),
)  # fmt: skip
