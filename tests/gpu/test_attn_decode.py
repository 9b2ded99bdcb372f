"""K2 of the decode step on a GPU: against float64, whatever the lengths, blocks, formats and variants."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.decode_cases import Case, errors, expected, rotated
from support.kv_records import rows_of
from torch import Tensor

from lmtop.kernels.cuda.attn_decode import Plan, Workspace, attend

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RAGGED = (1, 2, 15, 16, 17, 63, 64, 65, 1000, 5000)


def run(case: Case, plan: Plan | None = None, workspace: Workspace | None = None) -> Tensor:
    batch = len(case.qkv)
    if workspace is None:
        workspace = Workspace(batch, case.heads, case.kv_heads, case.dim, case.qkv.device)
        workspace.partial.fill_(float("nan"))
    out = attend(
        *(case.qkv, case.heads, case.layer, case.rows, case.positions, case.tables, case.cos, case.sin),
        *(case.params, case.gain, 1e-6, workspace),
        plan,
    )
    torch.cuda.synchronize()
    assert not workspace.tickets.any()
    return out[: len(case.lengths)]


def check(case: Case, plan: Plan | None = None) -> None:
    case.build()
    before = case.layer.data.cpu()
    got = run(case, plan)
    close, most = errors(got, expected(case))
    assert close <= (4e-3 if case.dtype == torch.bfloat16 else 5e-4), (case, close)
    assert most <= (1e-2 if case.dtype == torch.bfloat16 else 2e-3), (case, most)
    check_cache(case, before)


def check_cache(case: Case, before: Tensor) -> None:
    """The new token is in the cache as the format says, and nothing else changed (but block 0, of padding)."""
    after = case.layer.data.cpu()
    _, k, v = rotated(case)
    row = case.dim * case.bits // 8
    wrong = total = 0
    for b, length in enumerate(case.lengths):
        block = int(case.tables[b, (length - 1) // case.block])
        at = (length - 1) % case.block
        for which, x in enumerate((k[b], v[b])):
            data, params = rows_of(x.to(case.dtype), case.bits)
            places = [(which * case.block * row + at * row, data)]
            if params is not None:
                places.append((2 * case.block * row + which * case.block * 4 + at * 4, params))
            for offset, want in places:
                span = slice(offset, offset + want.shape[-1])
                wrong += int((after[block, :, span] != want).sum())
                total += want.numel()
                before[block, :, span] = after[block, :, span]
    assert wrong <= total * 2e-4 + (8 if case.norm else 1), (wrong, total)
    assert torch.equal(after[1:], before[1:])


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ragged_lengths_in_every_format(bits: int, dtype: torch.dtype) -> None:
    check(Case(RAGGED, 32, 8, bits=bits, dtype=dtype, padding=2))


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(("dim", "heads", "kv_heads"), [(64, 8, 1), (80, 3, 3), (96, 6, 2), (256, 16, 1)])
def test_head_dims(dim: int, heads: int, kv_heads: int, bits: int) -> None:
    check(Case((1, 33, 700), heads, kv_heads, dim, bits))


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dim", [8, 16, 24, 40, 72, 112])
def test_odd_head_dims(dim: int, bits: int) -> None:
    check(Case((5, 70, 300), 4, 2, dim, bits))


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("group", [1, 2, 5, 8, 9, 12, 16, 20, 71])
def test_groups(group: int, bits: int) -> None:
    check(Case((3, 200, 900), group * 2, 2, 64 if group > 20 else 128, bits))


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_block_sizes(block: int, bits: int) -> None:
    check(Case(RAGGED[:-1], 8, 2, bits=bits, block=block))


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    "variant",
    [
        {"window": 1},
        {"window": 16},
        {"window": 100},
        {"window": 700, "softcap": 20.0},
        {"slopes": True},
        {"sinks": True},
        {"softcap": 5.0, "slopes": True, "sinks": True, "window": 33},
        {"norm": True},
        {"rope_dim": 32},
        {"rope_dim": 0},
    ],
)
def test_variants(variant: dict[str, object], bits: int) -> None:
    check(Case((1, 20, 90, 1300), 8, 2, bits=bits, **variant))  # type: ignore[arg-type]


PLANS = [
    Plan(4, 4, 1, 64, 1, 1),
    Plan(4, 4, 7, 64, 1, 1),
    Plan(8, 2, 24, 64, 1, 1),
    Plan(4, 4, 3, 256, 1, 1),
    Plan(4, 4, 4, 64, 2, 1),
    Plan(8, 2, 8, 64, 8, 1),
    Plan(4, 4, 24, 100, 8, 1),
]


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_any_split(plan: Plan, bits: int) -> None:
    check(Case(RAGGED, 8, 2, bits=bits), plan)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_where_blocks_lie_does_not_matter(bits: int) -> None:
    """Nor does running it again with the same workspace."""
    case = Case(RAGGED, 8, 2, bits=bits).build()
    workspace = Workspace(len(RAGGED), 8, 2, 128, case.qkv.device)
    plan = Plan(4, 4, 8, 64, 2, 1)
    first = run(case, plan, workspace)
    assert torch.equal(first, run(case, plan, workspace))
    assert torch.equal(first, run(replace(case, shuffle=5).build(), plan, workspace))


def test_one_capture_serves_growing_contexts() -> None:
    case = Case((1, 400, 64), 8, 2, bits=8).build()
    workspace = Workspace(3, 8, 2, 128, case.qkv.device)
    run(case, None, workspace)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(
            *(case.qkv, case.heads, case.layer, case.rows, case.positions, case.tables, case.cos, case.sin),
            *(case.params, None, 1e-6, workspace),
        )
    case.tables[2, 1] = case.spare
    for lengths in ((2, 401, 65), (3, 402, 66)):
        case.lengths = lengths
        case.positions.copy_(torch.tensor(lengths) - 1)
        graph.replay()
        torch.cuda.synchronize()
        assert errors(out, expected(case))[0] <= 5e-4
