"""What a model thinks of given tokens: logits and perplexity, for `LocalBackend.compute`.

Each job has a KV cache of its own, in the loaded model's format, and gives way to the requests after every
chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from .types import DeviceError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from .loader import Engine

CHUNK = 256  # tokens between two steps of the requests


def logits(engine: Engine, ids: Sequence[int]) -> Generator[None, None, Tensor]:
    """The logits after each of `ids`: float32 [len(ids), vocabulary], on the CPU."""
    import torch

    parts: list[Tensor] = []
    yield from _through(engine, ids, lambda start, rows: parts.append(rows.cpu()))
    return torch.cat(parts)


def cross_entropy(engine: Engine, ids: Sequence[int]) -> Generator[None, None, float]:
    """The mean negative log-likelihood, in nats, of each of `ids` but the first, given those before it: what
    LMDeploy calls the perplexity, whose logarithm it is."""
    import torch

    if len(ids) < 2:
        raise UsageError("get_ppl: needs at least two tokens: the first is not judged")
    targets = torch.tensor(ids[1:], dtype=torch.int64)
    losses: list[Tensor] = []

    def judge(start: int, rows: Tensor) -> None:
        wanted = targets[start : start + rows.shape[0]].to(rows.device)
        losses.append(torch.nn.functional.cross_entropy(rows[: len(wanted)], wanted, reduction="none").cpu())

    yield from _through(engine, ids, judge)
    return float(torch.cat(losses).double().mean())


def _through(
    engine: Engine, ids: Sequence[int], take: Callable[[int, Tensor], None]
) -> Generator[None, None, None]:
    """Give `take` the first position and the logits float32 [n, vocabulary] of each chunk."""
    import torch

    context, vocab, size = engine.plan.context_len, engine.tokenizer.vocab_size, engine.plan.block_size
    if not 0 < len(ids) <= context:
        raise UsageError(f"input_ids: {len(ids)} tokens; must be from 1 to the context of {context}")
    if wrong := [token for token in ids if not isinstance(token, int) or not 0 <= token < vocab]:
        raise UsageError(f"input_ids: {wrong[0]!r} is not a token; the vocabulary has {vocab}")
    blocks = -(-len(ids) // size)
    cache = None
    for start in range(0, len(ids), CHUNK):
        try:
            with engine.runner.aside() as (decoder, device), torch.inference_mode():
                kind = torch.int64 if device.type == "cpu" else torch.int32
                if cache is None:
                    cache = decoder.new_cache(blocks + 1, size)
                    table = torch.arange(1, blocks + 1, dtype=kind, device=device)
                tokens = torch.tensor(ids[start : start + CHUNK], dtype=kind, device=device)
                hidden = decoder.prefill(tokens, start, table, cache, len(ids))
                take(start, decoder.logits(hidden))
        except MemoryError:
            raise DeviceError(f"out of memory for the logits of {len(ids)} tokens: give fewer") from None
        yield
