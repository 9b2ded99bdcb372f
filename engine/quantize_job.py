"""What a quantisation is asked to do, and whether that can be done: choices and checks before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..quant.awq_layout import PER_WORD
from .calibration import Windows, digest_of, held_out, load_windows
from .quantize_layers import MATRICES, places_of
from .quantize_matrices import Recipe, layer_bytes, misfit
from .roles import FUSED
from .spec import ModelFiles
from .template import load_template
from .tokenizer import Tokenizer, load_tokenizer
from .types import DeviceError, ModelError, UsageError

GROUPS = (128, 64, 32)  # tried in this order where none is asked for
HELD_OUT = (16, 512)  # windows of the self-check, and tokens in one
ROOMY = 24 << 30  # bytes of a GPU's memory that allow for large batches
SPARE = 1.05  # of the memory estimate

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be made. group None: the largest that fits. data None: the bundled text. head: "16" or "int4".
    statistics: what `lmtop lite calibrate` left, to be used in place of calibrating."""

    directory: Path
    out: Path
    group: int | None = None
    symmetric: bool = False
    search: str = "grid"
    method: str = "awq"
    head: str = "16"
    data: str | None = None
    samples: int = 128
    seqlen: int = 2048
    device: str = "cpu"
    free: int = 0  # bytes of memory on the device
    force: bool = False
    statistics: Path | None = None
    check: str | None = None  # a file of texts to check with; None: the bundled ones

    @property
    def batch(self) -> int:
        """Tokens that a layer computes together."""
        if self.device == "cpu":
            return 2048
        return 16384 if self.free >= ROOMY else 4096


def activations(files: ModelFiles, kind: str) -> torch.dtype:
    """The type that texts are computed in. bfloat16 on a GPU, whatever the weights: activations of some models
    overflow float16, and statistics need no more digits."""
    if kind == "cpu" or files.dtype in ("float32", "float64"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16


def choose_group(files: ModelFiles, wanted: int | None) -> int:
    """The group size: `wanted`, or the one of `GROUPS` that fits most. UsageError where another would fit more."""

    def fitting(group: int) -> int:
        return sum(
            place.shape[0] * place.shape[1]
            for place in files.placed
            if place.layer >= 0 and place.part == "weight" and len(place.shape) == 2
            for role in [matrix_of(place.role)]
            if not misfit(files, role, group)
        )

    best = max(GROUPS, key=lambda group: (fitting(group), group))
    chosen = best if wanted is None else wanted
    if chosen not in (*GROUPS, -1):
        raise UsageError(f"--w-group-size = {chosen}: must be one of 32, 64, 128 or -1 (a whole row)")
    if fitting(chosen) < (fitting(best) if chosen != -1 else 1):
        reason = next(reason for role in MATRICES if (reason := misfit(files, role, chosen)))
        way_out = f"--w-group-size {best} fits" if fitting(best) else "no group size fits"
        raise UsageError(f"--w-group-size = {chosen}: does not fit this model: {reason}; {way_out}")
    if not fitting(chosen):
        raise ModelError(
            "none of the matrices can be stored in AWQ's layout: " + misfit(files, "qkv", chosen)
        )
    return chosen


def matrix_of(role: str) -> str:
    return FUSED.get(role, role)


def check_head(files: ModelFiles, job: Job, recipe: Recipe) -> None:
    if job.head != "int4":
        return
    if files.spec.tied:
        raise UsageError("--head = int4: this model's head is its embedding, which stays at 16 bits")
    group, vocab, hidden = recipe.scheme.group, files.spec.vocab, files.spec.hidden
    if vocab % PER_WORD or (group != -1 and hidden % group):
        raise UsageError(
            f"--head = int4: [{vocab}, {hidden}] does not fit group size {group} of AWQ's layout"
        )


def calibration_windows(files: ModelFiles, job: Job, say: Say) -> tuple[Tokenizer, Windows]:
    tokenizer = load_tokenizer(job.directory, files.family, files.spec.vocab)
    length = min(job.seqlen, files.spec.max_position)
    if length < job.seqlen:
        say(f"samples are {length} tokens long, not {job.seqlen}: that is the model's context")
    if job.statistics is not None:
        return tokenizer, Windows((), f"statistics in {job.statistics.name}")
    template = load_template(job.directory, files.family, tokenizer)
    windows = load_windows(job.data, tokenizer, template, job.samples, length)
    for notice in windows.notices:
        say(notice)
    return tokenizer, windows


def check_windows(files: ModelFiles, job: Job, tokenizer: Tokenizer) -> Windows:
    count, length = HELD_OUT[0], min(HELD_OUT[1], files.spec.max_position)
    if job.check is None:
        return held_out(tokenizer, count, length)
    template = load_template(job.directory, files.family, tokenizer)
    return load_windows(job.check, tokenizer, template, count, length)


def output_bytes(files: ModelFiles, group: int) -> int:
    """Bytes of the weights that will be written."""
    outside = sum(2 * place.tensor.nbytes for place in places_of(files, -1)) // 2
    return outside + sum(layer_bytes(files, index, group) for index in range(files.spec.layers))


def require_memory(files: ModelFiles, windows: Windows, job: Job, recipe: Recipe) -> None:
    """DeviceError unless a layer, what is counted of it, and the texts fit."""
    spec = files.spec
    layer = max(
        sum(place.shape[0] * place.shape[1] for place in places_of(files, index) if len(place.shape) == 2)
        for index in range(spec.layers)
    )
    inner = files.widest // 2
    inputs = (spec.hidden, spec.heads * spec.head_dim, spec.hidden, inner)
    width = activations(files, job.device).itemsize
    texts = windows.tokens * spec.hidden * width
    grams = sum(4 * n * n for n in inputs) if recipe.needs_gram and windows.ids else 0
    # stored and smoothed in float32, with two more copies of the largest while ranges are searched
    weights = layer * (2 + 4 + width) + 3 * 4 * spec.hidden * files.widest
    ends = 8 if job.head == "16" else 12  # bytes of a number of the last matrix while it is compared
    rows = max(job.batch, max(map(len, windows.ids), default=0))
    needed = int(
        SPARE * (max(weights + grams, spec.vocab * spec.hidden * ends) + texts + rows * files.widest * 12)
    )
    if needed > job.free:
        raise DeviceError(
            f"quantising needs about {needed / 2**30:.1f} GiB of memory, {job.free / 2**30:.1f} GiB are free; "
            "fewer --calib-samples or a shorter --calib-seqlen need less"
        )


def manifest_of(files: ModelFiles, job: Job, recipe: Recipe, windows: Windows) -> dict[str, Any]:
    digest = hashlib.sha256()
    digest_of(windows.ids, digest.update)
    if job.statistics is not None:
        digest.update(job.statistics.read_bytes())
    return {
        "source": files.digest,
        "group": recipe.scheme.group,
        "symmetric": recipe.scheme.symmetric,
        "search": recipe.search,
        "method": recipe.method,
        "head": job.head,
        "data": digest.hexdigest(),
    }
