"""Microseconds per step of sampling and staging inside a CUDA graph: `python tests/gpu/bench_sample.py`.

`cold`: each step reads logits of its own, together more than three times the L2; `hot`: always the same, as
after the head that has just written them.
"""

import statistics
import time
from collections.abc import Callable

import torch

from lmtop.kernels.cuda.sample import Results, RowParams, SamplerState, Variant, sample
from lmtop.kernels.cuda.stage import Staging

DEVICE = torch.device("cuda")
COLD_BYTES = 220 * 2**20

KINDS = {
    "greedy": RowParams(1),
    "temperature": RowParams(1, 0.8),
    "min-p": RowParams(1, 0.8, min_p=0.05),
    "top-p .9": RowParams(1, 0.7, top_p=0.9),
    "top-p .9 of a flat row": RowParams(1, 2.0, top_p=0.9),
    "top-k 40 top-p .9": RowParams(1, 0.7, top_k=40, top_p=0.9),
    "top-k 40": RowParams(1, 1.0, top_k=40),
    "top-k 2000": RowParams(1, 1.0, top_k=2000),
    "bias, top-p": RowParams(1, 0.7, top_p=0.9, logit_bias=((5, 1.0),)),
    "penalties, top-p": RowParams(1, 0.7, top_p=0.9, repetition_penalty=1.1, history=(1, 2), n_prompt=1),
    "log-probabilities": RowParams(1, 0.7, top_p=0.9, logprobs=True),
}


def per_call(call: Callable[[int], None], times: int) -> float:
    """Median microseconds of one of `times` calls captured in a graph."""
    for i in range(3):
        call(i % times)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(times):
            call(i)
    graph.replay()
    taken = []
    for _ in range(7):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * 1000 / times)
    return statistics.median(taken)


def bench_sample(vocab: int, batch: int, hot: bool) -> dict[str, float]:
    copies = 1 if hot else max(2, COLD_BYTES // (batch * vocab * 4))
    generator = torch.Generator(DEVICE).manual_seed(1)
    logits = torch.randn(copies, batch, vocab, device=DEVICE, generator=generator) * 2.5
    logits[:, :, 17:400:31] += 14  # a head that stands out, as a language model's does
    state, results = SamplerState(batch, vocab, DEVICE), Results(batch, DEVICE)
    last_token = torch.zeros(batch + 1, dtype=torch.int64, device=DEVICE)
    rows = torch.arange(batch, dtype=torch.int32, device=DEVICE)
    positions = torch.full((batch,), 100, dtype=torch.int32, device=DEVICE)
    found = {}
    for name, wanted in KINDS.items():
        for row in range(batch):
            state.set_row(row, wanted)
        variant: Variant = state.variant(range(batch))

        def step(i: int, variant: Variant = variant) -> None:
            at = logits[i % copies]
            sample(state, at, rows, positions, last_token, results.device, ahead=1, variant=variant)

        found[name] = per_call(step, max(copies, 40) if not hot else 100)
    return found


def bench_stage(bucket: int) -> tuple[float, float]:
    """(device microseconds of `apply`, host microseconds of `pack`)."""
    staging = Staging(max(64, bucket), 2048, DEVICE)
    rows = list(range(bucket))
    columns = [row * 2048 + 3 for row in rows]
    staging.pack(rows, rows, rows, columns, rows)
    device = per_call(lambda _: staging.apply(bucket), 200)
    taken = []
    for _ in range(200):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        staging.pack(rows, rows, rows, columns, rows)
        taken.append((time.perf_counter() - begun) * 1e6)
    return device, statistics.median(taken)


def main() -> None:
    for vocab in (128_256, 152_064):
        for batch in (1, 8, 64):
            for hot in (False, True):
                found = bench_sample(vocab, batch, hot)
                line = "  ".join(f"{name} {value:.1f}" for name, value in found.items())
                print(f"V={vocab} B={batch} {'hot ' if hot else 'cold'}: {line}", flush=True)
            if vocab != 128_256 and batch == 8:
                break
    for bucket in (1, 8, 64):
        device, host = bench_stage(bucket)
        print(f"stage bucket {bucket}: apply {device:.2f} us, pack {host:.1f} us on the host", flush=True)


if __name__ == "__main__":
    main()
