"""Staging: what arrives on the device is what was packed, however fast the host runs ahead."""

import random

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from lmtop.kernels.cuda.stage import Staging

DEVICE = torch.device("cuda")


def test_every_step_of_a_captured_graph_sees_its_own_inputs() -> None:
    """300 steps queued without waiting, rows and cells changing, read back at the end."""
    max_rows, max_blocks, bucket, r = 12, 50, 8, random.Random(2)
    staging = Staging(max_rows, max_blocks, DEVICE, capacity=16)
    staging.last_token[:max_rows] = torch.arange(100, 100 + max_rows, device=DEVICE)
    for part in (staging.rows, staging.positions, staging.prompt_lens, staging.tokens):
        part.fill_(-99)
    staging.pack([], [], [])
    staging.apply(bucket)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        staging.apply(bucket)
    tables = np.zeros((max_rows + 1, max_blocks), np.int32)
    wanted, seen = [], []
    for _ in range(300):
        count = r.randrange(bucket + 1)
        rows = r.sample(range(max_rows), count)
        positions = [r.randrange(10**6) for _ in rows]
        lengths = [r.randrange(1, 10**6) for _ in rows]
        cells = r.sample(range(max_rows * max_blocks), r.choice([0, 0, 1, 8, 64, 65, 300]))
        blocks = [r.randrange(1, 10**6) for _ in cells]
        tables.reshape(-1)[cells] = blocks
        pad = bucket - count
        wanted.append(
            (rows + [max_rows] * pad, positions + [0] * pad, lengths + [1] * pad,
             [100 + row for row in rows] + [0] * pad, tables.copy())
        )  # fmt: skip
        staging.pack(rows, positions, lengths, cells, blocks)
        graph.replay()
        parts = (staging.rows, staging.positions, staging.prompt_lens, staging.tokens)
        seen.append((*(part[:bucket].clone() for part in parts), staging.tables.clone()))
    for want, got in zip(wanted, seen, strict=True):
        for expected, tensor in zip(want, got, strict=True):
            assert np.array_equal(np.asarray(expected), tensor.cpu().numpy())
    assert (staging.rows[bucket:] == -99).all()


def test_table_entries_without_a_step() -> None:
    staging = Staging(3, 5000, DEVICE)
    cells = random.Random(1).sample(range(3 * 5000), 9000)
    staging.put(cells, [cell + 7 for cell in cells])
    staging.put([], [])
    expected = np.zeros(4 * 5000, np.int32)
    expected[cells] = np.array(cells) + 7
    assert np.array_equal(staging.tables.view(-1).cpu().numpy(), expected)
