"""`python -m lmtop.kernels.bench [WORD ...]`: every kernel's time, its share of the card's ceiling, and torch beside it.

Shapes are those of an 8B Llama's layer (hidden 4096, gate and up 2 x 14336, 32 / 8 heads of 128). Words choose what is
measured: a case whose line contains one of them. The ceilings are measured first, on the same card.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cuda import attn_decode, attn_prefill, chain, elementwise, gemm, kv, matvec, rope_kv, sample
from .cuda.w4 import PackedW4
from .launch import LaunchError
from .nvrtc import CompileError
from .ops import AttentionParams
from .timing import copies, microseconds, read_bandwidth, tensor_peak

Calls = Sequence[Callable[[], object]]

MATRICES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate-up": (28672, 4096), "down": (4096, 14336)}
HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 64
VOCAB = 128256
GROUP = 128


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one shape. A call reads and writes `nbytes` and computes `flops`; `make` allocates the buffers
    of as many calls as it is asked for and gives ours and torch's calls on them (none: torch has no such thing)."""

    kernel: str
    shape: str
    nbytes: float
    flops: float
    make: Callable[[int], tuple[Calls, Calls]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How fast the memory reads, in GB/s, and the time of one matrix-vector product with its share of that."""

    bandwidth: float
    shape: str
    microseconds: float
    share: float


def quick_reading() -> Reading:
    """Measure the current device in a second or two. CompileError or LaunchError where kernels do not run."""
    device = torch.device("cuda", torch.cuda.current_device())
    bandwidth = read_bandwidth(device)
    rows, columns = MATRICES["gate-up"]
    case = _product("gate-up", rows, columns, 1, False, device)
    ours, _ = case.make(2)
    time = microseconds(ours)
    return Reading(bandwidth, f"{rows} x {columns} fp16", time, case.nbytes / time / 1e3 / bandwidth)


def main(words: Sequence[str]) -> int:
    """Print the table. 1 without a GPU or where a kernel fails."""
    if not torch.cuda.is_available():
        print("lmtop: no CUDA device that torch can use", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        bandwidth, peak = read_bandwidth(device), tensor_peak(device)
    except (CompileError, LaunchError) as error:
        print(f"lmtop: {error}", file=sys.stderr)
        return 1
    print(
        f"{torch.cuda.get_device_name(device)}: reads {bandwidth:,.0f} GB/s, fp16 products {peak:,.0f} TFLOP/s"
    )
    print(
        f"{'KERNEL':<12} {'SHAPE':<34} {'us':>9} {'GB/s':>7} {'TFLOP/s':>8} {'CEILING':>8} {'torch us':>9} {'ratio':>6}"
    )
    failed = False
    for case in cases(device):
        if words and not any(word in f"{case.kernel} {case.shape}" for word in words):
            continue
        try:
            print(_line(case, bandwidth, peak), flush=True)
        except (CompileError, LaunchError, torch.OutOfMemoryError) as error:
            failed = True
            print(f"{case.kernel:<12} {case.shape:<34} {str(error).splitlines()[0]}", flush=True)
        torch.cuda.empty_cache()
    return 1 if failed else 0


def _line(case: Case, bandwidth: float, peak: float) -> str:
    ours, theirs = case.make(copies(case.nbytes))
    time = microseconds(ours)
    floor = max(case.nbytes / bandwidth / 1e3, case.flops / peak / 1e6)
    line = f"{case.kernel:<12} {case.shape:<34} {time:>9.2f} {case.nbytes / time / 1e3:>7,.0f} "
    line += f"{case.flops / time / 1e6:>8,.1f} {floor / time:>8.1%}"
    if theirs:
        reference = microseconds(theirs)
        line += f" {reference:>9.2f} {reference / time:>6.2f}"
    return line


def cases(device: torch.device) -> Iterator[Case]:
    """Everything that is measured, in the order of a layer."""
    for tokens in (1, 4, 16, 64, 256, 1024, 2048):
        for name, (rows, columns) in MATRICES.items():
            for packed in (False, True):
                yield _product(name, rows, columns, tokens, packed, device)
    if torch.cuda.get_device_capability(device) == (9, 0):
        for packed in (False, True):
            yield _chain(packed, device)
    for batch, context in ((1, 512), (1, 8192), (16, 2048), (16, 16384), (64, 512)):
        for bits in (16, 8, 4):
            yield _decode(batch, context, bits, device)
    for tokens in (512, 2048, 8192):
        for bits in (16, 8, 4):
            yield _prefill(tokens, bits, device)
    yield from _rows(2048, device)
    for batch in (1, 64):
        yield _sample(batch, device)


def _half(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, dtype=torch.float16, device=device)


def _product(name: str, rows: int, columns: int, tokens: int, packed: bool, device: torch.device) -> Case:
    silu = name == "gate-up"
    nbytes = rows * columns * (0.5 + 4 / GROUP if packed else 2) + 2 * tokens * (columns + rows)

    def make(count: int) -> tuple[Calls, Calls]:
        x = _half(tokens, columns, device=device)
        linear = matvec.linear if tokens <= matvec.MAX_TOKENS else gemm.linear
        if packed:
            matrices = [_random_w4(rows, columns, silu, device) for _ in range(count)]
            return [lambda w=w: linear(x, w, silu=silu) for w in matrices], []
        weights = [_half(rows, columns, device=device) for _ in range(count)]
        ours = [lambda w=w: linear(x, w, silu=silu) for w in weights]
        return ours, [lambda w=w: torch.mm(x, w.t()) for w in weights]

    kind = "matvec" if tokens <= matvec.MAX_TOKENS else "gemm"
    shape = f"{name} {rows}x{columns}, {tokens} tokens"
    return Case(f"{kind} {'int4' if packed else 'fp16'}", shape, nbytes, 2.0 * rows * columns * tokens, make)


def _chain(packed: bool, device: torch.device) -> Case:
    """A layer's four products of one token in one launch."""
    order = ("o", "gate-up", "down", "qkv")
    sizes = [MATRICES[name] for name in order]
    numbers = float(sum(rows * columns for rows, columns in sizes))

    def make(count: int) -> tuple[Calls, Calls]:
        x, attended = (_half(1, sizes[0][0], device=device) for _ in range(2))
        norm = matvec.fold_norm(torch.ones(sizes[0][0], device=device), 1e-5)
        layers = [
            [
                chain.Product(
                    _random_w4(*size, name == "gate-up", device) if packed else _half(*size, device=device),
                    None,
                    norm if name in ("gate-up", "qkv") else None,
                    name == "gate-up",
                )
                for name, size in zip(order, sizes, strict=True)
            ]
            for _ in range(count)
        ]
        return [lambda p=layer: chain.run(p, attended, (x, None, 0, None)) for layer in layers], []

    nbytes = numbers * (0.5 + 4 / GROUP if packed else 2)
    return Case(f"chain {'int4' if packed else 'fp16'}", "a layer, 1 token", nbytes, 2 * numbers, make)


def _random_w4(rows: int, columns: int, gate_up: bool, device: torch.device) -> PackedW4:
    """Random codes, scale 1/256, zero 8."""
    words = torch.randint(
        -(2**31), 2**31, (rows // 16, columns // 64, 32, 4), dtype=torch.int32, device=device
    )
    pairs = torch.full(
        (rows // 16, columns // GROUP, 8, 2), 8 << 16 | 0x1C00, dtype=torch.int32, device=device
    )
    return PackedW4(words, pairs, rows, columns, GROUP, gate_up)


def _decode(batch: int, context: int, bits: int, device: torch.device) -> Case:
    blocks = batch * context // BLOCK
    nbytes = float(blocks * KV_HEADS * kv.record_bytes(DIM, BLOCK, bits))

    def make(count: int) -> tuple[Calls, Calls]:
        tables = torch.randperm(blocks, device=device).int().view(batch, -1) + 1
        positions = torch.full((batch,), context - 1, dtype=torch.int32, device=device)
        rows = torch.arange(batch, dtype=torch.int32, device=device)
        cos, sin = (torch.ones(batch, DIM // 2, device=device) for _ in range(2))
        qkv = _half(batch, (HEADS + 2 * KV_HEADS) * DIM, device=device)
        workspace = attn_decode.Workspace(batch, HEADS, KV_HEADS, DIM, device)
        params = AttentionParams(DIM**-0.5)
        caches = [kv.new_cache(blocks + 1, KV_HEADS, DIM, bits=bits, device=device) for _ in range(count)]
        ours = [
            lambda c=c: attn_decode.attend(
                qkv, HEADS, c, rows, positions, tables, cos, sin, params, None, 1e-5, workspace
            )
            for c in caches
        ]
        if bits < 16:
            return ours, []
        q = _half(batch, HEADS, 1, DIM, device=device)
        pairs = [_half(2, batch, KV_HEADS, context, DIM, device=device) for _ in range(count)]
        sdpa = F.scaled_dot_product_attention
        return ours, [lambda p=p: sdpa(q, p[0], p[1], enable_gqa=True) for p in pairs]

    flops = 4.0 * batch * context * HEADS * DIM
    return Case(f"decode kv{bits}", f"batch {batch}, context {context}", nbytes, flops, make)


def _prefill(tokens: int, bits: int, device: torch.device) -> Case:
    def make(count: int) -> tuple[Calls, Calls]:
        blocks = tokens // BLOCK
        table = torch.arange(1, blocks + 1, dtype=torch.int32, device=device)
        params = AttentionParams(DIM**-0.5)
        q = _half(tokens, HEADS, DIM, device=device)
        cache = kv.new_cache(blocks + 1, KV_HEADS, DIM, bits=bits, device=device)
        ours = [lambda: attn_prefill.attend(q, cache, table, 0, params)]
        k, v = (_half(1, KV_HEADS, tokens, DIM, device=device) for _ in range(2))
        sdpa = F.scaled_dot_product_attention
        turned = q.transpose(0, 1)[None]
        return ours, [lambda: sdpa(turned, k, v, is_causal=True, enable_gqa=True)] if bits == 16 else []

    nbytes = 4.0 * tokens * HEADS * DIM
    return Case(f"prefill kv{bits}", f"{tokens} tokens", nbytes, 2.0 * tokens**2 * HEADS * DIM, make)


def _rows(tokens: int, device: torch.device) -> Iterator[Case]:
    """What stands between the products of a prefill."""
    hidden, width = 4096, 14336

    def norm(count: int) -> tuple[Calls, Calls]:
        gain = torch.ones(hidden, device=device)
        xs = [_half(tokens, hidden, device=device) for _ in range(count)]
        theirs = [lambda x=x: F.rms_norm(x, (hidden,), gain.half(), 1e-5) for x in xs]
        return [lambda x=x: elementwise.rms_norm(x, gain, 1e-5) for x in xs], theirs

    def activate(count: int) -> tuple[Calls, Calls]:
        xs = [_half(tokens, 2 * width, device=device) for _ in range(count)]
        theirs = [lambda x=x: F.silu(x[:, :width]) * x[:, width:] for x in xs]
        return [lambda x=x: elementwise.silu_mul(x) for x in xs], theirs

    def rotate(count: int) -> tuple[Calls, Calls]:
        cache = kv.new_cache(tokens // BLOCK + 1, KV_HEADS, DIM, bits=8, device=device)
        table = torch.arange(1, tokens // BLOCK + 1, dtype=torch.int32, device=device)
        cos, sin = (torch.ones(tokens, DIM // 2, device=device) for _ in range(2))
        xs = [_half(tokens, (HEADS + 2 * KV_HEADS) * DIM, device=device) for _ in range(count)]
        return [lambda x=x: rope_kv.write(x, HEADS, cache, table, 0, cos, sin) for x in xs], []

    yield Case("rms_norm", f"{tokens}x{hidden}", 4.0 * tokens * hidden, 0, norm)
    yield Case("silu_mul", f"{tokens}x{width}", 6.0 * tokens * width, 0, activate)
    nbytes = (
        tokens * DIM * (4.0 * HEADS + 6.0 * KV_HEADS)
    )  # q read and written, k and v read and a byte written
    yield Case("rope_kv kv8", f"{tokens} tokens", nbytes, 0, rotate)


def _sample(batch: int, device: torch.device) -> Case:
    def make(count: int) -> tuple[Calls, Calls]:
        state = sample.SamplerState(batch, VOCAB, device)
        for row in range(batch):
            state.set_row(row, sample.RowParams(seed=row, temperature=0.7, top_p=0.9))
        rows = torch.arange(batch, dtype=torch.int32, device=device)
        positions = torch.full((batch,), 9, dtype=torch.int32, device=device)
        last = torch.zeros(batch + 1, dtype=torch.int64, device=device)
        results = sample.Results(batch, device).device
        logits = [4 * torch.randn(batch, VOCAB, device=device) for _ in range(count)]
        ours = [lambda x=x: sample.sample(state, x, rows, positions, last, results) for x in logits]
        return ours, [lambda x=x: torch.multinomial(torch.softmax(x, -1), 1) for x in logits]

    return Case("sample", f"batch {batch}, top-p 0.9, {VOCAB} tokens", 4.0 * batch * VOCAB, 0, make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
