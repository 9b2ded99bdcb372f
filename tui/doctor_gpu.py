"""The part of `lmtop doctor` that is about the GPU: what it is, which kernels run on it, how near its limit."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from ..engine.config import DeviceInfo
from ..engine.devices import device_info, torch_cuda
from ..engine.samples import TelemetrySnapshot
from ..engine.telemetry import Telemetry
from ..engine.text import one_line
from ..kernels import nvrtc
from .doctor import Finding

CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def gpu_findings() -> Iterator[Finding]:
    """One line for each GPU, then what the engine does with the first, or why nothing."""
    snapshot, info = Telemetry().sample(), device_info()
    yield from _cards(snapshot, info)
    if info.kind == "cuda":
        yield _versions(info)
        yield _reading()


def _cards(snapshot: TelemetrySnapshot, info: DeviceInfo) -> Iterator[Finding]:
    for gpu in snapshot.gpus:
        total = "n/a" if gpu.mem_total is None else f"{gpu.mem_total / 2**30:.0f} GiB"
        yield Finding("gpu", "ok", f"{gpu.index} {gpu.name}, {total}, driver {snapshot.driver or 'n/a'}")
    if info.kind == "cuda":
        return
    if info.notice:
        yield Finding("gpu", "note", info.notice)
    else:
        why = snapshot.notice or ("none that CUDA can see" if snapshot.gpus else "none found")
        yield Finding("gpu", "note", f"{why}; the engine runs on the CPU, on the reference kernels in torch")


def _versions(info: DeviceInfo) -> Finding:
    arch = "90a" if info.capability == 90 else str(info.capability)
    text = f"compute capability {info.capability / 10:.1f}, kernels for sm_{arch} ({_path(info.capability)})"
    text += f"; torch CUDA {torch_cuda()}, CuPy {_cupy()}"
    try:
        major, minor = nvrtc.compiler_version()
    except nvrtc.CompileError as error:
        return Finding("cuda", "bad", f"{text}; {error}")
    return Finding("cuda", "ok", f"{text}, NVRTC {major}.{minor}")


def _path(capability: int) -> str:
    """What sets the kernels of this architecture apart."""
    if capability == 90:
        return "wgmma, bulk copies, early launch"
    if capability >= 90:
        return "bulk copies, early launch"
    return "asynchronous copies" if capability >= 80 else "float16 only"


def _cupy() -> str:
    for name in CUPY:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "n/a"


def _reading() -> Finding:
    """A short measurement: the memory's speed and how much of it a product for one token gets."""
    try:
        from ..kernels.bench import quick_reading

        reading = quick_reading()
    except Exception as error:  # noqa: BLE001 - whatever fails here would fail a chat as well
        return Finding("kernels", "bad", one_line(f"do not run: {error}", 300))
    return Finding(
        "kernels",
        "ok",
        f"memory reads at {reading.bandwidth:,.0f} GB/s; a {reading.shape} product for one token takes "
        f"{reading.microseconds:.1f} us, {reading.share:.0%} of that",
    )
