"""`lmtop quantize`: from a 16-bit checkpoint to a four-bit one in AWQ's layout, a layer at a time.

Each layer is read, shown the calibration texts, smoothed, rounded and written before the next is touched; the texts
go on through the layer as it was. What a killed run finished stays (`engine.quantize_work`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..quant.awq import Scheme, quantise
from ..quant.awq_layout import pack
from .calibration import Windows
from .hfconfig import shown
from .quantize_check import Comparison, compare
from .quantize_follow import Followed
from .quantize_job import (
    Job,
    Say,
    calibration_windows,
    check_head,
    check_windows,
    choose_group,
    manifest_of,
    matrix_of,
    output_bytes,
    require_memory,
)
from .quantize_layers import Layers, places_of
from .quantize_matrices import Recipe, kept, module_of, quantise_layer
from .quantize_statistics import read_statistics, write_statistics
from .quantize_work import Work, check_target, require_space
from .spec import ModelFiles, read_spec
from .types import ModelError, UsageError

# Calibration tokens per input of the widest matrix from which on GPTQ gained: the built-in model on other text than it
# was calibrated on, KL at 0.7, 1.3, 2.7, 11 and 27 tokens per input: 0.054, 0.037, 0.029, 0.0251, 0.0264 where AWQ had
# 0.028, 0.027, 0.026, 0.0257, 0.0274; on text alike at 4 and 10: 0.0170, 0.0148 against 0.0247, 0.0227.
ENOUGH = 8

WRITING = "writing"  # the stage whose steps are no layers
Stage = Callable[[str, float, int], None]  # what is being done, steps done, steps in all


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was made. before, after: bytes of weights; better: share of the smoothed matrices whose error the search
    made smaller than LMDeploy's rule does; kept: (tensor's module, why) of matrices left at 16 bits."""

    out: Path
    group: int
    before: int
    after: int
    matrices: int
    better: float | None
    gain: float | None
    kept: tuple[tuple[str, str], ...]
    comparison: Comparison
    windows: Windows


def quantise_model(job: Job, stage: Stage, say: Say) -> Outcome:
    """Do the whole job. Raises UsageError, ModelError or DeviceError; a KeyboardInterrupt leaves what is finished for
    the next call with the same job."""
    files = _source(job)
    if files.quantised:
        raise ModelError(
            f"{job.directory.name}: is quantised already ({files.quantised}); start from the 16-bit checkpoint"
        )
    check_target(job.out, job.directory, job.force)
    recipe = Recipe(Scheme(choose_group(files, job.group), job.symmetric), job.search, job.method)
    check_head(files, job, recipe)
    tokenizer, windows = calibration_windows(files, job, say)
    needed = 2 * output_bytes(
        files, recipe.scheme.group
    )  # the finished layers, and the directory made of them
    require_space(job.out.parent, needed, f"quantising {job.directory.name}")
    require_memory(files, windows, job, recipe)
    texts = check_windows(files, job, tokenizer)
    enough = ENOUGH * files.widest // 2
    if recipe.method == "gptq" and windows.tokens < enough:
        say(
            f"{windows.tokens:,} tokens of calibration are few for GPTQ: from {enough:,} on it is better than awq"
        )
    work = Work(job.out, manifest_of(files, job, recipe, windows))
    work.open()
    try:
        return _at_work(work, files, job, recipe, windows, texts, stage, say)
    finally:
        work.close()


def _source(job: Job) -> ModelFiles:
    files = read_spec(job.directory)
    if files.converted:
        raise ModelError(
            f"{shown(job.directory.name)}: was made by lmtop convert; start from the original checkpoint"
        )
    return files


def calibrate_model(job: Job, stage: Stage, say: Say) -> Path:
    """Only count what LMDeploy's rule needs, and leave it in `job.out`, which may be there. Returns the file."""
    files = _source(job)
    _, windows = calibration_windows(files, job, say)
    if not windows.ids:
        raise UsageError("--calib-samples = 0: there is nothing to calibrate with")
    recipe = Recipe(Scheme(-1), "none")
    require_memory(files, windows, job, recipe)
    reader = Layers(files, torch.device(job.device))
    try:
        follow = Followed(reader, windows, job)
        counted = {}
        for index in range(files.spec.layers):
            stage("calibrating", index, files.spec.layers)
            counted[index] = follow.through(
                reader.read(index),
                count=True,
                gram=False,
                progress=lambda share, index=index: stage("calibrating", index + share, files.spec.layers),  # type: ignore[misc]
            )
    finally:
        reader.close()
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        return write_statistics(job.out, files, counted, windows.source)
    except OSError as error:
        raise UsageError(f"--work-dir {shown(str(job.out), 160)}: cannot write: {error.strerror}") from None


