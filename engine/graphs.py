"""Runs step plans on a GPU: a decode step is one CUDA graph, from staged row numbers to drawn tokens.

A graph is captured per bucket of rows and per variant of the sampler; everything that changes from step to step
(rows, positions, block tables, lengths, sampling parameters, last tokens) is read from device memory. A step costs
the host one copy up, one replay, one copy down; prefill chunks are launched kernel by kernel behind it. The host
waits only in `collect`, so that the next step can be launched before the last one is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import accumulate, cycle
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.cuda.sample import Drawn, Results, RowParams, SamplerState, Variant, sample
from ..kernels.cuda.stage import Staging
from ..kernels.ops import Chunk
from .faults import NONE, Faults
from .inference import inference
from .model import Decoder
from .runner import allocating
from .types import RowOutput, RowStart, StepOutput, StepPlan, Work

SLOTS = 4  # of results: a decode and a prefill part of two steps under way


def buckets(max_batch: int) -> tuple[int, ...]:
    """Rows that a decode step is padded to: powers of two, steps of 16 between 16 and 64 where the products still
    feel each tile, and `max_batch` itself."""
    sizes = {1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512}
    return (*sorted(size for size in sizes if size < max_batch), max_batch)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all runners of a process, of which one works at a time: cuBLAS keeps a workspace (32 MiB on an
    H200) for each stream that it ever met."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Part(NamedTuple):
    """Works that drew, the slot with their results, and how many log-probabilities each asked for; None where none
    did."""

    works: tuple[Work, ...]
    slot: int
    asked: tuple[int | None, ...] | None


class LaunchedGraph(NamedTuple):
    """A step under way; events at its begin, after decoding and at its end."""

    step: int
    parts: tuple[_Part, ...]
    events: tuple[torch.cuda.Event, torch.cuda.Event, torch.cuda.Event]
    prefills: bool


class GraphRunner:
    """Owns the cache, the rows, the sampler and the graphs of one decoder; the same promises as
    `engine.runner.Runner`. `graphs` False launches decode steps kernel by kernel, for debugging; `together` False
    computes chunks of several prompts one by one, so that none feels the others' sizes in its rounding."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_batch: int,
        num_blocks: int,
        block_size: int,
        max_context: int,
        vocab: int,
        device: torch.device,
        eos_ids: tuple[int, ...],
        graphs: bool = True,
        together: bool = True,
    ) -> None:
        self._decoder = decoder
        self._cache = decoder.new_cache(num_blocks, block_size)
        self._staging = Staging(max_batch, -(-max_context // block_size), device)
        self._sampler = SamplerState(max_batch, vocab, device)
        self._results = Results(max_batch, device, SLOTS)
        self._slots = cycle(range(SLOTS))
        self._stream = _stream(device)
        self._device = device
        self._eos_ids = eos_ids
        self._lengths = [1] * max_batch  # see RowStart.rope_len
        self._asked: list[int | None] = [None] * max_batch  # log-probabilities wanted
        self._buckets = buckets(max_batch)
        self._graphs: dict[tuple[int, Variant], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._capturing = graphs
        self._together = together
        self.faults: Faults = NONE

    @property
    def workspace_bytes(self) -> int:
        """Bytes held beside weights and cache: rows, tables, the sampler's arrays."""
        return self._staging.nbytes + self._sampler.nbytes + self._results.device.nbytes

    @contextmanager
    def aside(self) -> Iterator[tuple[Decoder, torch.device]]:
        """The decoder and its device, for work that is no step: on the steps' stream."""
        with allocating(), self._on_stream():
            yield self._decoder, self._device

    def reset(self) -> None:
        """Drop all rows: each must start again before it works."""
        self._sampler.reset()

    @inference
    def prepare(self) -> None:
        """Run and capture the decode step of every bucket, largest first, so that they share memory."""
        # Weights, cache and tables were written on the loading thread's stream, which ours knows nothing of.
        torch.cuda.current_stream(self._device).synchronize()
        with self._on_stream():
            for bucket in reversed(self._buckets):
                self._staging.pack((), (), ())
                self._decode_step(bucket, Variant())
            self._stream.synchronize()

    @inference
    def launch(self, plan: StepPlan) -> LaunchedGraph:
        """Start a step; MemoryError when the device has no room for it (the step then did not happen, and
        `reset` is due)."""
        with allocating(), self._on_stream():
            return self._launch(plan)

    def collect(self, launched: LaunchedGraph) -> StepOutput:
        """Wait for a step and bring its results to the host."""
        rows: list[RowOutput] = []
        for part in launched.parts:
            drawn = self._results.read(part.slot, len(part.works), part.asked is not None)
            rows += _outputs(part, drawn)
        begun, decoded, ended = launched.events
        ended.synchronize()
        return StepOutput(
            launched.step,
            tuple(rows),
            decoded.elapsed_time(ended) / 1e3 if launched.prefills else 0.0,
            begun.elapsed_time(decoded) / 1e3,
        )

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def _launch(self, plan: StepPlan) -> LaunchedGraph:
        events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(3))  # type: ignore[no-untyped-call]
        events[0].record()
        for start in plan.starts:
            self._start(start)
        cells, blocks = self._table_changes(plan)
        parts: list[_Part] = []
        if plan.decode:
            parts.append(self._decode(plan.decode, cells, blocks))
        else:
            self._staging.put(cells, blocks)
        events[1].record()
        if plan.prefill:
            part = self._prefill(plan.prefill)
            parts += [] if part is None else [part]
        events[2].record()
        return LaunchedGraph(plan.step, tuple(parts), events, bool(plan.prefill))  # type: ignore[arg-type]

    def _start(self, start: RowStart) -> None:
        p = start.sampling
        ending = tuple(sorted({*p.stop_token_ids, *(() if p.ignore_eos else self._eos_ids)}))
        self._lengths[start.row] = start.rope_len
        self._asked[start.row] = p.logprobs
        self._sampler.set_row(
            start.row,
            RowParams(
                seed=start.seed,
                temperature=p.temperature,
                top_k=p.top_k,
                top_p=p.top_p,
                min_p=p.min_p,
                repetition_penalty=p.repetition_penalty,
                presence_penalty=p.presence_penalty,
                frequency_penalty=p.frequency_penalty,
                logit_bias=p.logit_bias,
                ending_ids=ending if p.min_new_tokens else (),
                free_from=start.n_prompt + p.min_new_tokens if p.min_new_tokens else 0,
                logprobs=p.logprobs is not None,
                history=start.history,
                n_prompt=start.n_prompt,
            ),
        )

    def _table_changes(self, plan: StepPlan) -> tuple[list[int], list[int]]:
        """Flat places in the block tables, and what goes there."""
        width = self._staging.max_blocks
        cells: list[int] = []
        blocks: list[int] = []
        for diff in plan.tables:
            place = diff.row * width + diff.first
            cells += range(place, place + len(diff.blocks))
            blocks += diff.blocks
        return cells, blocks

    def _decode(self, works: tuple[Work, ...], cells: list[int], blocks: list[int]) -> _Part:
        rows = [work.row for work in works]
        self._staging.pack(
            rows, [work.start for work in works], [self._lengths[row] for row in rows], cells, blocks
        )
        bucket = next(size for size in self._buckets if size >= len(works))
        variant = self._sampler.variant(rows)
        self._decode_step(bucket, variant)
        return self._fetch(works, variant)

    def _decode_step(self, bucket: int, variant: Variant) -> None:
        """Replay the step's graph. Where there is none yet the step runs kernel by kernel, which loads what it
        needs, and is captured for the next time."""
        graph = self._graphs.get((bucket, variant))
        if graph is not None and not self.faults:
            graph.replay()
            return
        self._decode_kernels(bucket, variant)
        if self._capturing and graph is None and not self.faults:
            graph = torch.cuda.CUDAGraph()
            # other threads (screen, telemetry) go on using CUDA while this one captures
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                self._decode_kernels(bucket, variant)
            self._graphs[bucket, variant] = graph

    def _decode_kernels(self, bucket: int, variant: Variant) -> None:
        staging = self._staging
        staging.apply(bucket)
        rows, positions = staging.rows[:bucket], staging.positions[:bucket]
        hidden = self._decoder.decode(
            staging.tokens[:bucket],
            positions,
            staging.tables,
            self._cache,
            staging.prompt_lens[:bucket],
            rows,
        )
        self._draw(self._decoder.logits(hidden), rows, positions, 1, variant)

    def _prefill(self, works: tuple[Work, ...]) -> _Part | None:
        """Compute the chunks; draw for those that end their prompt, all in one call."""
        tokens = self._upload([token for work in works for token in work.tokens])
        chunks = [
            Chunk(
                work.start,
                work.count,
                self._lengths[work.row],
                self._staging.tables[work.row, : -(-(work.start + work.count) // self._cache.block_size)],
            )
            for work in works
        ]
        counts = [work.count for work in works]
        if self._together:
            hidden = self._decoder.prefill_all(tokens, chunks, self._cache)
        else:
            parts = zip(tokens.split_with_sizes(counts), chunks, strict=True)
            hidden = torch.cat(
                [self._decoder.prefill_all(part, (chunk,), self._cache) for part, chunk in parts]
            )
        ends = accumulate(counts)
        last = [hidden[end - 1 : end] for work, end in zip(works, ends, strict=True) if work.samples]
        if not last:
            return None
        drawing = tuple(work for work in works if work.samples)
        rows = [work.row for work in drawing]
        staged = self._upload([*rows, *(work.start + work.count for work in drawing)])
        variant = self._sampler.variant(rows)
        logits = self._decoder.logits(torch.cat(last))
        self._draw(logits, staged[: len(rows)], staged[len(rows) :], 0, variant)
        return self._fetch(drawing, variant)

    def _draw(self, logits: Tensor, rows: Tensor, positions: Tensor, ahead: int, variant: Variant) -> None:
        if self.faults("logits") == "nan":
            logits[0] = torch.nan
        sample(
            self._sampler,
            logits,
            rows,
            positions,
            self._staging.last_token,
            self._results.device,
            ahead=ahead,
            variant=variant,
        )

    def _fetch(self, works: tuple[Work, ...], variant: Variant) -> _Part:
        slot = next(self._slots)
        self._results.fetch(slot, len(works), variant.logprobs)
        asked = tuple(self._asked[work.row] for work in works) if variant.logprobs else None
        return _Part(works, slot, asked)

    def _upload(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, pin_memory=True).to(self._device, non_blocking=True)


def _outputs(part: _Part, drawn: Drawn) -> list[RowOutput]:
    tokens, finite = drawn.tokens.tolist(), drawn.finite.tolist()
    if part.asked is None or drawn.chosen is None or drawn.ids is None or drawn.values is None:
        return [RowOutput(work.seq, work.epoch, tokens[i], finite[i]) for i, work in enumerate(part.works)]
    outputs = []
    for i, (work, count) in enumerate(zip(part.works, part.asked, strict=True)):
        more: tuple[float | None, tuple[tuple[int, float], ...]] = (None, ())
        if count is not None:
            pairs = zip(drawn.ids[i, :count].tolist(), drawn.values[i, :count].tolist(), strict=True)
            more = float(drawn.chosen[i]), tuple(pair for pair in pairs if pair[0] >= 0)
        outputs.append(RowOutput(work.seq, work.epoch, tokens[i], finite[i], *more))
    return outputs
