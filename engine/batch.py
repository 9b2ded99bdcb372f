"""Persistent rows: what a step needs of each sequence stays on the device between steps.

A plan brings only what changed (new block-table entries, positions, prompt ids); everything goes over in one
flat int64 array, so that a step costs one host-to-device copy however much changed. The ids that decode rows
read are the ones the previous step drew, and never pass through the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .types import StepPlan


class DecodeInputs(NamedTuple):
    """One decode step of n rows: `tokens`, `positions` and `following` (positions + 1) int64 [n], block
    `tables` int64 [n, blocks in use], `prompt_lens` int64 [n], and `select`, which picks these rows out of the
    persistent arrays."""

    rows: tuple[int, ...]
    select: slice | Tensor
    tokens: Tensor
    positions: Tensor
    following: Tensor
    tables: Tensor
    prompt_lens: Tensor


class PrefillInputs(NamedTuple):
    """One chunk of one sequence: `tokens` int64 [T] at positions `start`..., block `table` int64 [blocks]; its
    whole prompt has `prompt_len` tokens."""

    start: int
    tokens: Tensor
    table: Tensor
    prompt_len: int


@dataclass(frozen=True, slots=True)
class Staged:
    """A plan on the device. `drawn` lists the rows whose prefill chunk samples, `drawn_index` int64 [m] the
    same on the device, `drawn_positions` int64 [m] the positions of the tokens to draw."""

    decode: DecodeInputs | None
    prefill: tuple[PrefillInputs, ...]
    drawn: tuple[int, ...]
    drawn_index: Tensor
    drawn_positions: Tensor


class Rows:
    """The arrays of `max_batch` rows with `max_blocks` table entries each. Rows that hold no sequence keep
    stale values; nobody reads them."""

    def __init__(self, max_batch: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self.block_size = block_size
        self.device = device
        self.last_token = torch.zeros(max_batch, dtype=torch.int64, device=device)
        self.prompt_lens = torch.zeros(max_batch, dtype=torch.int64, device=device)
        self.tables = torch.zeros(max_batch, max_blocks, dtype=torch.int64, device=device)
        self._prompt_lens = [0] * max_batch  # the same on the host

    @property
    def nbytes(self) -> int:
        return self.last_token.nbytes + self.prompt_lens.nbytes + self.tables.nbytes

    def stage(self, plan: StepPlan) -> Staged:
        """Apply the plan's starts and table entries and hand out the inputs of its works."""
        decode = plan.decode
        drawing = [work for work in plan.prefill if work.samples]
        rows = tuple([work.row for work in decode])
        starts = [work.start for work in decode]
        drawn = tuple([work.row for work in drawing])
        parts = self._upload(
            rows,
            starts,
            [start + 1 for start in starts],
            drawn,
            [work.start + work.count for work in drawing],
            *self._changes(plan),
            *[work.tokens for work in plan.prefill],
        )
        row_index, positions, following, drawn_index, drawn_positions = parts[:5]
        started, lengths, cells, blocks = parts[5:9]
        if plan.starts:
            self.prompt_lens[started] = lengths
        if plan.tables:
            self.tables.view(-1)[cells] = blocks
        inputs = None
        if decode:
            select = _slice_of(rows) or row_index
            inputs = DecodeInputs(
                rows,
                select,
                self.last_token[select],
                positions,
                following,
                self.tables[select, : self._blocks(max(starts) + 1)],
                self.prompt_lens[select],
            )
        prefill = tuple(
            PrefillInputs(
                work.start,
                tokens,
                self.tables[work.row, : self._blocks(work.start + work.count)],
                self._prompt_lens[work.row],
            )
            for work, tokens in zip(plan.prefill, parts[9:], strict=True)
        )
        return Staged(inputs, prefill, drawn, drawn_index, drawn_positions)

    def store(self, select: slice | Tensor, tokens: Tensor) -> None:
        """Keep the drawn `tokens` [n] as the rows' inputs of the next decode step."""
        self.last_token[select] = tokens

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _changes(self, plan: StepPlan) -> tuple[list[int], list[int], list[int], list[int]]:
        """Rows that start and their prompt lengths; flat places in the tables and what goes there."""
        started: list[int] = []
        lengths: list[int] = []
        for start in plan.starts:
            self._prompt_lens[start.row] = start.rope_len
            started.append(start.row)
            lengths.append(start.rope_len)
        width = self.tables.shape[1]
        cells: list[int] = []
        blocks: list[int] = []
        for diff in plan.tables:
            place = diff.row * width + diff.first
            cells += range(place, place + len(diff.blocks))
            blocks += diff.blocks
        return started, lengths, cells, blocks

    def _upload(self, *parts: Sequence[int]) -> tuple[Tensor, ...]:
        """All parts in one copy to the device, int64 each."""
        staged = torch.from_numpy(np.array([number for part in parts for number in part], dtype=np.int64))
        if self.device.type != "cpu":
            staged = staged.pin_memory().to(self.device, non_blocking=True)
        return staged.split_with_sizes([len(part) for part in parts])  # torch.split: 2 us more


def _slice_of(rows: tuple[int, ...]) -> slice | None:
    """Consecutive rows as a slice, which torch reads without a gather."""
    first = rows[0]
    return slice(first, first + len(rows)) if rows == tuple(range(first, first + len(rows))) else None
