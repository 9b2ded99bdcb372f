"""What calibration remembers of the input of a linear layer.

Per channel: largest and mean magnitude, which say how much each input matters. And the Gram matrix, from which the
error that any change of the weights makes in the layer's output follows exactly, over every token seen, without
running the layer again: the sum over tokens of |D x|^2 is trace(D G D^T) for G = sum of x x^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class InputStats:
    """Sums over `count` tokens. absmax, abssum [in] float32; gram [in, in] float32, None where only channels are
    counted."""

    absmax: Tensor
    abssum: Tensor
    gram: Tensor | None
    count: int = 0

    @classmethod
    def empty(cls, inputs: int, device: torch.device, gram: bool) -> InputStats:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        return cls(zeros(inputs), zeros(inputs), zeros(inputs, inputs) if gram else None)

    def add(self, x: Tensor) -> None:
        """Count tokens x [n, in]."""
        wide = x.float()
        size = wide.abs()
        self.absmax = torch.maximum(self.absmax, size.amax(0))
        self.abssum += size.sum(0)
        if self.gram is not None:
            self.gram.addmm_(wide.t(), wide)
        self.count += len(x)

    @property
    def absmean(self) -> Tensor:
        """Mean magnitude of each channel, [in] float32."""
        return self.abssum / max(1, self.count)

    @property
    def usable(self) -> bool:
        """Whether any token was seen and all sums are finite."""
        sums = [self.absmax, self.abssum] if self.gram is None else [self.abssum, self.gram.diagonal()]
        return self.count > 0 and all(bool(torch.isfinite(part).all()) for part in sums)
