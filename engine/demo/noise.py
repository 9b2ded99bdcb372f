"""What people do to their prompts: casing, punctuation, typos, fillers."""

from random import Random

from .grammar import choice, expand, words

# Words the answer repeats (a name, a phrase to copy) stand between these two and keep their letters.
KEEP, END = "\x01", "\x02"

_NEAR = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo",
    "j": "hk", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "w", "r": "et",
    "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
_BEFORE = words(
    """hey, |hi, |hello, |please |ok |ok, |so |so, |and |umm |um, |well, |quick question: |question: |
    one more thing: |sorry, |excuse me, |can you tell me |could you tell me |tell me, |i was wondering, |
    just curious: |now |alright, |hmm, |hmm |btw |by the way, |also, |cool, |great, |nice, |right, |yo |
    dear demo, |demo, |hey demo, |yes, |no, |next question: |one question, |first, |then """
)
_AFTER = words(
    """ please| pls| plz| thanks| thank you|, thanks|, please| then| now| again| lol| haha| :)| ;)| ...|
    ..| bro| man| mate| my friend| buddy| dear| for me| real quick| today| ok| , right| exactly| actually|
    , i wonder| if i may ask| , do you know"""
)


_PREAMBLE = words(
    """I just {installed|found|started|opened} {this|lmtop|this program}.|I am {new|a beginner|not a programmer}{| here}.|My {friend|boss|brother} told me about {this|lmtop|you}.|
    I have {an old laptop|a new computer|no idea|little time|a question}.|Sorry {for the stupid question|to bother you|if this was asked before}{,|, but|.}|I was wondering{|,|:}|
    {I tried everything.|Nothing works.|I read the help.|I searched for it.}|{Maybe you know:|Maybe you can help me:|One thing is unclear:|Help me out:}|I am {trying|learning} to use {this|lmtop}.|
    {I am working on a report and|I am in a hurry and} need to know this:|It is late and I am tired.|I am writing from {work|home|the train}.|You seem nice."""
)
_INSERTED = words(
    "really|just|maybe|actually|exactly|also|perhaps|simply|kind of|here|now|even|possibly|quickly|the|a|to|me|you|so|still|please|some|any|this|that|again|there"
)


def keep(text: str) -> str:
    """Mark `text` as words that must stay spelled as they are."""
    return f"{KEEP}{text}{END}"


def plain(text: str) -> str:
    """Remove the marks of `keep`."""
    return text.replace(KEEP, "").replace(END, "")


def noisy(text: str, rng: Random, fillers: bool = True) -> str:
    """Return `text` as a hasty person might type it; often unchanged."""
    if fillers and "\n" not in text and len(text) < 90:
        text = _fill(text, rng)
    roll = rng.random()
    if roll < 0.42:
        text = text.lower()
    elif roll < 0.47:
        text = text.upper()
    elif roll < 0.78:
        text = _capital(text)
    if rng.random() < 0.5:
        text = text.rstrip("?.! ") or text
    elif rng.random() < 0.12:
        text = text.rstrip("?.! ") + expand("{??|???|!|!!|?!|.|...| ?| !|,}", rng)
    if fillers and rng.random() < 0.2:
        text = _reworded(text, rng)
    if rng.random() < 0.22:
        text = _typos(text, rng)
    if rng.random() < 0.03:
        text = expand("{ |  |\n}", rng) + text
    if rng.random() < 0.03:
        text += expand("{ |  |\n}", rng)
    return plain(text)


def _fill(text: str, rng: Random) -> str:
    if rng.random() < 0.05:
        text = f"{expand(choice(_PREAMBLE, rng), rng)} {text}"
    if rng.random() < 0.15:
        head = choice(_BEFORE, rng)
        text = f"{head} {text[:1].lower()}{text[1:]}"
    if rng.random() < 0.10:
        tail = choice(_AFTER, rng)
        body = text.rstrip("?.! ")
        mark = text[len(body) :].strip()
        text = body + (tail if tail[0] in ",.:;" else " " + tail) + mark
    return text


def _reworded(text: str, rng: Random) -> str:
    """One word lost, added or moved: the rest must be enough to understand."""
    parts = text.split(" ")
    free = [i for i, part in enumerate(parts) if KEEP not in part and END not in part]
    if len(parts) < 4 or len(free) < len(parts):  # kept phrases may be several words long: leave those alone
        return text
    at, roll = choice(free, rng), rng.random()
    if roll < 0.4:
        del parts[at]
    elif roll < 0.75:
        parts.insert(at, choice(_INSERTED, rng))
    elif at + 1 < len(parts):
        parts[at], parts[at + 1] = parts[at + 1], parts[at]
    return " ".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1] != KEEP else text[0] + text[1:2].upper() + text[2:]


def _typos(text: str, rng: Random) -> str:
    """One to three slips on letters outside the kept words."""
    chars = list(text)
    for _ in range(1 + (rng.random() < 0.35) + (rng.random() < 0.1)):
        spots = _open_letters(chars)
        if len(spots) < 4:
            break
        at = choice(spots, rng)
        slip = rng.random()
        if slip < 0.3:
            chars[at] = ""
        elif slip < 0.5:
            chars[at] *= 2
        elif slip < 0.75 and at + 1 < len(chars) and chars[at + 1].isalpha():
            chars[at], chars[at + 1] = chars[at + 1], chars[at]
        else:
            chars[at] = choice(_NEAR[chars[at].lower()], rng)
        chars = list("".join(chars))
    return "".join(chars)


def _open_letters(chars: list[str]) -> list[int]:
    """Indices of ASCII letters that are outside kept words, and not in a key's name such as `F4`."""
    spots, kept = [], False
    for at, char in enumerate(chars):
        if char in (KEEP, END):
            kept = char == KEEP
        elif not kept and char.isascii() and char.isalpha():
            spots.append(at)
    return spots
