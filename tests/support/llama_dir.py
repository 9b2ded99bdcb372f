"""A minimal Llama checkpoint written by hand, for tests that spoil one thing at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import llama

from lmtop.engine.spec import read_spec
from lmtop.engine.types import ModelError

CONFIG = llama.config(vocab=64, hidden=32, inner=48, context=128)


def tensors() -> dict[str, torch.Tensor]:
    return llama.tensors(CONFIG, seed=1)


def write(
    directory: Path,
    config: dict[str, Any] | None = None,
    change: dict[str, torch.Tensor | None] | None = None,
) -> Path:
    """A checkpoint in `directory`; `config` keys are added or replaced (... removes), `change` likewise (None)."""
    merged = {k: v for k, v in (CONFIG | (config or {})).items() if v is not ...}
    stored = {k: v for k, v in (tensors() | (change or {})).items() if v is not None}
    return llama.write(directory, merged, stored)


def refused(directory: Path) -> str:
    """The one line with which the directory is refused, quickly and with the right exit code."""
    started = time.monotonic()
    with pytest.raises(ModelError) as error:
        read_spec(directory)
    assert time.monotonic() - started < 2
    message = str(error.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert error.value.exit_code == 3
    return message
