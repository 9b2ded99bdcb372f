"""The folder in which a quantisation grows, and the step from there to a finished model directory.

<out>.partial/ holds `manifest.json` (what is being made, from what), and part-NNNNN.safetensors, the finished layers,
each written beside its name and renamed. So a run that was killed goes on with the first part that is missing, if it
is asked for the same thing of the same files. The finished directory is put together in <out>.partial/model and
renamed to <out>: that name never stands for anything half done. An older <out> is kept in <out>.partial/replaced
until the new one is in place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import StoredTensor, read_header
from .hfconfig import CONFIG_CAP, MIB, read_json, shown
from .types import ModelError, UsageError

FORMAT = 1
SHARD_BYTES = 5_000_000_000  # of a file of weights, as Hugging Face's tools cut them
COPY_BYTES = 16 * MIB
SIDE_FILES = (".json", ".jinja", ".model", ".tiktoken", ".txt", ".md", ".py")
SIDE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
SIDE_CAP = 256 * MIB
MANIFEST = "manifest.json"


def check_target(out: Path, source: Path, force: bool) -> None:
    """UsageError unless a model directory may be put at `out`."""
    name = shown(str(out), 200)
    place, origin = out.resolve(), source.resolve()
    if place == origin or origin.is_relative_to(place) or place.is_relative_to(origin):
        raise UsageError(f"--out {name}: lies in the model's own directory, or around it; choose another")
    if not out.parent.is_dir():
        raise UsageError(f"--out {name}: there is no folder {shown(str(out.parent), 160)}")
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"--out {name}: cannot write into {shown(str(out.parent), 160)}")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {name}: is there already, and no directory")
    if not out.exists() or not any(out.iterdir()) or _statistics_only(out):
        return
    if not force:
        raise UsageError(f"--out {name}: is there already; --force replaces it, or choose another")
    if not (out / "config.json").is_file():
        raise UsageError(f"--out {name}: is there already and holds no model: it is not replaced")


STATISTICS = "inputs_stats.safetensors"  # LMDeploy's name, with another ending: theirs is a pickle


def _statistics_only(out: Path) -> bool:
    """Whether a folder holds what `lmtop lite calibrate` left, and nothing else."""
    return {path.name for path in out.iterdir()} <= {STATISTICS}


class Work:
    """The folder of one quantisation, locked while it is open."""

    def __init__(self, out: Path, manifest: Mapping[str, Any], ending: str = ".partial") -> None:
        self.out = out
        self.folder = out.with_name(out.name + ending)
        self._manifest = {"format": FORMAT, **manifest}
        self._lock: IO[bytes] | None = None
        self.resumed = False

    def open(self) -> None:
        """Take the folder: go on with what is there, where it belongs to the same job, else start over. UsageError
        when it is not ours, or in use."""
        name = shown(str(self.folder), 200)
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise UsageError(f"{name}: is in the way; remove it")
        fresh = not self.folder.exists()
        self.folder.mkdir(exist_ok=True)
        self._lock = (self.folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise UsageError(f"{name}: another lmtop is at work in it") from None
        found = self._found()
        if found is None and not fresh and any(path.name != "lock" for path in self.folder.iterdir()):
            self.close()
            raise UsageError(f"{name}: is in the way, and not of lmtop's making; remove it")
        self.resumed = found == self._manifest
        if not self.resumed:
            for path in self.folder.glob("part-*"):
                path.unlink()
            shutil.rmtree(self.folder / "model", ignore_errors=True)
            write_whole(self.folder / MANIFEST, json.dumps(self._manifest, indent=1).encode())

    def _found(self) -> dict[str, Any] | None:
        try:
            return read_json(self.folder / MANIFEST, CONFIG_CAP)
        except ModelError:
            return None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def has(self, part: int) -> bool:
        """Whether a part is finished and whole."""
        with suppress(ModelError, OSError):
            return bool(read_header(self._part(part)))
        return False

    def save(self, part: int, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Keep a finished part; `facts` is any JSON value to be asked for later."""
        path = self._part(part)
        beside = path.with_suffix(".tmp")
        host = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with disk_errors(self.folder):
            save_file(host, beside, metadata={"format": "pt", "facts": json.dumps(facts)})
            sync(beside)
            beside.replace(path)

    def facts(self, part: int) -> Any:
        with safe_open(self._part(part), "pt") as file:
            return json.loads(file.metadata()["facts"])

    def tensors(self, parts: int) -> list[StoredTensor]:
        """Every tensor of the first `parts` parts, in order."""
        return [tensor for part in range(parts) for tensor in read_header(self._part(part))]

    def _part(self, part: int) -> Path:
        return self.folder / f"part-{part:05}.safetensors"

    def finish(
        self,
        parts: int,
        config: Mapping[str, Any],
        source: Path,
        progress: Callable[[float], None],
        extra: Sequence[Path] = (),
    ) -> Path:
        """Put the finished directory together, in the work folder still. `config` becomes its config.json; other
        small files of `source` and the files `extra` are copied."""
        model = self.folder / "model"
        shutil.rmtree(model, ignore_errors=True)
        with disk_errors(self.folder):
            model.mkdir()
            write_shards(model, self.tensors(parts), progress)
            copy_side_files(source, model)
            for path in extra:
                shutil.copyfile(path, model / path.name)
            write_whole(model / "config.json", json.dumps(config, indent=2).encode() + b"\n")
            for path in model.iterdir():
                sync(path)
        return model

    def publish(self, model: Path) -> None:
        """Give the finished directory its name, and remove everything else."""
        replaced = self.folder / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if self.out.exists():
            self.out.rename(replaced)
        model.rename(self.out)
        sync(self.out.parent)
        self.discard()


