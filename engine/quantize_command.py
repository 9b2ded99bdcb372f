"""`lmtop quantize` and `lmtop lite`: flags to a `Job`, its progress on the terminal, its outcome in a few lines."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import models
from .answer import say, show_loading
from .bar import Bar
from .devices import device_info
from .quantize import WRITING, Outcome, calibrate_model, quantise_model
from .quantize_arguments import integer, truth
from .quantize_job import Job
from .quantize_work import STATISTICS, gib
from .text import one_line
from .types import DeviceError, ModelState, UsageError

if TYPE_CHECKING:
    from .arguments import Options

SHOWN = 8  # kinds of matrices that stay at 16 bits


def run_quantize(options: Options) -> int:
    """Quantise MODEL into --out. Returns the exit code."""
    extra = options.extra
    out = extra["out"] or extra["work_dir"]
    if out is None:
        raise UsageError("quantize needs --out DIR: where the quantised model goes")
    if extra["out"] and extra["work_dir"]:
        raise UsageError("--out and --work-dir exclude each other: both name the result's directory")
    if options.model is None:
        raise UsageError("quantize needs a MODEL")
    return _quantise(options, Path(out).expanduser(), extra["search"] or "grid", None)


def run_lite(options: Options) -> int:
    """LMDeploy's `lite` commands. Returns the exit code."""
    extra = options.extra
    method = extra["method"]
    if method == "kv_qparams":
        say(
            "kv_qparams is not needed: --kv int8 and --kv int4 (--quant-policy 8 and 4) quantise the KV cache of any "
            "model while it runs, each token and head on its own range"
        )
        return 0
    if method not in ("auto_awq", "calibrate"):
        raise UsageError(
            f"lite {method}: not offered; auto_awq makes four-bit weights, calibrate its statistics"
        )
    if options.model is None:
        raise UsageError(f"lite {method} needs a MODEL")
    if len(extra["more"]) > 0:
        raise UsageError(f"unrecognized arguments: {' '.join(extra['more'])}")
    out = Path(extra["out"] or extra["work_dir"] or "work_dir").expanduser()
    if method == "calibrate":
        return _calibrate(options, out)
    statistics = out / STATISTICS
    if (out / "inputs_stats.pth").exists() and not statistics.exists():
        say("inputs_stats.pth is a pickle and is not read: the model is calibrated anew")
    asked = extra["search_scale"]
    if truth("--search-scale", asked) or (asked is None and not statistics.exists()):
        return _quantise(options, out, "grid", None)
    if not statistics.exists():
        return _quantise(options, out, "none", None)
    say(
        f"using the statistics in {one_line(str(statistics), 160)} and LMDeploy's rule; --search-scale searches"
    )
    return _quantise(options, out, "none", statistics)


def _quantise(options: Options, out: Path, search: str, statistics: Path | None) -> int:
    job = _job(options, out, search, statistics)
    begun = time.monotonic()
    with _stopped(out), _memory(), Bar(_described) as bar:
        outcome = quantise_model(job, bar, bar.say)
    name = models.display_name(options.model or "", job.directory)
    print(_summary(name, outcome, time.monotonic() - begun))
    return 0


def _calibrate(options: Options, out: Path) -> int:
    job = _job(options, out, "none", None)
    with _memory(), Bar(_described) as bar:
        path = calibrate_model(job, bar, bar.say)
    print(f"statistics of the inputs of every matrix are in {one_line(str(path), 200)}")
    print(
        f"next: lmtop lite auto_awq {one_line(options.model or '', 120)} --work-dir {one_line(str(out), 160)}"
    )
    return 0


