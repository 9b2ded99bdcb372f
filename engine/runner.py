"""Runs step plans on the device: stage, forward, draw, collect.

`launch` queues a whole step and returns without reading a result; `collect` waits for it. The next step may be
launched before the last one is collected: its decode rows take their ids from the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .batch import DecodeInputs, Rows, Staged
from .faults import NONE, Faults
from .inference import inference
from .sampler import Sampled, Sampler
from .types import RowOutput, StepOutput, StepPlan, Work


class Forward(Protocol):
    """What the runner needs of a decoder (`engine.model.Decoder`). Ids, positions and tables are int64; the
    cache is the decoder's own and only handed back to it."""

    def new_cache(self, num_blocks: int, block_size: int) -> Any:
        """An empty paged cache."""
        ...

    def decode(
        self, tokens: Tensor, positions: Tensor, tables: Tensor, cache: Any, prompt_lens: Tensor | None = None
    ) -> Tensor:
        """One token of each of B rows, tables [B, blocks], prompt lengths [B]: hidden [B, hidden]."""
        ...

    def prefill(
        self, tokens: Tensor, start: int, table: Tensor, cache: Any, prompt_len: int | None = None
    ) -> Tensor:
        """T tokens of one sequence, table [blocks]: hidden [T, hidden]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [n, vocab], which the sampler may overwrite."""
        ...


class StepRunner(Protocol):
    """What the loop needs of a runner: `Runner` here, `engine.graphs.GraphRunner` on a GPU."""

    faults: Faults

    @property
    def workspace_bytes(self) -> int:
        """Bytes held beside weights and cache."""
        ...

    def aside(self) -> AbstractContextManager[tuple[Forward, torch.device]]:
        """The decoder and its device, for work that is no step: in order with the steps, which share its buffers."""
        ...

    def reset(self) -> None:
        """Drop all rows: each must start again before it works. The cache stays, its blocks are the scheduler's."""
        ...

    def launch(self, plan: StepPlan) -> Any:
        """Start a step; MemoryError when the device has no room for it (the step then did not happen, and
        `reset` is due)."""
        ...

    def collect(self, launched: Any) -> StepOutput:
        """Wait for a step and bring its results to the host. Steps are collected in the order of their launch."""
        ...


@dataclass(frozen=True, slots=True)
class Launched:
    """A step under way: the works that draw, with what they drew, and the seconds of the step's two parts."""

    step: int
    drawn: tuple[tuple[tuple[Work, ...], Sampled], ...]
    prefill_s: float
    decode_s: float


@contextmanager
def allocating() -> Iterator[None]:
    """What torch says of a failed allocation, as MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed to allocate; on the CPU that is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class Runner:
    """Owns the cache, the rows and the sampler of one decoder. One thread at a time.

    `max_context` in tokens bounds a row's block table; `eos_ids` are those that `min_new_tokens` holds back.
    """

    def __init__(
        self,
        decoder: Forward,
        *,
        max_batch: int,
        num_blocks: int,
        block_size: int,
        max_context: int,
        vocab: int,
        device: torch.device,
        eos_ids: tuple[int, ...],
    ) -> None:
        self._decoder = decoder
        self._device = device
        self._cache = decoder.new_cache(num_blocks, block_size)
        self._rows = Rows(max_batch, -(-max_context // block_size), block_size, device)
        self._sampler = Sampler(max_batch, vocab, device, eos_ids)
        self.faults: Faults = NONE

    @property
    def workspace_bytes(self) -> int:
        """Bytes held beside weights and cache: rows, tables, penalty counts (once a request used them)."""
        return self._rows.nbytes + self._sampler.nbytes

    @contextmanager
    def aside(self) -> Iterator[tuple[Forward, torch.device]]:
        """The decoder and its device, for work that is no step."""
        with allocating():
            yield self._decoder, self._device

    def reset(self) -> None:
        """Drop all rows: each must start again before it works. The cache stays, its blocks are the scheduler's."""
        self._sampler.reset()

    @inference
    def launch(self, plan: StepPlan) -> Launched:
        """Start a step; MemoryError when the device has no room for it (the step then did not happen, and
        `reset` is due)."""
        try:
            return self._launch(plan)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise

    def collect(self, launched: Launched) -> StepOutput:
        """Wait for a step and bring its results to the host."""
        rows: list[RowOutput] = []
        for works, sampled in launched.drawn:
            rows += _outputs(works, sampled)
        return StepOutput(launched.step, tuple(rows), launched.prefill_s, launched.decode_s)

    def _launch(self, plan: StepPlan) -> Launched:
        begun = time.perf_counter()
        for start in plan.starts:
            self._sampler.start(start)
        staged = self._rows.stage(plan)
        drawn: list[tuple[tuple[Work, ...], Sampled]] = []
        if staged.decode is not None:
            drawn.append((plan.decode, self._decode(staged.decode)))
        decoded = time.perf_counter()
        if staged.prefill:
            sampled = self._prefill(plan, staged)
            if sampled is not None:
                drawn.append((tuple(work for work in plan.prefill if work.samples), sampled))
        ended = time.perf_counter()
        # Staging is microseconds; the part that ran alone carries it.
        decode_s = decoded - begun if staged.decode is not None else 0.0
        return Launched(
            plan.step, tuple(drawn), ended - begun - decode_s if staged.prefill else 0.0, decode_s
        )

    def _decode(self, inputs: DecodeInputs) -> Sampled:
        hidden = self._decoder.decode(
            inputs.tokens, inputs.positions, inputs.tables, self._cache, inputs.prompt_lens
        )
        sampled = self._sampler.sample(self._logits(hidden), inputs.rows, inputs.following)
        self._rows.store(inputs.select, sampled.tokens)
        return sampled

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._decoder.logits(hidden)
        if self.faults("logits") == "nan":
            logits[0] = torch.nan
        return logits

    def _prefill(self, plan: StepPlan, staged: Staged) -> Sampled | None:
        """Compute the chunks; draw for those that end their prompt, all in one call."""
        last: list[Tensor] = []
        for work, chunk in zip(plan.prefill, staged.prefill, strict=True):
            hidden = self._decoder.prefill(
                chunk.tokens, chunk.start, chunk.table, self._cache, chunk.prompt_len
            )
            if work.samples:
                last.append(hidden[-1:])
        if not last:
            return None
        sampled = self._sampler.sample(self._logits(torch.cat(last)), staged.drawn, staged.drawn_positions)
        self._rows.store(staged.drawn_index, sampled.tokens)
        return sampled


def _outputs(works: tuple[Work, ...], sampled: Sampled) -> list[RowOutput]:
    tokens: list[int] = sampled.tokens.tolist()
    finite: list[bool] = sampled.finite.tolist()
    found = sampled.logprobs
    if found is None:
        return [
            RowOutput(work.seq, work.epoch, token, fine)
            for work, token, fine in zip(works, tokens, finite, strict=True)
        ]
    asked = {}
    columns = (found.chosen.tolist(), found.values.tolist(), found.ids.tolist())
    for place, count, chosen, values, ids in zip(found.at, found.counts, *columns, strict=True):
        pairs = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))
        asked[place] = (chosen, tuple(pairs[:count]))
    return [
        RowOutput(work.seq, work.epoch, tokens[i], finite[i], *asked.get(i, (None, ())))
        for i, work in enumerate(works)
    ]
