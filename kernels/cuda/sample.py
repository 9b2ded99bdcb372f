"""Draws a token for each row of a batch on the GPU: penalties to scatter, in three launches (five where some row
wants log-probabilities), inside a CUDA graph or not. The meaning is `kernels/sampling.py`, whose tokens these
are.

What rows ask for lies on the device, so that one captured step serves any mixture of greedy, plain and filtered
rows. Two things make another variant of the step, to be captured apart and only when first needed: rows whose
logits are edited (bias, ending ids held back, penalties), because the memory for it is taken then, and
log-probabilities, because they cost two launches. `SamplerState.variant` says which one a batch needs.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import sampling
from ..launch import load
from ..nvrtc import unit

SAMPLE = unit("sample.cu")
LOGPROBS = unit("sample_logprobs.cu")
TOP = 20  # log-probabilities given per row
_THREADS, _WARPS, _BINS, _LIST = 256, 8, 512, 2048  # sample_row.cuh
_BLOCKS_PER_SM = 3
_CHUNK = 1024  # tokens, one 16-byte load per thread
_STATE_BYTES = 80
# Below this temperature the best token has all the mass that fp32 can show.
_GREEDY_BELOW = 1e-5
_PAD, _GREEDY, _FILTERED, _EDITED, _PENALISED, _LOGPROBS = (1 << bit for bit in range(6))

# Params of sample_row.cuh: one record of 64 bytes a row, which a block reads in four loads.
RECORD = np.dtype(
    [
        ("flags", "u4"),
        ("temperature", "f4"),
        ("top_k", "u4"),
        ("least", "f4"),
        ("top_p", "f8"),
        ("stream", "i8"),
        ("repetition", "f4"),
        ("presence", "f4"),
        ("frequency", "f4"),
        ("free_from", "i4"),
        ("biases", "i4"),
        ("endings", "i4"),
        ("lists", "u8"),
    ]
)


class _Step(ctypes.Structure):
    """Step of sample_row.cuh."""

    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in (
                "logits", "rows", "positions", "params", "edited", "tallies", "states", "partials",
                "bin_mass", "bin_count", "list", "tickets", "last_token", "results",
            )
        ),
        *((name, ctypes.c_int) for name in ("stride", "vocab", "chunk", "ahead", "capacity", "wide")),
    ]  # fmt: skip


class Variant(NamedTuple):
    """What the captured step must be able to do besides drawing."""

    edits: bool = False
    logprobs: bool = False


_PLAIN = Variant()


@dataclass(frozen=True, slots=True)
class RowParams:
    """How a row draws; fields as in `engine.types.SamplingParams`.

    `ending_ids` have no chance at positions below `free_from`. `history` (prompt and output so far, of which the
    first `n_prompt` are the prompt) counts for penalties only.
    """

    seed: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ending_ids: tuple[int, ...] = ()
    free_from: int = 0
    logprobs: bool = False
    history: Sequence[int] = ()
    n_prompt: int = 0

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


class SamplerState:
    """What `max_rows` rows ask for, on the device, and the workspace of steps of up to `capacity` rows (padding
    included; default `max_rows`). Row `max_rows` is padding: it draws nothing and writes no token.

    All calls of one state belong on one stream. Ids beyond `vocab` have no logit and are passed over.
    """

    def __init__(self, max_rows: int, vocab: int, device: torch.device, capacity: int | None = None) -> None:
        self.max_rows = max_rows
        self.vocab = vocab
        self.device = device
        self.capacity = capacity or max_rows
        self._blocks = torch.cuda.get_device_properties(device).multi_processor_count * _BLOCKS_PER_SM
        self.params = torch.zeros(max_rows + 1, RECORD.itemsize // 4, dtype=torch.int32, device=device)
        self.params[max_rows, 0] = _PAD
        self.params[:max_rows, 0] = _GREEDY
        most = max(n * self.chunks(n)[0] for n in range(1, self.capacity + 1))
        self.work = {
            "states": self._zeros(self.capacity * _STATE_BYTES // 8),
            "partials": self._zeros(most * _WARPS),
            "bin_mass": self._zeros(self.capacity * _BINS),
            "bin_count": self._zeros(self.capacity * _BINS // 2),
            "list": self._zeros(self.capacity * _LIST),
            "tickets": self._zeros((5 * self.capacity + 1) // 2),
        }
        self.edited: Tensor | None = None  # float32 [capacity, vocab rounded up to 4]
        self.tallies: Tensor | None = None  # int16 [max_rows, vocab]: sign bit seen, else times in the output
        self._editing: set[int] = set()
        self._asking: set[int] = set()
        self._lists: dict[int, Tensor] = {}
        load(SAMPLE, device)
        load(LOGPROBS, device)

    @property
    def nbytes(self) -> int:
        held = (self.params, *self.work.values(), *self._lists.values(), self.edited, self.tallies)
        return sum(t.nbytes for t in held if t is not None)

    def reset(self) -> None:
        """Forget every row; what was allocated for edits stays, captured steps point to it."""
        self._editing.clear()
        self._asking.clear()
        self._lists.clear()

    def variant(self, rows: Iterable[int]) -> Variant:
        """What a step that draws for `rows` needs. A step captured for more serves as well."""
        rows = tuple(rows)
        return Variant(not self._editing.isdisjoint(rows), not self._asking.isdisjoint(rows))

    def set_row(self, row: int, wanted: RowParams) -> None:
        """A sequence takes a row. Queues its parameters (64 bytes), and its lists and tallies where it has some,
        on the current stream; steps queued before still see the old ones."""
        record = np.zeros(1, RECORD)
        greedy = wanted.temperature < _GREEDY_BELOW
        top_k = wanted.top_k if 0 < wanted.top_k < self.vocab else 0
        filtered = not greedy and (top_k > 0 or wanted.top_p < 1)
        listed = self._set_lists(row, wanted, record)
        edited = listed or wanted.penalised
        record["flags"] = (
            _GREEDY * greedy
            | _FILTERED * filtered
            | _EDITED * edited
            | _PENALISED * wanted.penalised
            | _LOGPROBS * wanted.logprobs
        )
        record["temperature"] = wanted.temperature
        record["top_k"] = top_k
        record["least"] = math.log(wanted.min_p) if wanted.min_p else -math.inf
        record["top_p"] = wanted.top_p if wanted.top_p < 1 else 2.0
        record["stream"] = sampling.stream_of(wanted.seed)
        record["repetition"] = wanted.repetition_penalty
        record["presence"] = wanted.presence_penalty
        record["frequency"] = wanted.frequency_penalty
        record["free_from"] = min(wanted.free_from, 2**31 - 1)
        _upload(record.view(np.int32), self.params[row])
        (self._editing.add if edited else self._editing.discard)(row)
        (self._asking.add if wanted.logprobs else self._asking.discard)(row)
        if edited:
            self._allocate_edits()
        if wanted.penalised:
            self._set_tallies(row, wanted)

    def _set_lists(self, row: int, wanted: RowParams, record: NDArray[np.void]) -> bool:
        """Upload bias and ending ids, any number of them; whether there are some."""
        biases = sorted(
            ((t, b) for t, b in wanted.logit_bias if 0 <= t < self.vocab), key=lambda pair: pair[0]
        )
        endings = [t for t in wanted.ending_ids if 0 <= t < self.vocab] if wanted.free_from > 0 else []
        self._lists.pop(row, None)
        if not biases and not endings:
            return False
        packed = np.empty(2 * len(biases) + len(endings), np.int32)
        packed[: len(biases)] = [token for token, _ in biases]
        packed[len(biases) : 2 * len(biases)] = np.array([b for _, b in biases], np.float32).view(np.int32)
        packed[2 * len(biases) :] = endings
        lists = torch.empty(len(packed), dtype=torch.int32, device=self.device)
        _upload(packed, lists)
        self._lists[row] = lists
        record["biases"], record["endings"], record["lists"] = len(biases), len(endings), lists.data_ptr()
        return True

    def _set_tallies(self, row: int, wanted: RowParams) -> None:
        assert self.tallies is not None
        history = np.asarray(wanted.history, np.int64)
        times = np.bincount(history[wanted.n_prompt :], minlength=self.vocab)
        tally = np.minimum(times, 0x7FFF).astype(np.uint16)
        tally[history] |= 0x8000
        _upload(tally.view(np.int16), self.tallies[row])

    def _allocate_edits(self) -> None:
        if self.edited is None:
            width = -(-self.vocab // 4) * 4
            self.edited = torch.empty(self.capacity, width, dtype=torch.float32, device=self.device)
            self.tallies = torch.zeros(self.max_rows, self.vocab, dtype=torch.int16, device=self.device)

    def chunks(self, batch: int) -> tuple[int, int]:
        """(blocks per row, tokens per block): all blocks of a step resident at once, where they can be."""
        per_row = max(1, self._blocks // batch)
        chunk = -(-self.vocab // (per_row * _CHUNK)) * _CHUNK
        return -(-self.vocab // chunk), chunk

    def _zeros(self, words: int) -> Tensor:
        return torch.zeros(words, dtype=torch.int64, device=self.device)


def sample(
    state: SamplerState,
    logits: Tensor,
    rows: Tensor,
    positions: Tensor,
    last_token: Tensor,
    results: Tensor,
    *,
    ahead: int = 0,
    variant: Variant = _PLAIN,
) -> None:
    """Draw a token for each of B <= capacity rows and keep it as the row's last token.

    `logits` float32 [B, vocab] (the last dimension dense; read faster if all rows are 16-byte aligned), not changed;
    `rows`, `positions` int32 [B], where the token to draw has position `positions` + `ahead`; `last_token` int64
    [max_rows + 1], of which row `max_rows` stays; `results` int32, `Results.device`. A row occurs once in a batch
    if it has penalties. A token depends on its row's logits, parameters, seed and position only.

    Not finite (NaN or +inf among the logits, or nothing but -inf): the token means nothing, but is a valid id.
    `variant` must be at least `state.variant(rows)`.
    """
    batch = logits.shape[0]
    blocks, chunk = state.chunks(batch)
    edited = state.edited if variant.edits else None
    tallies = state.tallies if variant.edits else None
    step = _Step(
        logits=logits.data_ptr(),
        rows=rows.data_ptr(),
        positions=positions.data_ptr(),
        params=state.params.data_ptr(),
        edited=None if edited is None else edited.data_ptr(),
        tallies=None if tallies is None else tallies.data_ptr(),
        last_token=last_token.data_ptr(),
        results=results.data_ptr(),
        stride=logits.stride(0),
        vocab=state.vocab,
        chunk=chunk,
        ahead=ahead,
        capacity=state.capacity,
        wide=state.vocab % 4 == 0 and logits.stride(0) % 4 == 0 and logits.data_ptr() % 16 == 0,
        **{name: tensor.data_ptr() for name, tensor in state.work.items()},
    )
    module = load(SAMPLE, state.device)
    grid = (blocks, batch, 1)
    for name in ("sample_scan", "sample_weigh", "sample_pick"):
        module.kernel(name)(grid, _THREADS, step, pdl=True)
    if variant.logprobs:
        module = load(LOGPROBS, state.device)
        for name in ("logprob_scan", "logprob_rank"):
            module.kernel(name)(grid, _THREADS, step, pdl=True)


class Drawn(NamedTuple):
    """Results on the host, arrays over the batch, copies: `tokens` int32 [n], `finite` bool [n]; where asked,
    `chosen` float32 [n] and the most likely ids int32 [n, 20] (-1: the vocabulary has no more) with `values`
    float32 [n, 20], descending, equals by lowest id. Rows that did not ask hold leftovers there."""

    tokens: NDArray[np.int32]
    finite: NDArray[np.bool_]
    chosen: NDArray[np.float32] | None = None
    ids: NDArray[np.int32] | None = None
    values: NDArray[np.float32] | None = None


class Results:
    """The results of a step on the device, and pinned slots that they are copied to, in turn, so that one step
    may be under way while the last one is read."""

    def __init__(self, capacity: int, device: torch.device, slots: int = 2) -> None:
        self.capacity = capacity
        self.device = torch.zeros(capacity * (4 + 2 * TOP), dtype=torch.int32, device=device)
        self._host = [torch.zeros(self.device.shape, dtype=torch.int32).pin_memory() for _ in range(slots)]
        self._numpy = [host.numpy() for host in self._host]
        self._done = [torch.cuda.Event() for _ in range(slots)]  # type: ignore[no-untyped-call]

    def fetch(self, slot: int, batch: int, logprobs: bool = False) -> None:
        """Queue the one copy of a step's first `batch` results into `slot`."""
        words = len(self.device) if logprobs else 4 * batch
        self._host[slot][:words].copy_(self.device[:words], non_blocking=True)
        self._done[slot].record()

    def read(self, slot: int, batch: int, logprobs: bool = False) -> Drawn:
        """Wait for the copy and hand out what came."""
        self._done[slot].synchronize()
        heads = self._numpy[slot][: 4 * batch].reshape(batch, 4)
        tokens, finite = heads[:, 0].copy(), heads[:, 1] != 0
        if not logprobs:
            return Drawn(tokens, finite)
        tops = self._numpy[slot][4 * self.capacity :].reshape(self.capacity, 2, TOP)[:batch]
        values = tops[:, 1].copy().view(np.float32)
        return Drawn(tokens, finite, heads[:, 2].copy().view(np.float32), tops[:, 0].copy(), values)


def _upload(values: NDArray[np.generic], to: Tensor) -> None:
    to.copy_(torch.from_numpy(values).pin_memory(), non_blocking=True)
