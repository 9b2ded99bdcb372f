"""Times decode attention: `python tests/gpu/bench_attn_decode.py [--sweep]`. One graph of launches over the caches of
many layers (more than the L2 holds), so that every launch reads from memory; the median of replays.

Prints microseconds a launch and, of the bytes of K and V, GB/s and % of the H200's measured read ceiling.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import torch

from lmtop.kernels.cuda.attn_decode import Plan, Workspace, attend, make_plan, plan_unit, shares
from lmtop.kernels.cuda.kv import KVLayer, record_bytes
from lmtop.kernels.launch import architecture
from lmtop.kernels.nvrtc import Unit, compile_all
from lmtop.kernels.ops import AttentionParams

CEILING = 4670.0  # GB/s
FLUSH = 200 << 20
SHAPES = [  # heads, kv heads, batch, context
    *((32, 8, 1, n) for n in (320, 2300, 32000)),
    *((32, 8, 16, n) for n in (320, 2300, 16000)),
    *((32, 8, 64, n) for n in (320, 2300)),
    *((16, 8, n, 320) for n in (1, 16, 64, 256)),
]
PARAMS = AttentionParams(128**-0.5)
DIM, BLOCK, CAPACITY = 128, 64, 32768


class Bench:
    """The layers of one shape and format. Block tables are shuffled; all layers share them."""

    def __init__(self, heads: int, kv_heads: int, batch: int, context: int, bits: int) -> None:
        self.shape, self.bits = (heads, kv_heads, batch, context), bits
        per_row = -(-context // BLOCK)
        blocks, record = batch * per_row + 1, record_bytes(DIM, BLOCK, bits)
        layers = max(2, -(-FLUSH // (blocks * kv_heads * record)))
        data = torch.empty(layers, blocks, kv_heads, record, dtype=torch.uint8, device="cuda").random_(0, 48)
        self.layers = [KVLayer(part, DIM, BLOCK, bits, torch.float16) for part in data]
        self.tables = torch.zeros(batch, CAPACITY // BLOCK, dtype=torch.int32, device="cuda")
        self.tables[:, :per_row] = (torch.randperm(blocks - 1, device="cuda") + 1).int().view(batch, per_row)
        self.rows = torch.arange(batch, dtype=torch.int32, device="cuda")
        self.positions = torch.full((batch,), context - 1, dtype=torch.int32, device="cuda")
        self.cos = torch.ones(batch, DIM // 2, device="cuda")
        self.qkv = torch.randn(batch, (heads + 2 * kv_heads) * DIM, device="cuda").half()
        self.workspace = Workspace(batch, heads, kv_heads, DIM, self.qkv.device)
        self.nbytes = 2 * kv_heads * batch * context * (DIM * bits // 8 + (4 if bits < 16 else 0))

    def plan(self) -> Plan:
        heads, kv_heads, batch, _ = self.shape
        group, parts = shares(heads, kv_heads, DIM)
        return make_plan(batch * kv_heads * parts, group, DIM, self.bits, CAPACITY, 132, 9, False)

    def unit(self, plan: Plan) -> Unit:
        return plan_unit(self.layers[0], shares(*self.shape[:2], DIM)[0], plan, PARAMS)

    def time(self, plan: Plan, replays: int = 5) -> float:
        """Microseconds a launch."""

        def step() -> None:
            for layer in self.layers:
                attend(
                    *(self.qkv, self.shape[0], layer, self.rows, self.positions, self.tables),
                    *(self.cos, self.cos, PARAMS, None, 1e-6, self.workspace, plan),
                )

        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        times = []
        for _ in range(replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / len(self.layers))
        return statistics.median(times)


def candidates(bench: Bench) -> list[Plan]:
    """The default plan, then others around it."""
    _, kv_heads, batch, context = bench.shape
    pairs = batch * kv_heads
    found = [bench.plan()]
    depth = 2 if bench.bits == 4 else 1
    for warps, ctas in ((4, 4), (8, 2)):
        full = max(1, 132 * ctas // pairs)
        for cluster in (1, 2, 4):
            for splits in {cluster, full // cluster * cluster}:
                if 0 < splits <= max(cluster, 2 * context // (16 * warps)):
                    leasts = (64, 256, 512) if splits > cluster else (64,)
                    found += [Plan(warps, ctas, splits, least, cluster, depth) for least in leasts]
    if bench.bits < 16:
        found += [replace(plan, depth=1) for plan in found[:1]]
    return list(dict.fromkeys(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="time other plans too; print the best of them")
    parser.add_argument("--best", type=int, default=4, help="how many of them")
    parser.add_argument("--shapes", default="", help="indices into SHAPES, e.g. 0,3; default all")
    arguments = parser.parse_args()
    chosen = [int(i) for i in arguments.shapes.split(",") if i] or range(len(SHAPES))
    for shape in (SHAPES[i] for i in chosen):
        for bits in (16, 8, 4):
            bench = Bench(*shape, bits)
            plans = candidates(bench) if arguments.sweep else [bench.plan()]
            compile_all({bench.unit(plan) for plan in plans}, architecture(torch.device("cuda")))
            results = [(bench.time(plan), plan) for plan in plans]
            for i, (took, plan) in enumerate(
                [results[0], *sorted(results[1:], key=lambda r: r[0])[: arguments.best]]
            ):
                rate = bench.nbytes / took / 1e3
                text = "h{}/{} B{} ctx{}".format(*shape)
                cut = (plan.warps, plan.ctas, plan.splits, plan.least, plan.cluster, plan.depth)
                print(
                    f"{text:20} kv{bits:<2} {'default' if not i else '':7} {took:8.2f} us {rate:6.0f} GB/s "
                    f"{100 * rate / CEILING:5.1f} %  {cut}"
                )
            del bench


if __name__ == "__main__":
    main()
