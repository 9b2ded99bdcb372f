"""Loads compiled kernels onto a device through CuPy and launches them on torch's current stream.

The launch itself goes through `cuLaunchKernelEx`: CuPy has no way to ask for programmatic dependent launch, by
which a kernel starts while its predecessor finishes (sm_90+), and this also costs the host less. Everything is
safe inside torch's graph capture once its module is loaded.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .nvrtc import CompileError, Cubin, Entry, Unit, compile_unit

_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID, cuda.h


class LaunchError(Exception):
    """A kernel that the driver refuses to load or launch."""


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint), ("pad", ctypes.c_uint), ("value", ctypes.c_ubyte * 64)]


class _Config(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = [
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


def _dependent() -> Any:
    attribute = _Attribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION)
    attribute.value[0] = 1
    return ctypes.pointer(attribute)


_DEPENDENT = _dependent()


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise LaunchError("the NVIDIA driver's libcuda.so.1 was not found") from error


@cache
def properties(device: torch.device) -> Any:
    """`torch.cuda.get_device_properties`, kept: wrappers ask at every launch."""
    return torch.cuda.get_device_properties(device)


@cache
def architecture(device: torch.device) -> str:
    """What `nvrtc.compile_unit` calls a device: "90a" on Hopper, else its compute capability."""
    major, minor = torch.cuda.get_device_capability(device)
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


class Kernel:
    """One loaded kernel. Call it to launch."""

    def __init__(self, entry: Entry, function: Any, dependent: bool, index: int) -> None:
        self.entry = entry
        self._index = index
        self._allowed = 48 << 10
        self._function = function  # keeps the module loaded
        self._handle = ctypes.c_void_p(function.kernel.ptr)
        self._dependent = dependent
        self._launch = _driver().cuLaunchKernelEx
        if dependent:
            # One carve-out for all: blocks of kernels that want different ones cannot share an SM, so that each kernel
            # would wait for the one before it to leave. Left to itself the driver makes room for few blocks, too.
            function.preferred_shared_memory_carveout = 100

    def max_shared(self, nbytes: int) -> Kernel:
        """Allow `nbytes` of dynamic shared memory (more than 48 KiB needs asking); before any capture."""
        if nbytes > self._allowed:
            self._allowed = nbytes
            self._function.max_dynamic_shared_size_bytes = nbytes
        return self

    def __call__(
        self,
        grid: int | tuple[int, int, int],
        block: int | tuple[int, int, int],
        *args: Any,
        shared: int = 0,
        pdl: bool = False,
    ) -> None:
        """Launch on torch's current stream. A Tensor passes its data pointer, an int 32 bits, a float float32,
        None a null pointer, a ctypes value itself. `pdl`: start while the kernel before still runs; the kernel
        must wait for it itself (`pdl_wait`). LaunchError when the driver refuses."""
        gx, gy, gz = (grid, 1, 1) if isinstance(grid, int) else grid
        bx, by, bz = (block, 1, 1) if isinstance(block, int) else block
        values = [_argument(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        dependent = pdl and self._dependent
        config = _Config(
            gx,
            gy,
            gz,
            bx,
            by,
            bz,
            shared,
            _raw_stream(self._index),
            _DEPENDENT if dependent else None,
            int(dependent),
        )
        code = self._launch(ctypes.byref(config), self._handle, pointers, None)
        if code:
            raise LaunchError(
                f"kernel {self.entry.name} was refused (CUDA error {code}: {error_name(code)}); "
                f"grid {gx}x{gy}x{gz}, block {bx}x{by}x{bz}, {shared} bytes shared"
            )


def _argument(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return ctypes.c_void_p(arg.data_ptr())
    if isinstance(arg, int):
        return ctypes.c_int(arg)
    if isinstance(arg, float):
        return ctypes.c_float(arg)
    return ctypes.c_void_p(None) if arg is None else arg


def _raw_stream(index: int) -> int:
    """The handle of torch's current stream on a device; `torch.cuda.current_stream` makes an object of it, which
    costs as much as a launch."""
    return int(torch._C._cuda_getCurrentRawStream(index))


def error_name(code: int) -> str:
    """The driver's name of a CUresult, e.g. CUDA_ERROR_OUT_OF_MEMORY."""
    text = ctypes.c_char_p()
    _driver().cuGetErrorName(code, ctypes.byref(text))
    return text.value.decode() if text.value else "unknown"


class Module:
    """The kernels of one unit on one device."""

    def __init__(self, cubin: Cubin, dependent: bool, index: int) -> None:
        try:
            import cupy
        except ImportError as error:
            raise LaunchError(
                "CuPy is missing: install lmtop[cuda13] (or lmtop[cuda12], as the driver)"
            ) from error
        raw = cupy.RawModule(path=str(cubin.path))
        self._kernels = {
            entry.name: Kernel(entry, raw.get_function(entry.name), dependent, index)
            for entry in cubin.entries
        }

    def kernel(self, name: str) -> Kernel:
        if name not in self._kernels:
            raise LaunchError(f"there is no kernel {name} among {', '.join(self._kernels) or 'none'}")
        return self._kernels[name]


_LOADED: dict[tuple[int, Unit], Module] = {}
_LOCK = threading.Lock()


def load(wanted: Unit, device: torch.device | None = None) -> Module:
    """The kernels of a unit, compiled and loaded once per device (default: torch's current one). Not inside a
    capture: load before. CompileError or LaunchError."""
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    found = _LOADED.get((index, wanted))
    if found is not None:
        return found
    with _LOCK:
        if (index, wanted) not in _LOADED:
            with torch.cuda.device(index):
                torch.cuda.current_stream().synchronize()  # makes the device's context current in this thread
                cubin = compile_unit(wanted, architecture(torch.device("cuda", index)))
                major, _ = torch.cuda.get_device_capability(index)
                _LOADED[index, wanted] = Module(cubin, dependent=major >= 9, index=index)
        return _LOADED[index, wanted]


__all__ = [
    "CompileError",
    "Kernel",
    "LaunchError",
    "Module",
    "architecture",
    "error_name",
    "load",
    "properties",
]
