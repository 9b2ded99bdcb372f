"""Compiles the CUDA sources of `kernels/cuda` to cubins at run time, through NVRTC, and keeps them on disk.

CuPy's own compiler needs a GPU, cannot name sm_90a portably and does not see changes of included files; this one
needs only libnvrtc and the runtime headers (both come with torch's CUDA wheels), so that every kernel can be
compiled for every architecture on a machine without a GPU. Imports neither torch nor CuPy.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "cuda"
ARCHITECTURES = ("75", "80", "86", "89", "90a", "100", "120")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class CompileError(Exception):
    """A kernel that cannot be compiled, or a compiler that cannot be found: one line, what to do, and the
    compiler's own words in `log`."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """One compilation: a source file of `kernels/cuda` and its macros. Make it with `unit`."""

    source: str
    defines: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return " ".join((self.source, *(f"{name}={value}" for name, value in self.defines)))


def unit(source: str, **defines: int | str | bool) -> Unit:
    """The unit of `source` with macros; True and False become 1 and 0."""
    return _unit(source, tuple(defines.items()))


@cache  # wrappers ask at every launch
def _unit(source: str, defines: tuple[tuple[str, int | str | bool], ...]) -> Unit:
    texts = ((name, str(int(value) if isinstance(value, bool) else value)) for name, value in defines)
    return Unit(source, tuple(sorted(texts)))


@dataclass(frozen=True, slots=True)
class Entry:
    """What ptxas says of one kernel: registers per thread, the rest in bytes (per thread but `shared`)."""

    name: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True, slots=True)
class Cubin:
    """A compiled unit on disk. `fresh`: compiled now, not found."""

    path: Path
    entries: tuple[Entry, ...]
    fresh: bool = False


def cache_directory() -> Path:
    """Where cubins are kept: $LMTOP_CACHE_DIR/kernels, or the user's cache directory."""
    base = os.environ.get("LMTOP_CACHE_DIR")
    if not base:
        import platformdirs  # takes its time to look around: only where it is needed

        base = platformdirs.user_cache_dir("lmtop", appauthor=False)
    return Path(base) / "kernels"