def _at_work(
    work: Work,
    files: ModelFiles,
    job: Job,
    recipe: Recipe,
    windows: Windows,
    texts: Windows,
    stage: Stage,
    say: Say,
) -> Outcome:
    layers = files.spec.layers
    finished = sum(work.has(part) for part in range(layers + 1))
    if finished:
        say(f"going on where an earlier run ended: {finished} of {layers + 1} parts are finished")
    original = Layers(files, torch.device(job.device))
    try:
        if finished <= layers:
            _make_parts(work, original, job, recipe, windows, stage)
        config = _config(files, job, recipe, work)
        model = work.finish(layers + 1, config, job.directory, lambda share: stage(WRITING, 100 * share, 100))
        made = Layers(read_spec(model), original.device)
        try:
            comparison = compare(
                original,
                made,
                texts.ids,
                job.batch,
                lambda done: stage("checking", done, layers),
            )
        finally:
            made.close()
    finally:
        original.close()
    outcome = _outcome(work, files, job, recipe, windows, comparison, made.files)
    work.publish(model)
    return outcome


def _make_parts(
    work: Work, original: Layers, job: Job, recipe: Recipe, windows: Windows, stage: Stage
) -> None:
    """Every part that is not there yet: a layer each, and last what lies outside of them."""
    files, layers = original.files, original.files.spec.layers
    saved = {} if job.statistics is None else read_statistics(job.statistics, files, original.device)
    follow = Followed(original, windows, job)
    for index in range(layers):
        stage("quantising", index, layers)
        fresh = not work.has(index)
        layer = original.read(index)
        stats = follow.through(
            layer,
            count=fresh,
            gram=recipe.needs_gram,
            progress=lambda share, index=index: stage("quantising", index + share / 2, layers),  # type: ignore[misc]
        )
        if not fresh:
            continue
        tensors, report = quantise_layer(files, layer, saved.get(index, stats), recipe)
        work.save(index, tensors, asdict(report))
    stage("quantising", layers, layers)
    if not work.has(layers):
        work.save(layers, _outside(original, job, recipe, follow), {})


def _outside(original: Layers, job: Job, recipe: Recipe, follow: Followed) -> dict[str, Tensor]:
    """What is stored of embedding, last norm and head."""
    out: dict[str, Tensor] = {}
    for place in places_of(original.files, -1):
        tensor, name = original.tensor(place), place.tensor.name
        if job.head == "int4" and (place.role, place.part) == ("lm_head", "weight"):
            gain = original.outside("final_norm")
            assert gain is not None
            stats = follow.last(gain) if recipe.search == "grid" else None
            gram = stats.gram if stats is not None and stats.usable else None
            packed = pack(quantise(tensor.float(), None, recipe.scheme, gram))
            out |= {f"{module_of(name)}.{key}": part for key, part in packed.items()}
        else:
            out[name] = kept(tensor, place)
    return out


# --- what is written ----------------------------------------------------------------------------------------------


def _kept_modules(work: Work, files: ModelFiles, job: Job) -> list[tuple[str, str]]:
    """(module, why) of every matrix that stays at 16 bits."""
    out: list[tuple[str, str]] = []
    for index in range(files.spec.layers):
        reasons: Mapping[str, str] = work.facts(index)["kept"]
        out += [
            (module_of(place.tensor.name), reasons[role])
            for place in places_of(files, index)
            if place.part == "weight" and (role := matrix_of(place.role)) in reasons
        ]
    if job.head == "16":
        heads = [
            place for place in places_of(files, -1) if place.role == "lm_head" and place.part == "weight"
        ]
        out.append((module_of(heads[0].tensor.name) if heads else "lm_head", ""))
    return out


def _config(files: ModelFiles, job: Job, recipe: Recipe, work: Work) -> dict[str, Any]:
    """config.json of the result. Zero points are always stored, also symmetric ones, so `zero_point` is true."""
    config = dict(files.config)
    for key in ("torch_dtype", "dtype"):
        if key in config or key == "torch_dtype":
            config[key] = "bfloat16" if files.dtype == "bfloat16" else "float16"
    config["quantization_config"] = {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": recipe.scheme.group,
        "zero_point": True,
        "modules_to_not_convert": [module for module, _ in _kept_modules(work, files, job)],
    }
    return config


def _outcome(
    work: Work,
    files: ModelFiles,
    job: Job,
    recipe: Recipe,
    windows: Windows,
    comparison: Comparison,
    made: ModelFiles,
) -> Outcome:
    facts = [work.facts(index) for index in range(files.spec.layers)]
    errors = [triple for fact in facts for triple in fact["errors"].values()]
    return Outcome(
        out=job.out,
        group=recipe.scheme.group,
        before=files.stored_bytes,
        after=made.stored_bytes,
        matrices=sum(place.packed is not None for place in made.placed),
        better=sum(found < half for found, half, _ in errors) / len(errors) if errors else None,
        gain=sum(found / plain for found, _, plain in errors if plain) / len(errors) if errors else None,
        kept=tuple((module, why) for module, why in _kept_modules(work, files, job) if why),
        comparison=comparison,
        windows=windows,
    )
