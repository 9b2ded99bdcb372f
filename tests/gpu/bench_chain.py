"""Times a layer's four products as one launch against four, alone and with attention between.

python tests/gpu/bench_chain.py
"""

from __future__ import annotations

from functools import partial

import torch
from bench_matvec import MODELS, matrix, operations
from torch import Tensor

from lmtop.kernels.cuda import attn_decode, chain
from lmtop.kernels.cuda.chain import Product
from lmtop.kernels.cuda.kv import new_cache
from lmtop.kernels.cuda.matvec import fold_norm
from lmtop.kernels.ops import AttentionParams
from lmtop.kernels.timing import copies, microseconds

HEADS = {"8B": (32, 8), "1.8B": (16, 8)}


def attention(model: str, tokens: int, context: int):  # type: ignore[no-untyped-def]
    """qkv [tokens, ...] -> [tokens, heads * 128], on a cache of its own."""
    heads, kv_heads = HEADS[model]
    cache = new_cache(
        tokens * 32 + 1, kv_heads, 128, bits=16, dtype=torch.float16, device=torch.device("cuda")
    )
    cache.data.zero_()
    tables = torch.arange(1, tokens * 32 + 1, dtype=torch.int32, device="cuda").view(tokens, 32)
    rows = torch.arange(tokens, dtype=torch.int32, device="cuda")
    positions = torch.full((tokens,), context - 1, dtype=torch.int32, device="cuda")
    cos = sin = torch.rand(tokens, 64, device="cuda")
    workspace = attn_decode.Workspace(tokens, heads, kv_heads, 128, torch.device("cuda"))
    params = AttentionParams(128**-0.5)

    def attend(qkv: Tensor) -> Tensor:
        return attn_decode.attend(
            qkv, heads, cache, rows, positions, tables, cos, sin, params, None, 1e-5, workspace
        )

    return attend


def measure(model: str, shapes: tuple[tuple[int, int], ...], group: int) -> None:
    nbytes = sum(n * k * (0.53125 if group else 2) for n, k in shapes)
    hidden, queries = shapes[1]
    norm = fold_norm(torch.rand(hidden, device="cuda") + 0.5, 1e-5)
    layers = [[matrix(n, k, group, i == 2) for i, (n, k) in enumerate(shapes)] for _ in range(copies(nbytes))]
    chains = [
        [Product(w[1]), Product(w[2], None, norm, True), Product(w[3]), Product(w[0], None, norm)]
        for w in layers
    ]
    for tokens in (1, 2):
        x, attended, first = (
            torch.randn(tokens, size, device="cuda").half() for size in (hidden, queries, shapes[0][0])
        )
        if not chain.can(chains[0], tokens, torch.float16):
            print(f"{model} {group} {tokens} tokens: no chain", flush=True)
            continue
        attend = attention(model, tokens, 320)
        attend(first)  # compiled before any capture
        steps = operations(tokens, shapes)
        for step, weight in zip(steps, layers[0], strict=True):
            step(weight)
        apart = [partial(step, w[at]) for w in layers for at, step in enumerate(steps)]
        apart = [
            call
            for at, call in enumerate(apart)
            for call in ((partial(attend, first), call) if at % 4 == 1 else (call,))
        ]
        alone = microseconds([partial(fused, p, x, attended) for p in chains])
        both = 2 * microseconds(
            [call for p in chains for call in (partial(attend, first), partial(fused, p, x, attended))]
        )
        before = 5 * microseconds(apart)
        print(
            f"{model} {'W4' if group else 'fp16'} {tokens} tokens: chain {alone:.2f} us "
            f"({nbytes / alone / 1e3:.0f} GB/s), with attention {both:.2f} ({nbytes / both / 1e3:.0f}), "
            f"as five launches {before:.2f}; ring {chain._ring(chains[0], tokens)} stages",
            flush=True,
        )


def fused(products: list[Product], x: Tensor, attended: Tensor) -> list[Tensor]:
    return chain.run(products, attended, (x, None, 0, None))


def main() -> None:
    for model, shapes in MODELS.items():
        for group in (128, 0):
            measure(model, shapes, group)
            torch.cuda.empty_cache()
    for rows, columns in ((128256, 4096), (92544, 2048)):
        norm = fold_norm(torch.rand(columns, device="cuda") + 0.5, 1e-5)
        heads = [torch.randn(rows, columns, device="cuda").half() for _ in range(2)]
        x = torch.randn(1, columns, device="cuda").half()
        time = microseconds([partial(chain.run, [Product(w, None, norm)], x, (None,), True) for w in heads])
        print(f"head {rows}x{columns}: {time:.1f} us, {rows * columns * 2 / time / 1e3:.0f} GB/s", flush=True)


if __name__ == "__main__":
    main()
