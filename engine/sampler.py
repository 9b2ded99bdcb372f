"""Sampling parameters of the batch rows, and the draw of one token for each.

Owned by the runner. What a row asks for is known on the host when the row starts; rows are sorted once per
batch composition into those that need nothing but the best token, those that need one pass, and those whose
filters need the likeliest tokens. So a step does no work for a filter that no row uses. The meaning of each
parameter and their order is in `kernels/sampling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import sampling as ops
from .types import RowStart, SamplingParams

# Below this temperature the best token has all the mass that fp32 can show.
_GREEDY_BELOW = 1e-5
# Logits worked on at once: temporaries should stay in the CPU's cache.
_CELLS_AT_ONCE = 2**18
_GROUPS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of the rows at places `at` of the batch: `chosen` float32 [m], and the most likely
    ones as `values` float32 and `ids` int64 [m, n], of which each row asked for the first `counts`."""

    at: tuple[int, ...]
    counts: tuple[int, ...]
    chosen: Tensor
    values: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """`tokens` int64 [n], always valid ids; `finite` bool [n]: False where the logits held NaN or +inf or
    nothing but -inf, and the token means nothing."""

    tokens: Tensor
    finite: Tensor
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class _Draws:
    """Rows drawn in one call, at places `at` of the batch (None: all). Shapes [k] and [k, 1]."""

    at: Tensor | None
    temperature: Tensor
    streams: Tensor
    top_k: Tensor | None  # None: neither top-k nor top-p
    top_p: Tensor | None
    log_min_p: Tensor | None


@dataclass(frozen=True, slots=True)
class _Penalties:
    """Rows with penalties: places in the batch and rows of the counts, int64 [k]; penalties float32 [k, 1], None
    where no row has one."""

    at: Tensor
    rows: Tensor
    repetition: Tensor
    presence: Tensor | None
    frequency: Tensor | None


@dataclass(frozen=True, slots=True)
class _Group:
    """What one composition of the batch asks for."""

    greedy: bool  # some row takes the best token
    draws: tuple[_Draws, ...]
    bias: tuple[Tensor, Tensor, Tensor] | None  # place, token, bias
    ending: tuple[Tensor, Tensor, Tensor] | None  # place, token, first position at which it may be drawn
    penalties: tuple[_Penalties, ...]
    logprobs: tuple[tuple[int, ...], tuple[int, ...], Tensor] | None  # places, how many, places (device)


