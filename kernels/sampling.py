"""The sample op in plain torch: the meaning that every backend has to reproduce.

A token is drawn by an exponential race (Gumbel-max in another dress: log(w / E) = log w + Gumbel): of all
tokens that survive the filters, the one with the largest `weight / E` wins, where E is an exponential number
computed from (stream of the seed, position, token id) by integer arithmetic alone. So a draw depends on the
row's logits, parameters, seed and position, and on nothing else: no batch mates, no order, no grid.

Order of meaning: logit bias, then mask of the ending ids below `min_new_tokens`, repetition penalty,
presence and frequency penalties, temperature, top-k, top-p, min-p, draw. Among equals the lowest id goes first.

Where a set is cut by mass (top-p), masses are integers in units of 2**-40 of the most likely token's, whose
sums are exact in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = 2**64 - 1
# splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN = 0x9E3779B97F4A7C15
_SPLIT_A, _SPLIT_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# lowbias32, a 32-bit mixer found by Chris Wellons' hash prospector: shifts 16, 15, 16 around these.
_LOW_A, _LOW_B = 0x7FEB352D, 0x846CA68B
# Candidates looked at before a wider look is paid for: nucleus sets are mostly far below the first.
_WIDTHS = (256, 4096, 32768)
_MASS = float(2**40)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


_GOLDEN_S, _SPLIT_A_S, _SPLIT_B_S = (_signed(c, 64) for c in (_GOLDEN, _SPLIT_A, _SPLIT_B))
_LOW_B_S = _signed(_LOW_B, 32)


def stream_of(seed: int) -> int:
    """The 64-bit state from which all positions of a seed are drawn, as a signed integer: splitmix64's
    finaliser, so that neighbouring seeds have unrelated streams."""
    z = (seed + _GOLDEN) & _MASK64
    z = ((z ^ (z >> 30)) * _SPLIT_A) & _MASK64
    z = ((z ^ (z >> 27)) * _SPLIT_B) & _MASK64
    return _signed(z ^ (z >> 31), 64)


def row_keys(streams: Tensor, positions: Tensor) -> Tensor:
    """Two 32-bit keys per row: splitmix64's finaliser of `stream + position * 0x9E3779B97F4A7C15` (mod 2**64),
    low word first. `streams`, `positions` int64 [n] -> int32 [n, 2]."""
    z = positions * _GOLDEN_S
    z += streams
    z ^= (z >> 30) & (2**34 - 1)  # torch shifts in the sign; the mask takes it out again
    z *= _SPLIT_A_S
    z ^= (z >> 27) & (2**37 - 1)
    z *= _SPLIT_B_S
    z ^= (z >> 31) & (2**33 - 1)
    return z.view(torch.int32).view(-1, 2)


def token_words(vocab: int, device: torch.device) -> Tensor:
    """lowbias32 of every token id, int32 [vocab]: the part of the draw that no seed changes."""
    return _mix(torch.arange(vocab, dtype=torch.int32, device=device), None)


def _mix(x: Tensor, key: Tensor | None) -> Tensor:
    """lowbias32 in place on int32, with `key` added after the first multiplication."""
    x ^= (x >> 16) & 0xFFFF
    x *= _LOW_A
    if key is not None:
        x += key
    x ^= (x >> 15) & 0x1FFFF
    x *= _LOW_B_S
    x ^= (x >> 16) & 0xFFFF
    return x


def exponentials(keys: Tensor, words: Tensor) -> Tensor:
    """Exponentially distributed numbers (mean 1) for each (row, token), float32 [n, m], in [2.3e-10, 16.7].

    `keys` int32 [n, 2], `words` int32 [m] or [n, m] (`token_words` of the ids). E = -log(1 - v) with
    v = (h + 1/2) / 2**31, h the low 31 bits of the mix: fine-grained near 0, where the winners of a race lie.
    """
    h = _mix(words ^ keys[:, :1], keys[:, 1:])
    h &= 0x7FFFFFFF
    v = h.to(torch.float32).add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return v.neg_().log1p_().neg_()


def penalise(
    logits: Tensor,
    seen: Tensor,
    counts: Tensor,
    repetition: Tensor,
    presence: Tensor | None,
    frequency: Tensor | None,
) -> Tensor:
    """Logits [n, vocab] after the penalties. `seen` bool [n, vocab]: in prompt or output; `counts` float32
    [n, vocab]: times in the output; the penalties are float32 [n, 1], or None where no row has one.

    Repetition as in CTRL (Keskar et al. 2019, arXiv 1909.05858, section 4.1), made sign-aware: positive logits
    are divided, others multiplied. Presence is subtracted once, frequency once per occurrence.
    """
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    out = torch.where(seen, scaled, logits)
    if frequency is not None:
        out -= frequency * counts
    if presence is not None:
        out -= presence * (counts > 0)
    return out


def scores_of(logits: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """(logits - top) / temperature, float32 [n, vocab], at most 0. `top` (the row's maximum) and `temperature`
    are [n, 1]. Subtracting first lets a tiny temperature run to -inf instead of inf - inf."""
    return (logits - top).div_(temperature)


def draw(scores: Tensor, keys: Tensor, words: Tensor, log_min_p: Tensor | None) -> Tensor:
    """Token ids int64 [n] drawn from softmax(scores), float32 [n, vocab]; `log_min_p` float32 [n, 1] keeps what
    is at least min-p times as likely as the best."""
    race = scores.exp()
    race /= exponentials(keys, words)
    if log_min_p is not None:
        race.masked_fill_(scores < log_min_p, -1.0)
    return race.argmax(-1)


def draw_filtered(
    scores: Tensor,
    keys: Tensor,
    words: Tensor,
    top_k: Tensor,
    top_p: Tensor | None,
    log_min_p: Tensor | None,
) -> Tensor:
    """Token ids int64 [n] drawn after top-k, then top-p on what is left, then min-p.

    `scores` float32 [n, vocab]; `top_k` int64 [n, 1], vocab when off; `top_p` float64 [n, 1], 2 when off, None
    when off for all; `log_min_p` as in `draw`. The token that crosses top-p is kept. A set that is not decided
    among the most likely 256 tokens is looked for among more, at last by sorting the whole row.
    """
    weights = scores.exp()
    total = None if top_p is None else _mass(weights).sum(-1, keepdim=True)
    tokens = torch.empty(scores.shape[0], dtype=torch.int64, device=scores.device)
    rows: Tensor | None = None  # those not decided yet; None is all
    for width in _widths(scores.shape[1]):
        drawn, decided = _draw_among(width, scores, weights, total, keys, words, top_k, top_p, log_min_p)
        if rows is None:
            tokens = drawn
        else:
            tokens[rows] = drawn
        if bool(decided.all()):
            break
        left = (~decided).nonzero()[:, 0]
        rows = left if rows is None else rows[left]
        scores, weights, keys, top_k = scores[left], weights[left], keys[left], top_k[left]
        total = None if total is None else total[left]
        top_p = None if top_p is None else top_p[left]
        log_min_p = None if log_min_p is None else log_min_p[left]
    return tokens


def _widths(vocab: int) -> tuple[int, ...]:
    """Numbers of candidates to try in turn; a small row is sorted whole at once."""
    return (*(width for width in _WIDTHS if 4 * width <= vocab), vocab)


def _mass(weights: Tensor) -> Tensor:
    return (weights * _MASS).to(torch.int64)


def _draw_among(
    width: int,
    scores: Tensor,
    weights: Tensor,
    total: Tensor | None,
    keys: Tensor,
    words: Tensor,
    top_k: Tensor,
    top_p: Tensor | None,
    log_min_p: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Draw among the `width` most likely tokens: (ids [n], whether the kept set is certainly inside [n])."""
    vocab = scores.shape[1]
    if width == vocab:
        values, ids = scores.sort(dim=-1, descending=True, stable=True)
    else:
        values, ids = scores.topk(width)
    weight = weights.gather(1, ids)
    count = top_k
    if top_p is not None and total is not None:
        cumulative = _mass(weight).cumsum(-1)
        among = cumulative.gather(1, top_k.clamp(max=width) - 1)
        mass = torch.where(top_k < vocab, among, total)
        needed = (mass * top_p).ceil_().to(torch.int64)
        count = torch.minimum(top_k, (cumulative < needed).sum(-1, keepdim=True) + 1)
    cut = values.gather(1, (count - 1).clamp_(max=width - 1))
    if width == vocab:
        decided = torch.ones_like(cut, dtype=torch.bool)
    else:  # all equals of the cut are inside, or nothing outside can win
        decided = (count <= width) & (cut > values[:, -1:]) | (weight[:, -1:] == 0)
        if top_p is not None:  # the mass of the top k must have been summed whole
            decided &= (top_k <= width) | (top_k == vocab) | (weight[:, -1:] == 0)
    kept = _kept(values, ids, cut, count)
    if log_min_p is not None:
        kept &= values >= log_min_p
    race = weight.div_(exponentials(keys, words[ids])).masked_fill_(~kept, -1.0)
    best = race.amax(-1, keepdim=True)
    tokens = torch.where(race == best, ids, vocab).amin(-1)
    return tokens.clamp_(max=vocab - 1), decided[:, 0]  # a row of NaN has no best, but must name a token


def _kept(values: Tensor, ids: Tensor, cut: Tensor, count: Tensor) -> Tensor:
    """The first `count` of descending `values` [n, width], equals of the cut by lowest id: bool [n, width]."""
    last = values.shape[1] - 1
    following = values.gather(1, count.clamp(max=last))
    if not bool((following == cut).any()):
        return values >= cut
    above, tied = values > cut, values == cut
    quota = count - above.sum(-1, keepdim=True)
    ordered = torch.where(tied, ids, torch.iinfo(torch.int64).max).sort(-1).values
    return above | tied & (ids <= ordered.gather(1, (quota - 1).clamp_(0, last)))


def logprobs(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural log-probabilities under softmax(logits), float32 [n, vocab], before any filter: of `tokens` [n],
    and the `top` most likely [n, top] with their ids [n, top]."""
    total = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(1, tokens[:, None]) - total
    values, ids = logits.topk(min(top, logits.shape[1]))
    return chosen[:, 0], values - total, ids
