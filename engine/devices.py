"""Where the engine can run: the first GPU that CUDA would use, or the CPU and why.

Asks NVML and looks at what is installed; imports neither torch nor CuPy and takes no memory on the card.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import psutil

from .config import DeviceInfo
from .text import one_line
from .types import DeviceError

NO_DRIVER = (9, 12)  # NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND
OLDEST = 75  # compute capability that the kernels are written for: Turing


def device_info(wanted: str = "auto", reclaim: int = 0, nvml: Any = None) -> DeviceInfo:
    """The device that `wanted` means here; `reclaim` bytes of ours will be free by then. "auto" is a GPU where it
    can be used, else the CPU, with a notice where a GPU is there in vain. DeviceError when a GPU is asked for
    and cannot be used. `nvml` stands in for pynvml."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device = {wanted!r}: must be auto, cpu or cuda")
    notice = ""
    if wanted != "cpu":
        try:
            return _gpu(reclaim, nvml)
        except _Unusable as reason:
            if wanted == "cuda":
                raise DeviceError(f"device = 'cuda': {reason}; device = cpu runs without") from None
            notice = f"running on the CPU, not on {reason.gpu}: {reason}" if reason.gpu else ""
    return cpu_info(reclaim, notice)


def cpu_info(reclaim: int = 0, notice: str = "") -> DeviceInfo:
    """The CPU and its RAM; `notice` says why it is that."""
    memory = psutil.virtual_memory()
    free = min(memory.total, memory.available + reclaim)
    return DeviceInfo("cpu", "CPU", memory.total, free, notice=notice)


class _Unusable(Exception):
    """Why no GPU can be used. `gpu` names one that is there in vain."""

    def __init__(self, reason: str, gpu: str = "") -> None:
        super().__init__(reason)
        self.gpu = gpu


def _gpu(reclaim: int, nvml: Any) -> DeviceInfo:
    """The GPU that CUDA calls device 0. Raises _Unusable."""
    # CUDA numbers GPUs by speed, NVML by bus, which is what nvidia-smi shows and people mean; read when CUDA starts
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # noqa: BLE001  pynvml's own, which cannot be named before it is there
        if getattr(error, "value", None) in (None, *NO_DRIVER):
            raise _Unusable("no NVIDIA driver was found") from None
        raise _Unusable(f"its driver does not answer ({one_line(str(error), 80)})", "the GPU") from None
    try:
        handle = visible_gpu(nvml)
        if handle is None:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
            how = "" if hidden is None else f": CUDA_VISIBLE_DEVICES = {one_line(hidden, 60)!r}"
            raise _Unusable(f"no NVIDIA GPU is visible{how}")
        name = one_line(str(nvml.nvmlDeviceGetName(handle)), 60)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except _Unusable:
        raise
    except Exception as error:  # noqa: BLE001  lost, or not ours to use
        raise _Unusable(f"it does not answer ({one_line(str(error), 80)})", "the GPU") from None
    finally:
        nvml.nvmlShutdown()
    if problem := _problem(10 * major + minor):
        raise _Unusable(problem, name)
    free = min(int(memory.total), int(memory.free) + reclaim)
    return DeviceInfo("cuda", name, int(memory.total), free, 10 * major + minor)


def visible_gpu(nvml: Any) -> Any:
    """NVML's handle of the first GPU that CUDA_VISIBLE_DEVICES lets through; None when it hides all. `nvml` is
    pynvml, initialised."""
    count = int(nvml.nvmlDeviceGetCount())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(0) if count else None
    first = visible.split(",")[0].strip()
    if first.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    if first.startswith("GPU-"):  # the beginning of one is enough
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(count))
        return next((it for it in handles if str(nvml.nvmlDeviceGetUUID(it)).startswith(first)), None)
    known = first.isdecimal() and int(first) < count
    return nvml.nvmlDeviceGetHandleByIndex(int(first)) if known else None


def _problem(capability: int) -> str:
    """Why a GPU that is there cannot be used, and the way out; empty when it can."""
    if capability < OLDEST:
        return f"it is older than compute capability {OLDEST / 10:g}"
    cuda = torch_cuda()
    if not cuda:
        return "this torch was built without CUDA; install torch with CUDA"
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is missing; install lmtop[cuda{cuda.split('.')[0]}]"
    return ""


def torch_cuda() -> str:
    """The CUDA version that torch was built with, e.g. "13.0"; empty without CUDA. Reads torch's version file:
    importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else ""
