"""An AWQ checkpoint written out as a plain one, by an unpacking of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # output of each nibble of a word, lowest first


def unpacked(words: Tensor) -> Tensor:
    """int32 [n, m] -> [n, 8 m] of 0..15."""
    out = torch.empty(words.shape[0], words.shape[1], 8, dtype=torch.float32)
    for place, output in enumerate(ORDER):
        out[:, :, output] = (words >> 4 * place & 15).float()
    return out.flatten(1)


def dequantised(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """The float32 weight [out, in]."""
    codes, zeros = unpacked(qweight), unpacked(qzeros)
    group = codes.shape[0] // scales.shape[0]
    wide = [part.repeat_interleave(group, 0) for part in (zeros, scales.float())]
    return ((codes - wide[0]) * wide[1]).T.contiguous()


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, quantised matrices as float32 weights."""
    stored: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        stored |= load_file(path)
    plain = {}
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            plain[f"{module}.weight"] = dequantised(
                tensor, stored[f"{module}.qzeros"], stored[f"{module}.scales"]
            )
        elif part not in ("qzeros", "scales"):
            plain[name] = tensor.float()
    return plain


def write_plain(source: Path, target: Path) -> Path:
    """The checkpoint in `source` with float32 weights, in `target`."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((source / "config.json").read_text())
    config.pop("quantization_config", None)
    config["torch_dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config))
    save_file(tensors_of(source), target / "model.safetensors", metadata={"format": "pt"})
    return target