def compile_unit(wanted: Unit, arch: str = "90a") -> Cubin:
    """Compile `wanted` for sm_`arch`, or find it compiled. CompileError names the source and the first error."""
    compiler = _compiler()
    options = (
        f"-arch=sm_{arch}",
        "-std=c++17",
        "-default-device",
        "--ptxas-options=-v",
        *(f"-D{name}={value}" for name, value in wanted.defines),
    )
    sources = _closure(wanted.source)
    digest = hashlib.sha256(json.dumps((sources, options, compiler.version)).encode()).hexdigest()[:32]
    path = cache_directory() / f"{Path(wanted.source).stem}-{digest}.cubin"
    facts = path.with_suffix(".json")
    try:
        known = json.loads(facts.read_text())
        entries = tuple(Entry(**entry) for entry in known["entries"])
        if entries and known["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest():
            return Cubin(path, entries)
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not there, or not ours: compile
    cubin, log = compiler.compile(wanted, options)
    entries = _entries(log)
    _write(path, cubin)
    told = {"sha256": hashlib.sha256(cubin).hexdigest(), "entries": [asdict(entry) for entry in entries]}
    _write(facts, json.dumps(told).encode())
    return Cubin(path, entries, fresh=True)


def compile_all(
    units: Iterable[Unit],
    arch: str = "90a",
    progress: Callable[[int, int, Unit], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[Unit, Cubin]:
    """Compile many at once, one thread per core; `progress(done, total, unit)` after each. Stops between units
    when `cancelled`; then the result lacks some."""
    wanted = tuple(dict.fromkeys(units))
    done: dict[Unit, Cubin] = {}
    with ThreadPoolExecutor(max_workers=max(1, min(len(wanted), os.cpu_count() or 1))) as pool:
        jobs = {pool.submit(compile_unit, item, arch): item for item in wanted}
        try:
            for job in as_completed(jobs):
                item = jobs[job]
                done[item] = job.result()
                if progress is not None:
                    progress(len(done), len(wanted), item)
                if cancelled():
                    break
        finally:
            for job in jobs:
                job.cancel()
    return done


def compiler_version() -> tuple[int, int]:
    """NVRTC's (major, minor). CompileError when there is none."""
    return _compiler().version


def _closure(source: str) -> list[tuple[str, str]]:
    """(name, text) of a source and of every local file it includes, directly or not."""
    found: dict[str, str] = {}
    pending = [source]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        try:
            found[name] = (SOURCES / name).read_text(encoding="utf-8")
        except OSError as error:
            raise CompileError(f"kernel source {name}: {error.strerror}; reinstall lmtop") from error
        pending += _INCLUDE.findall(found[name])
    return sorted(found.items())


def _entries(log: str) -> tuple[Entry, ...]:
    """Resource use per kernel from ptxas' verbose output."""
    parts = _ENTRY.split(log)[1:]  # name, what follows it, name, ...
    entries = []
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        stack, used, shared = _STACK.search(text), _USED.search(text), _SHARED.search(text)
        sizes = [int(value) for value in stack.groups()] if stack else [0, 0, 0]
        entries.append(Entry(name, int(used[1]) if used else 0, int(shared[1]) if shared else 0, *sizes))
    return tuple(entries)


def _write(path: Path, content: bytes) -> None:
    """Atomically: another process may compile the same at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# --- NVRTC ---------------------------------------------------------------------------------------------------


class _Compiler:
    """libnvrtc through ctypes. Programs are independent: calls may come from several threads."""

    def __init__(self, library: ctypes.CDLL, includes: Sequence[Path]) -> None:
        self._library = library
        self._includes = tuple(f"-I{path}" for path in (SOURCES, *includes))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)
        # Beside a driver it finds results of its own again from 12.9 on, but without the log that tells of spills.
        self._own_cache = ("--no-cache",) if self.version >= (12, 9) else ()

    def compile(self, wanted: Unit, options: Sequence[str]) -> tuple[bytes, str]:
        """(cubin, log)."""
        library, program = self._library, ctypes.c_void_p()
        text = (SOURCES / wanted.source).read_bytes()
        self._check(
            library.nvrtcCreateProgram(ctypes.byref(program), text, wanted.source.encode(), 0, None, None)
        )
        try:
            flags = [flag.encode() for flag in (*options, *self._includes, *self._own_cache)]
            code = library.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
            log = self._text(program, "ProgramLog")
            if code:
                errors = [line for line in log.splitlines() if "error" in line] or [f"NVRTC error {code}"]
                raise CompileError(f"kernel {wanted} does not compile: {errors[0]}", log)
            size = ctypes.c_size_t()
            self._check(library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
            cubin = ctypes.create_string_buffer(size.value)
            self._check(library.nvrtcGetCUBIN(program, cubin))
            return cubin.raw, log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.value.decode("utf-8", "replace")

    def _check(self, code: int) -> None:
        if code:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise CompileError(f"NVRTC: {self._library.nvrtcGetErrorString(code).decode()}")


_LOCK = threading.Lock()


def _compiler() -> _Compiler:
    with _LOCK:  # `cache` alone would load the library twice
        return _find_compiler()


@cache
def _find_compiler() -> _Compiler:
    roots = _roots()
    for root in roots:
        for folder in ("lib", "lib64"):
            for path in sorted((root / folder).glob("libnvrtc.so*")):
                for builtins in sorted((root / folder).glob("libnvrtc-builtins.so*")):
                    ctypes.CDLL(str(builtins))  # NVRTC looks for it by name, not beside itself
                return _Compiler(ctypes.CDLL(str(path)), _headers(roots))
    raise CompileError(
        "libnvrtc was not found: install torch with CUDA, or set CUDA_PATH to a CUDA toolkit (12 or 13)"
    )


def _headers(roots: Sequence[Path]) -> tuple[Path, ...]:
    for root in roots:
        if (root / "include" / "cuda_fp16.h").is_file():
            return (root / "include",)
    raise CompileError("cuda_fp16.h was not found: install nvidia-cuda-runtime, or set CUDA_PATH")


def _roots() -> tuple[Path, ...]:
    """Where NVRTC and headers may be: NVIDIA's wheels (CUDA 13: one folder, 12: one each), then toolkits."""
    roots = []
    spec = importlib.util.find_spec("nvidia")
    for base in spec.submodule_search_locations or () if spec else ():
        roots += [Path(base) / name for name in ("cu13", "cuda_nvrtc", "cuda_runtime")]
    roots += [Path(os.environ[name]) for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    return (*roots, Path("/usr/local/cuda"))
