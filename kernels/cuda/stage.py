"""Brings what a step needs from the host to the device: one copy of fixed size, then one kernel inside the step's
graph that writes new block-table entries and hands out the rows' positions and last tokens.

Buffer (int32): count of cells, count of rows, 0, 0; rows, positions, prompt lengths [capacity] each; cells (row *
width + column of the tables), blocks [room] each. What a copy brings lands in one device buffer; the kernel
unpacks it, so that the next copy can follow at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..launch import load
from ..nvrtc import unit

STAGE = unit("stage.cu")
_HEAD = 4
_THREADS = 256


class Staging:
    """The persistent arrays of `max_rows` rows with `max_blocks` table entries each, and the inputs of a step of
    up to `capacity` rows (padding included; default `max_rows`). All calls belong on one stream.

    `tables` int32 [max_rows + 1, max_blocks] and `last_token` int64 [max_rows + 1]: row `max_rows` is padding, all
    0. `rows`, `positions`, `prompt_lens` int32 and `tokens` int64 [capacity]: a step's inputs, valid to its
    bucket after `apply`.
    """

    def __init__(
        self,
        max_rows: int,
        max_blocks: int,
        device: torch.device,
        capacity: int | None = None,
        slots: int = 2,
    ) -> None:
        self.max_rows = max_rows
        self.max_blocks = max_blocks
        self.capacity = capacity or max_rows
        self.room = 4 * self.capacity  # a decode step adds at most one block a row
        self.tables = torch.zeros(max_rows + 1, max_blocks, dtype=torch.int32, device=device)
        self.last_token = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)
        self.rows, self.positions, self.prompt_lens = (
            torch.zeros(self.capacity, dtype=torch.int32, device=device) for _ in range(3)
        )
        self.tokens = torch.zeros(self.capacity, dtype=torch.int64, device=device)
        size = _HEAD + 3 * self.capacity + 2 * self.room
        self._staged = torch.zeros(size, dtype=torch.int32, device=device)
        self._host = [torch.zeros(size, dtype=torch.int32).pin_memory() for _ in range(slots)]
        self._numpy = [host.numpy() for host in self._host]
        self._copied = [torch.cuda.Event() for _ in range(slots)]  # type: ignore[no-untyped-call]
        self._slot = 0
        self._module = load(STAGE, device)

    @property
    def nbytes(self) -> int:
        held = (self.tables, self.last_token, self.rows, self.positions, self.prompt_lens, self.tokens)
        return sum(t.nbytes for t in (*held, self._staged))

    def pack(
        self,
        rows: Sequence[int],
        positions: Sequence[int],
        prompt_lens: Sequence[int],
        cells: Sequence[int] = (),
        blocks: Sequence[int] = (),
    ) -> None:
        """Queue the inputs of the next `apply`: n <= capacity rows, and `blocks` for `cells` of the tables.

        More cells than `room` (a long prompt starts) are put at once, by a copy of their own. Waits only if the
        slot's last copy, `slots` calls ago, is not done.
        """
        if len(cells) > self.room:
            self.put(cells, blocks)
            cells = blocks = ()
        slot, count, capacity = self._slot, len(rows), self.capacity
        self._slot = (slot + 1) % len(self._host)
        self._copied[slot].synchronize()
        staged = self._numpy[slot]
        staged[0] = len(cells)
        staged[1] = count
        at = _HEAD
        for part in (rows, positions, prompt_lens):
            staged[at : at + count] = part
            at += capacity
        if cells:
            staged[at : at + len(cells)] = cells
            staged[at + self.room : at + self.room + len(cells)] = blocks
        self._staged.copy_(self._host[slot], non_blocking=True)
        self._copied[slot].record()

    def put(self, cells: Sequence[int], blocks: Sequence[int]) -> None:
        """Queue any number of table entries at once, outside a graph: steps without decode rows, long prompts."""
        count = len(cells)
        if count == 0:
            return
        packed = torch.from_numpy(np.array((cells, blocks), np.int32)).pin_memory()
        staged = packed.to(self.tables.device, non_blocking=True)
        grid = min(64, -(-count // _THREADS))
        self._module.kernel("stage_put")(grid, _THREADS, staged[0], staged[1], count, self.tables)

    def apply(self, bucket: int) -> None:
        """Launch the kernel, inside the captured step of `bucket` rows or not: table entries are written, and the
        first `bucket` inputs valid. Lanes beyond the packed rows are padding: row `max_rows`, position 0."""
        self._module.kernel("stage_apply")(
            1,
            _THREADS,
            self._staged,
            self.capacity,
            self.room,
            bucket,
            self.max_rows,
            self.last_token,
            self.tables,
            self.rows,
            self.positions,
            self.prompt_lens,
            self.tokens,
            pdl=True,
        )