def write_shards(directory: Path, tensors: Sequence[StoredTensor], progress: Callable[[float], None]) -> None:
    """Copy stored tensors into safetensors files of at most `SHARD_BYTES`, with an index where there are several."""
    shards: list[list[StoredTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(it.nbytes for it in shards[-1]) + tensor.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    whole = sum(tensor.nbytes for tensor in tensors)
    done = 0
    index: dict[str, str] = {}
    for at, shard in enumerate(shards, 1):
        several = f"model-{at:05}-of-{len(shards):05}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else several
        with (directory / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                for count in _copy(tensor, file):
                    done += count
                    progress(done / max(1, whole))
        index |= {tensor.name: name for tensor in shard}
    if len(shards) > 1:
        document = {"metadata": {"total_size": whole}, "weight_map": index}
        write_whole(directory / "model.safetensors.index.json", json.dumps(document, indent=1).encode())


def _header(tensors: Sequence[StoredTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        span = [at, at + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": span}
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _copy(tensor: StoredTensor, target: IO[bytes]) -> Iterator[int]:
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        left = tensor.nbytes
        while left:
            data = file.read(min(left, COPY_BYTES))
            if not data:
                raise ModelError(f"{shown(tensor.path.name)}: the file became shorter while it was read")
            target.write(data)
            left -= len(data)
            yield len(data)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy tokenizer, template, licence and the like: every small file that is not weights."""
    for path in sorted(source.iterdir()):
        known = path.suffix.lower() in SIDE_FILES or path.name.upper().startswith(SIDE_NAMES)
        if not known or path.name.endswith(".index.json") or path.name == "config.json":
            continue
        if path.is_file() and path.stat().st_size <= SIDE_CAP:
            shutil.copyfile(path, target / path.name)


def require_space(folder: Path, needed: int, what: str) -> None:
    """ModelError unless `needed` bytes fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{what} needs {gib(needed)} on disk, {gib(free)} are free in {shown(str(folder), 120)}; "
            "make room, or choose another --out"
        )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk, as a ModelError that says what is kept."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and "os error 28" not in str(error).lower():  # how safetensors tells it
            raise
        for path in folder.glob("*.tmp"):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / "model", ignore_errors=True)
        raise ModelError(
            f"the disk is full; finished layers are kept in {shown(str(folder), 160)}: make room and run the same "
            "command again, or remove that folder"
        ) from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(data)
    sync(beside)
    beside.replace(path)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"
