"""Calibration texts on their way through the layers of a model, and what is counted of them there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import reference
from ..quant.calibrate import InputStats
from .calibration import Windows
from .quantize_check import embedded
from .quantize_job import Job, activations
from .quantize_layers import Blocks, Layer, Layers, batches


class Followed:
    """The calibration texts on their way through the layers."""

    def __init__(self, reader: Layers, windows: Windows, job: Job) -> None:
        self._files, self._device = reader.files, reader.device
        self._dtype = activations(reader.files, job.device)
        self._tokens = job.batch
        self._blocks = Blocks(reader.files.spec, reader.device)
        self.texts = embedded(reader, windows.ids, self._dtype) if windows.ids else []

    def through(
        self, layer: Layer, count: bool, gram: bool, progress: Callable[[float], None]
    ) -> dict[str, InputStats]:
        """Take all texts through a layer; `count`: with statistics of each matrix's inputs, by role. `progress` gets
        the share that is done."""
        stats: dict[str, InputStats] = {}

        def watch(role: str, x: Tensor) -> None:
            if role not in stats:
                stats[role] = InputStats.empty(x.shape[1], self._device, gram)
            stats[role].add(x)

        computed = layer.cast(self._dtype)
        for span in batches(self.texts, self._tokens):
            parts = self.texts[span.start : span.stop]
            lengths = [len(part) for part in parts]
            out = self._blocks.run(computed, torch.cat(parts), lengths, watch if count else None)
            # A layer that is broken must not spoil the statistics of those behind it.
            self.texts[span.start : span.stop] = torch.split(torch.nan_to_num_(out, 0.0, 0.0, 0.0), lengths)
            progress(span.stop / len(self.texts))
        return stats

    def last(self, gain: Tensor) -> InputStats | None:
        """Statistics of the last matrix's input; `gain` is the last norm's."""
        if not self.texts:
            return None
        eps, stats = self._files.spec.eps, InputStats.empty(self._files.spec.hidden, self._device, gram=True)
        for text in self.texts:
            stats.add(reference.rms_norm(text, gain.float(), eps))
        return stats
