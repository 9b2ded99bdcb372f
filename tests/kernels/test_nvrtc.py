"""The compiler and its cache, with sources of its own: no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cuda_sources import SPILLING

from lmtop.kernels import nvrtc
from lmtop.kernels.nvrtc import CompileError, Unit, compile_all, compile_unit, unit

KERNEL = """#include "shared.cuh"
extern "C" __global__ void scale(float* x) { x[threadIdx.x] *= FACTOR * TIMES; }
"""


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sources and an empty cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "shared.cuh").write_text("#define FACTOR 2.0f\n")
    (folder / "scale.cu").write_text(KERNEL)
    (folder / "many.cu").write_text(SPILLING)
    monkeypatch.setattr(nvrtc, "SOURCES", folder)
    monkeypatch.setenv("LMTOP_CACHE_DIR", str(tmp_path / "cache"))
    nvrtc._find_compiler.cache_clear()  # it knows the folder of the includes
    yield folder
    nvrtc._find_compiler.cache_clear()


SCALE = unit("scale.cu", TIMES=3)


def test_it_compiles_once_and_finds_it_again() -> None:
    first = compile_unit(SCALE)
    again = compile_unit(SCALE)
    assert (first.fresh, again.fresh) == (True, False)
    assert (first.path, first.entries) == (again.path, again.entries)
    assert [entry.name for entry in first.entries] == ["scale"]
    assert 0 < first.entries[0].registers < 64
    assert first.path.read_bytes()[:4] == b"\x7fELF"


def test_a_macro_an_architecture_and_an_included_file_each_make_another_cubin(sources: Path) -> None:
    first = compile_unit(SCALE)
    paths = {
        first.path,
        compile_unit(unit("scale.cu", TIMES=4)).path,
        compile_unit(SCALE, "80").path,
    }
    (sources / "shared.cuh").write_text("#define FACTOR 5.0f\n")
    changed = compile_unit(SCALE)
    assert changed.fresh
    assert len(paths | {changed.path}) == 4
    (sources / "shared.cuh").write_text("#define FACTOR 2.0f\n")
    assert not compile_unit(SCALE).fresh


def test_a_file_that_an_included_file_includes_counts_too(sources: Path) -> None:
    (sources / "shared.cuh").write_text('#include "deep.cuh"\n')
    (sources / "deep.cuh").write_text("#define FACTOR 2.0f\n")
    assert compile_unit(SCALE).fresh
    (sources / "deep.cuh").write_text("#define FACTOR 3.0f\n")
    assert compile_unit(SCALE).fresh


def test_a_broken_source_is_one_line_with_the_place_and_the_compilers_words(sources: Path) -> None:
    (sources / "broken.cu").write_text('extern "C" __global__ void f() {\n  int x = nothing;\n}\n')
    with pytest.raises(CompileError) as caught:
        compile_unit(unit("broken.cu", BF16=True))
    message = str(caught.value)
    assert message.startswith("kernel broken.cu BF16=1 does not compile: broken.cu(2): error")
    assert "nothing" in message and "\n" not in message
    assert "nothing" in caught.value.log


def test_a_missing_source_or_include_is_named(sources: Path) -> None:
    with pytest.raises(CompileError, match=r"kernel source gone\.cu: No such file"):
        compile_unit(unit("gone.cu"))
    (sources / "shared.cuh").unlink()
    with pytest.raises(CompileError, match=r"kernel source shared\.cuh"):
        compile_unit(SCALE)


def test_spills_are_counted() -> None:
    entry = compile_unit(unit("many.cu")).entries[0]
    assert entry.registers == 32
    assert entry.spill_stores > 0 and entry.spill_loads > 0 and entry.stack > 0


@pytest.mark.parametrize(
    "spoilt", ["facts", "facts' fields", "no kernels", "no cubin", "empty cubin", "cut cubin"]
)
def test_a_spoilt_cache_entry_is_compiled_again(spoilt: str) -> None:
    first = compile_unit(SCALE)
    content = first.path.read_bytes()
    facts = first.path.with_suffix(".json")
    match spoilt:
        case "facts":
            facts.write_text("[{")
        case "facts' fields":
            known = json.loads(facts.read_text())
            facts.write_text(json.dumps({**known, "entries": [{"name": "scale"}]}))
        case "no kernels":
            known = json.loads(facts.read_text())
            facts.write_text(json.dumps({**known, "entries": []}))
        case "no cubin":
            first.path.unlink()
        case "empty cubin":
            first.path.write_bytes(b"")
        case "cut cubin":
            first.path.write_bytes(content[: len(content) // 2])
    again = compile_unit(SCALE)
    assert again.fresh
    assert again.entries == first.entries
    assert again.path.read_bytes() == content
    assert not compile_unit(SCALE).fresh


def test_two_processes_compile_the_same_at_once(sources: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lmtop.kernels import nvrtc\n"
        f"nvrtc.SOURCES = Path({str(sources)!r})\n"
        "for times in range(20): print(nvrtc.compile_unit(nvrtc.unit('scale.cu', TIMES=times)).path)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(set(outputs[0][0].split())) == 20
    kept = {path.suffix for path in (tmp_path / "cache" / "kernels").iterdir()}
    assert kept == {".cubin", ".json"}
    assert not compile_unit(unit("scale.cu", TIMES=7)).fresh


def test_many_are_compiled_at_once_with_progress() -> None:
    told: list[tuple[int, int]] = []
    wanted = [unit("scale.cu", TIMES=times) for times in range(4)]
    done = compile_all([*wanted, wanted[0]], "80", lambda done, total, unit: told.append((done, total)))
    assert set(done) == set(wanted)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_it_stops_between_units_when_cancelled() -> None:
    wanted = [unit("scale.cu", TIMES=times) for times in range(8)]
    done = compile_all(wanted, cancelled=lambda: True)
    assert 1 <= len(done) < 8


def test_a_unit_names_its_source_and_macros() -> None:
    assert str(unit("gemv.cu", ROWS=16, BF16=False)) == "gemv.cu BF16=0 ROWS=16"
    assert unit("a.cu", X=1, Y=2) == unit("a.cu", Y=2, X=1) == Unit("a.cu", (("X", "1"), ("Y", "2")))