class Sampler:
    """Draws for up to `max_batch` rows. `eos_ids` are the ids that `min_new_tokens` holds back, together with
    the request's own stop ids. Ids of a request beyond `vocab` have no logit and are passed over: refusing
    them is the intake's part."""

    def __init__(self, max_batch: int, vocab: int, device: torch.device, eos_ids: tuple[int, ...]) -> None:
        self.vocab = vocab
        self.device = device
        self.eos_ids = eos_ids
        self._max_batch = max_batch
        self._words = ops.token_words(vocab, device)
        self._inf = torch.tensor(math.inf, device=device)  # comparing with a number would make one each time
        self._starts: dict[int, RowStart] = {}
        self._streams: dict[int, int] = {}
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._seen: Tensor | None = None  # bool [max_batch, vocab]: in prompt or output
        self._counts: Tensor | None = None  # float32 [max_batch, vocab]: times in the output

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self._words, self._seen, self._counts) if t is not None)

    def reset(self) -> None:
        """Forget every row."""
        self._starts.clear()
        self._groups.clear()

    def start(self, start: RowStart) -> None:
        """A sequence takes a row; its history counts for the penalties."""
        self._starts[start.row] = start
        self._streams[start.row] = ops.stream_of(start.seed)
        self._groups.clear()
        if _penalised(start.sampling):
            seen, counts = self._tallies()
            history = torch.tensor(start.history, dtype=torch.int64, device=self.device)
            output = history[start.n_prompt :]
            seen[start.row].zero_()[history] = True
            counts[start.row].zero_().index_add_(0, output, torch.ones(len(output), device=self.device))

    def sample(self, logits: Tensor, rows: tuple[int, ...], positions: Tensor) -> Sampled:
        """Draw the tokens of `rows` at `positions` int64 [n] from `logits` float32 [n, vocab], which may be
        overwritten."""
        group = self._groups.get(rows)
        if group is None:
            group = self._group(rows)
        top, tokens = logits.max(-1) if group.greedy else (logits.amax(-1), positions)
        finite = top.abs() < self._inf  # isfinite is five calls on the CPU
        raw = None
        if group.logprobs is not None:
            raw = logits[group.logprobs[2]]
        if group.bias is not None or group.ending is not None or group.penalties:
            self._edit(logits, group, positions)
            top, tokens = logits.max(-1)
            finite &= top.abs() < self._inf
        for draws in group.draws:
            drawn = self._draw(draws, logits, top, positions)
            tokens = drawn if draws.at is None else tokens.index_copy(0, draws.at, drawn)
        for penalties in group.penalties:
            seen, counts = self._tallies()
            places = (penalties.rows, tokens[penalties.at])
            seen[places] = True
            counts[places] += 1
        if raw is None or group.logprobs is None:
            return Sampled(tokens, finite)
        at, asked, index = group.logprobs
        return Sampled(tokens, finite, Logprobs(at, asked, *ops.logprobs(raw, tokens[index], max(asked))))

    def _draw(self, draws: _Draws, logits: Tensor, top: Tensor, positions: Tensor) -> Tensor:
        if draws.at is not None:
            logits, top, positions = logits[draws.at], top[draws.at], positions[draws.at]
        scores = ops.scores_of(logits, top[:, None], draws.temperature)
        keys = ops.row_keys(draws.streams, positions)
        if draws.top_k is None:
            return ops.draw(scores, keys, self._words, draws.log_min_p)
        return ops.draw_filtered(scores, keys, self._words, draws.top_k, draws.top_p, draws.log_min_p)

    def _edit(self, logits: Tensor, group: _Group, positions: Tensor) -> None:
        """Bias, mask of the ending ids, and penalties, in place."""
        if group.bias is not None:
            at, token, bias = group.bias
            logits.index_put_((at, token), bias, accumulate=True)
        if group.ending is not None:
            at, token, first = group.ending
            logits[at, token] = logits[at, token].masked_fill(positions[at] < first, -math.inf)
        for p in group.penalties:
            seen, counts = self._tallies()
            logits[p.at] = ops.penalise(
                logits[p.at], seen[p.rows], counts[p.rows], p.repetition, p.presence, p.frequency
            )

    def _tallies(self) -> tuple[Tensor, Tensor]:
        """`seen` and `counts`, allocated when the first row with penalties starts."""
        if self._seen is None or self._counts is None:
            shape = (self._max_batch, self.vocab)
            self._seen = torch.zeros(shape, dtype=torch.bool, device=self.device)
            self._counts = torch.zeros(shape, dtype=torch.float32, device=self.device)
        return self._seen, self._counts

    # --- once per batch composition ------------------------------------------------------------------------

    def _group(self, rows: tuple[int, ...]) -> _Group:
        if len(self._groups) >= _GROUPS_KEPT:
            self._groups.clear()
        params = [self._starts[row].sampling for row in rows]
        warm = [i for i, p in enumerate(params) if p.temperature >= _GREEDY_BELOW]
        plain = [i for i in warm if not self._filtered(params[i])]
        filtered = [i for i in warm if self._filtered(params[i])]
        group = _Group(
            greedy=len(warm) < len(rows),
            draws=tuple(
                self._draw_of(rows, params, portion)
                for places in (plain, filtered)
                for portion in self._portions(places)
            ),
            bias=self._triples(params, lambda i, p: [(i, t, b) for t, b in p.logit_bias], torch.float32),
            ending=self._triples(params, lambda i, p: self._ending(i, self._starts[rows[i]], p), torch.int64),
            penalties=tuple(self._penalties(rows, params)),
            logprobs=self._logprobs(params),
        )
        self._groups[rows] = group
        return group

    def _filtered(self, p: SamplingParams) -> bool:
        return 0 < p.top_k < self.vocab or p.top_p < 1

    def _portions(self, places: list[int]) -> Iterator[list[int]]:
        """The places, so many at a time as `_CELLS_AT_ONCE` allows."""
        size = max(1, _CELLS_AT_ONCE // self.vocab)
        for i in range(0, len(places), size):
            yield places[i : i + size]

    def _draw_of(self, rows: tuple[int, ...], params: list[SamplingParams], places: list[int]) -> _Draws:
        chosen = [params[i] for i in places]
        top_k = top_p = log_min_p = None
        if self._filtered(chosen[0]):
            off = self.vocab
            top_k = self._column([p.top_k if 0 < p.top_k < off else off for p in chosen], torch.int64)
            if any(p.top_p < 1 for p in chosen):
                top_p = self._column([p.top_p if p.top_p < 1 else 2.0 for p in chosen], torch.float64)
        if any(p.min_p > 0 for p in chosen):
            log_min_p = self._column([math.log(p.min_p) if p.min_p else -math.inf for p in chosen])
        return _Draws(
            at=None if len(places) == len(rows) else self._tensor(places, torch.int64),
            temperature=self._column([p.temperature for p in chosen]),
            streams=self._tensor([self._streams[rows[i]] for i in places], torch.int64),
            top_k=top_k,
            top_p=top_p,
            log_min_p=log_min_p,
        )

    def _ending(self, place: int, start: RowStart, p: SamplingParams) -> list[tuple[int, int, float]]:
        if p.min_new_tokens == 0:
            return []
        ids = {*p.stop_token_ids, *(() if p.ignore_eos else self.eos_ids)}
        return [(place, token, start.n_prompt + p.min_new_tokens) for token in sorted(ids)]

    def _triples(
        self,
        params: list[SamplingParams],
        entries: Callable[[int, SamplingParams], list[tuple[int, int, float]]],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """(place, token, value) of all rows as three device arrays; ids that the vocabulary has."""
        found = [e for i, p in enumerate(params) for e in entries(i, p) if 0 <= e[1] < self.vocab]
        if not found:
            return None
        places, tokens, values = zip(*found, strict=True)
        return (
            self._tensor(places, torch.int64),
            self._tensor(tokens, torch.int64),
            self._tensor(values, dtype),
        )

    def _penalties(self, rows: tuple[int, ...], params: list[SamplingParams]) -> Iterator[_Penalties]:
        for places in self._portions([i for i, p in enumerate(params) if _penalised(p)]):
            presence = [params[i].presence_penalty for i in places]
            frequency = [params[i].frequency_penalty for i in places]
            yield _Penalties(
                at=self._tensor(places, torch.int64),
                rows=self._tensor([rows[i] for i in places], torch.int64),
                repetition=self._column([params[i].repetition_penalty for i in places]),
                presence=self._column(presence) if any(presence) else None,
                frequency=self._column(frequency) if any(frequency) else None,
            )

    def _logprobs(
        self, params: list[SamplingParams]
    ) -> tuple[tuple[int, ...], tuple[int, ...], Tensor] | None:
        asked = {i: p.logprobs for i, p in enumerate(params) if p.logprobs is not None}
        if not asked:
            return None
        return tuple(asked), tuple(asked.values()), self._tensor(list(asked), torch.int64)

    def _tensor(self, values: list[int] | tuple[float, ...], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def _column(self, values: list[int] | list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)[:, None]


def _penalised(p: SamplingParams) -> bool:
    return p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
