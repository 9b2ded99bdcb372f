"""How a quantised checkpoint compares with the one it was made from, on texts that calibration did not see.

Both are read from their files and run side by side, a layer of each at a time, so that the check needs no more memory
than the quantisation did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import reference
from ..kernels.ops import Dense
from .quantize_layers import Blocks, Layers, batches, places_of

ROWS = 256  # of logits at a time
GOOD, USABLE = (0.03, 0.1), (0.10, 0.3)  # at most: relative rise of perplexity, mean KL divergence
FOREIGN = 1000.0  # perplexity of the original on a text that it cannot judge


@dataclass(frozen=True, slots=True)
class Comparison:
    """Perplexity of the original and of what was made of it, mean KL divergence between their next-token
    distributions in nats (of the second from the first), on `tokens` judged tokens."""

    before: float
    after: float
    divergence: float
    tokens: int

    @property
    def rise(self) -> float:
        """Of the perplexity, relative."""
        return self.after / self.before - 1 if self.before > 0 else math.nan

    @property
    def verdict(self) -> str:
        """One line for people."""
        if not math.isfinite(self.after) or not math.isfinite(self.divergence):
            return "unusable: it computes NaN or infinity"
        if self.before > FOREIGN:
            return "unclear: the text is foreign to the original; --check-dataset FILE with text of its kind tells more"
        if self._within(GOOD):
            return "good: hardly worse than the original"
        if self._within(USABLE):
            return "usable: noticeably worse than the original; a smaller --w-group-size helps"
        return "poor: much worse than the original; try a smaller --w-group-size, or other calibration data"

    def _within(self, limits: tuple[float, float]) -> bool:
        return self.rise <= limits[0] and self.divergence <= limits[1]


def compare(
    original: Layers,
    made: Layers,
    windows: Sequence[Sequence[int]],
    tokens: int,
    progress: Callable[[int], None],
) -> Comparison:
    """Run `windows` through both, about `tokens` tokens at a time, in float32: the rounding of narrower activations
    would count as a difference. `progress` gets the number of layers done."""
    spec = original.files.spec
    blocks = Blocks(spec, original.device)
    streams = [embedded(reader, windows, torch.float32) for reader in (original, made)]
    for index in range(spec.layers):
        for reader, texts in zip((original, made), streams, strict=True):
            layer = reader.read(index).cast(torch.float32)
            for span in batches(texts, tokens):
                parts = texts[span.start : span.stop]
                lengths = [len(part) for part in parts]
                texts[span.start : span.stop] = torch.split(
                    blocks.run(layer, torch.cat(parts), lengths), lengths
                )
        progress(index + 1)
    return _judge(original, made, streams[0], streams[1], windows)


def embedded(reader: Layers, windows: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Tensor]:
    """The embeddings of each window, [tokens, hidden]."""
    table = reader.outside("embed")
    assert table is not None
    return [table[torch.tensor(ids, device=reader.device)].to(dtype) for ids in windows]


def _head(reader: Layers) -> tuple[Tensor, Dense]:
    """The last norm's gain and the last matrix, float32."""
    gain, weight = reader.outside("final_norm"), reader.outside("lm_head")
    if weight is None:
        weight = reader.outside("embed")
    assert gain is not None and weight is not None
    bias, weight = reader.outside("lm_head", "bias"), weight.float()
    if reader.files.spec.norm_head:
        weight = F.normalize(weight)
    return gain.float(), Dense(weight, None if bias is None else bias.float())


def _same_outside(original: Layers, made: Layers) -> bool:
    """Whether what lies outside of the layers was copied bit for bit."""
    copied = all(place.tensor.dtype in ("F16", "BF16") for place in places_of(original.files, -1))
    return copied and all(place.packed is None for place in places_of(made.files, -1))


def _judge(
    original: Layers,
    made: Layers,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    windows: Sequence[Sequence[int]],
) -> Comparison:
    eps = original.files.spec.eps
    first_head = _head(original)
    heads = (first_head, first_head if _same_outside(original, made) else _head(made))
    sums = torch.zeros(3, dtype=torch.float64)
    count = 0
    for first, second, ids in zip(before, after, windows, strict=True):
        targets = torch.tensor(ids[1:], device=first.device)
        for at in range(0, len(targets), ROWS):
            span = slice(at, min(at + ROWS, len(targets)))
            p, q = (
                reference.logits(x[span], gain, eps, head).log_softmax(-1)
                for x, (gain, head) in zip((first, second), heads, strict=True)
            )
            chosen = targets[span].unsqueeze(1)
            divergence = (p.exp() * (p - q)).sum()
            losses = (-p.gather(1, chosen).sum(), -q.gather(1, chosen).sum(), divergence)
            sums += torch.stack(losses).double().cpu()
        count += len(targets)
    loss_before, loss_after, divergence_sum = (float(value) / max(1, count) for value in sums)
    return Comparison(_exp(loss_before), _exp(loss_after), divergence_sum, count)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