def _job(options: Options, out: Path, search: str, statistics: Path | None) -> Job:
    values, extra = options.values, options.extra

    def number(flag: str, name: str, default: int, low: int, high: int) -> int:
        return integer(flag, extra[name], low, high) if extra[name] is not None else default

    if number("--w-bits", "w_bits", 4, 1, 64) != 4:
        raise UsageError(f"--w-bits = {extra['w_bits']}: only 4 is supported")
    head, method = extra["quantised_head"] or "16", extra["rounding"] or "awq"
    for flag, value, allowed in (
        ("--search", search, ("grid", "none")),
        ("--method", method, ("awq", "gptq")),
        ("--head", head, ("16", "int4")),
    ):
        if value not in allowed:
            raise UsageError(f"{flag} = {one_line(value, 40)!r}: must be one of {', '.join(allowed)}")
    data = extra["calib_dataset"]
    group = extra["w_group_size"]
    device = device_info(values["device"])
    if device.notice:
        say(device.notice)
    directory = models.locate(
        options.model or "",
        lambda share, text: show_loading(ModelState("loading", progress=share, message=text)),
        folders=values["folders"],
    )
    show_loading(ModelState("none"))  # clears its line
    if values["threads"]:
        torch.set_num_threads(values["threads"])
    if device.kind == "cuda":
        torch.set_float32_matmul_precision("high")  # errors are compared, not computed with: 10 bits do
    return Job(
        directory=directory,
        out=out,
        group=None if group is None else integer("--w-group-size", group, -1, 1 << 20),
        symmetric=truth("--w-sym", extra["w_sym"]),
        search=search,
        method=method,
        head=head,
        data=data,
        samples=number("--calib-samples", "calib_samples", 128, 0, 100_000),
        seqlen=number("--calib-seqlen", "calib_seqlen", 2048, 16, 1 << 20),
        device=device.kind,
        free=device.free,
        force=extra["force"],
        statistics=statistics,
        check=extra["check_dataset"],
    )


@contextmanager
def _stopped(out: Path) -> Iterator[None]:
    """Ctrl-C, with a word on what stays."""
    try:
        yield
    except KeyboardInterrupt:
        folder = out.with_name(out.name + ".partial")
        if folder.exists():
            say(
                f"stopped; what is finished is in {one_line(str(folder), 200)}: the same command goes on from there"
            )
        raise


@contextmanager
def _memory() -> Iterator[None]:
    try:
        with torch.inference_mode():
            yield
    except (torch.OutOfMemoryError, MemoryError):
        raise DeviceError(
            "out of memory; fewer --calib-samples or a shorter --calib-seqlen need less"
        ) from None


def _described(stage: str, done: float, total: int) -> str:
    return stage if stage == WRITING else f"{stage} layer {min(int(done) + 1, total)} of {total}"


def _summary(name: str, outcome: Outcome, seconds: float) -> str:
    found, windows = outcome.comparison, outcome.windows
    size = "one scale a row" if outcome.group == -1 else f"group {outcome.group}"
    rows = [
        (
            "quantised",
            f"{one_line(name, 60)}: {outcome.matrices} matrices, int4, {size}, in {_clock(seconds)}",
        ),
        ("calibrated", f"{len(windows.ids)} samples, {windows.tokens:,} tokens: {windows.source}"),
        ("size", f"{gib(outcome.before)} -> {gib(outcome.after)}"),
    ]
    if outcome.gain is not None and outcome.better is not None:
        found_by = f"output error {outcome.gain:.0%} of that without smoothing; below LMDeploy's rule on"
        rows.append(("search", f"{found_by} {outcome.better:.0%} of the matrices"))
    rows += [("kept", line) for line in _kept(outcome.kept)]
    change = (
        f"{found.before:.4g} -> {found.after:.4g} ({found.rise:+.2%}) on {found.tokens:,} held-out tokens"
    )
    rows += [("perplexity", f"{change}; mean KL {found.divergence:.2g}"), ("verdict", found.verdict)]
    lines = [f"{label:12} {text}" for label, text in rows]
    return "\n".join([*lines, f"lmtop chat {one_line(str(outcome.out), 200)}"])


def _kept(matrices: tuple[tuple[str, str], ...]) -> list[str]:
    """What stays at 16 bits, matrices that differ in their layer only in one line."""
    alike = Counter((re.sub(r"\.\d+\.", ".*.", module), why) for module, why in matrices)
    lines = [
        f"{one_line(module, 80)}{f' in {count} layers' if count > 1 else ''} at 16 bits: {why}"
        for (module, why), count in alike.items()
    ]
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"and {len(lines) - SHOWN} more kinds"]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
