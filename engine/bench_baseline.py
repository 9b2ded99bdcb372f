"""What `transformers.generate` does on the same model, device and type: the baseline beside which we
stand."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench_measure import Cell, Stopped
from .hardware import release_pool
from .text import one_line
from .types import ModelError

if TYPE_CHECKING:
    import torch


def measure_baseline(
    directory: Path,
    dtype: str,
    device: str,
    cells: Sequence[Cell],
    new_tokens: int,
    stopped: Callable[[], bool],
) -> Iterator[tuple[Cell, float]]:
    """(cell, decode tokens/s of all rows after the first token) for each cell, measured once; greedy, no
    early end. A cell without room is left out. ModelError when transformers cannot load the model without its
    own code."""
    import torch

    with _loaded(directory, dtype, device) as model:
        generate(model, Cell(1, 8), 4, device)  # pays for what the first call pays for
        for cell in cells:
            if stopped():
                raise Stopped
            try:
                first = generate(model, cell, 1, device)
                whole = generate(model, cell, new_tokens, device)
            except torch.OutOfMemoryError:
                continue
            yield cell, cell.batch * (new_tokens - 1) / max(whole - first, 1e-9)


@contextmanager
def reply_baseline(
    directory: Path,
    dtype: str,
    device: str,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stopped: Callable[[], bool],
) -> Iterator[tuple[list[list[int]], float]]:
    """Greedy replies of `new_tokens` to each of `prompts`, one after the other, and the seconds that all
    took; the model is there until the end of the block. ModelError as above."""
    import torch

    with _loaded(directory, dtype, device) as model:
        generate(model, Cell(1, 8), 4, device)
        replies: list[list[int]] = []
        begun = time.perf_counter()
        for prompt in prompts:
            if stopped():
                raise Stopped
            ids = torch.tensor([list(prompt)], device=device)
            replies.append(_continued(model, ids, new_tokens)[0, len(prompt) :].tolist())
        yield replies, time.perf_counter() - begun


@contextmanager
def _loaded(directory: Path, dtype: str, device: str) -> Iterator[Any]:
    """transformers' model, freed at the end of the block."""
    import torch
    import transformers

    quiet: Any = transformers.utils.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=getattr(torch, dtype), local_files_only=True
        )
    except Exception as error:  # noqa: BLE001 - whatever it finds wrong, the bench goes on without it
        raise ModelError(f"transformers cannot load it: {one_line(str(error), 160)}") from None
    model = model.to(device).eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        del model
        gc.collect()
        release_pool()


def generate(model: Any, cell: Cell, new_tokens: int, device: str) -> float:
    """Seconds to generate `new_tokens` for each row of `cell`."""
    import torch

    chosen = random.Random(0)
    rows = [
        [chosen.randrange(model.config.vocab_size) for _ in range(cell.prompt)] for _ in range(cell.batch)
    ]
    ids: torch.Tensor = torch.tensor(rows, device=device)
    begun = time.perf_counter()
    _continued(model, ids, new_tokens)
    return time.perf_counter() - begun


def _continued(model: Any, ids: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """`ids` [rows, n] and `new_tokens` more to each, greedily and without an early end, on the CPU."""
    import torch

    found: torch.Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return found.cpu()  # waits for the device
