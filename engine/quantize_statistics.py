"""What `lmtop lite calibrate` leaves for `lmtop lite auto_awq`: channel statistics of every matrix's input.

inputs_stats.safetensors holds layers.<i>.<matrix>.absmax and .absmean, [in] float32, and in its metadata the digest
of the checkpoint they belong to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..quant.calibrate import InputStats
from .hfconfig import shown
from .quantize_layers import MATRICES
from .quantize_work import STATISTICS, sync
from .spec import ModelFiles
from .types import ModelError


def write_statistics(
    directory: Path, files: ModelFiles, layers: dict[int, dict[str, InputStats]], source: str
) -> Path:
    """Write the statistics of `layers` into `directory`; `source` says what texts they are of."""
    tensors: dict[str, Tensor] = {}
    for index, roles in layers.items():
        for role, stats in roles.items():
            tensors[f"layers.{index}.{role}.absmax"] = stats.absmax.cpu()
            tensors[f"layers.{index}.{role}.absmean"] = stats.absmean.cpu()
    path = directory / STATISTICS
    beside = path.with_name(path.name + ".tmp")
    save_file(tensors, beside, metadata={"checkpoint": files.digest, "texts": json.dumps(source)})
    sync(beside)
    return beside.replace(path)


def read_statistics(path: Path, files: ModelFiles, device: torch.device) -> dict[int, dict[str, InputStats]]:
    """The statistics in a file, by layer and role, without Gram matrices. ModelError when they are damaged or of
    another checkpoint."""
    name = shown(path.name)
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("checkpoint") != files.digest:
                raise ModelError(f"{name}: is of another checkpoint; run `lmtop lite calibrate` again")
            return {
                index: {role: _stats(file, f"layers.{index}.{role}", device) for role in MATRICES}
                for index in range(files.spec.layers)
            }
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name}: damaged: {shown(str(error))}; run `lmtop lite calibrate` again") from None


def _stats(file: Any, name: str, device: torch.device) -> InputStats:
    absmax, absmean = (file.get_tensor(f"{name}.{kind}").to(device) for kind in ("absmax", "absmean"))
    return InputStats(absmax, absmean, None, count=1)
