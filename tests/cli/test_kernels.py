"""`lmtop kernels`, over a folder of sources of the test's own; the product's kernels are compiled by CI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import call_lmtop
from support.cuda_sources import SPILLING

from lmtop.engine import kernels_command
from lmtop.engine.config import DeviceInfo
from lmtop.kernels import catalog, nvrtc
from lmtop.kernels.nvrtc import unit

ADD = 'extern "C" __global__ void add(float* x) { x[threadIdx.x] += N; }\n'
ADD_UNITS = (unit("add.cu", N=1), unit("add.cu", N=2))


class Kernels:
    """`lmtop kernels` with `units` for its catalogue."""

    def __init__(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.sources = home / "sources"
        self.sources.mkdir()
        (self.sources / "add.cu").write_text(ADD)
        (self.sources / "many.cu").write_text(SPILLING)
        self.units = ADD_UNITS
        self._home, self._monkeypatch, self._capsys = home, monkeypatch, capsys
        monkeypatch.setattr(nvrtc, "SOURCES", self.sources)
        monkeypatch.setattr(catalog, "units", lambda arch: self.units)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = call_lmtop(
            self._home, self._monkeypatch, "kernels", *arguments, LMTOP_CACHE_DIR=str(self._home / "cache")
        )
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Kernels]:
    nvrtc._find_compiler.cache_clear()
    yield Kernels(tmp_path, monkeypatch, capsys)
    nvrtc._find_compiler.cache_clear()


def test_a_table_of_what_each_kernel_takes(kernels: Kernels) -> None:
    code, out, err = kernels("--arch", "80,sm_90a")
    assert (code, err) == (0, "")
    header, *rows, last = out.splitlines()
    assert header.split() == ["ARCH", "KERNEL", "REGISTERS", "SHARED", "STACK", "SPILLS", "UNIT"]
    assert [row.split()[:2] + row.split()[6:] for row in rows] == [
        [arch, "add", "add.cu", f"N={n}"] for arch in ("80", "90a") for n in (1, 2)
    ]
    assert last.startswith("4 kernels for 80, 90a: 4 units compiled, 0 found compiled, ")
    assert "0 units compiled, 4 found compiled" in kernels("--arch", "80,90a")[1]


def test_json_is_one_document(kernels: Kernels) -> None:
    code, out, _ = kernels("--arch", "90a", "--json")
    first, second = json.loads(out)
    assert code == 0
    assert (first["arch"], first["source"], first["defines"]) == ("90a", "add.cu", {"N": "1"})
    assert second["kernels"][0]["name"] == "add" and second["error"] is None


def test_a_spill_is_named_and_ends_with_1(kernels: Kernels) -> None:
    kernels.units = (*ADD_UNITS, unit("many.cu"))
    code, out, err = kernels("--arch", "90a")
    assert code == 1
    assert err.startswith("lmtop: sm_90a: kernel many of many.cu spills ") and err.count("\n") == 1
    assert any(row.split()[1] == "many" and int(row.split()[5]) > 0 for row in out.splitlines()[1:-1])


def test_a_kernel_that_does_not_compile_is_named_and_the_others_are_compiled(kernels: Kernels) -> None:
    (kernels.sources / "wrong.cu").write_text("nonsense\n")
    kernels.units = (unit("wrong.cu"), unit("wrong.cu", N=1), *ADD_UNITS)
    code, out, err = kernels("--arch", "90a")
    assert code == 1
    assert err.startswith("lmtop: sm_90a: kernel wrong.cu does not compile: wrong.cu(1): error")
    assert err.endswith(" (and 1 more like it)\n") and err.count("\n") == 1
    assert out.splitlines()[-1].startswith("2 kernels for 90a: 2 units compiled")


def test_without_a_compiler_it_says_so_once(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_roots", lambda: ())
    code, _, err = kernels("--arch", "90a")
    assert code == 1
    assert err.startswith("lmtop: libnvrtc was not found: install") and err.count("\n") == 1


def test_auto_is_the_machines_gpu_and_all_without_one(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_command, "device_info", lambda: DeviceInfo("cpu", "CPU", 1, 1))
    assert "kernels for 75, 80, 86, 89, 90a, 100, 120:" in kernels()[1]
    for capability, arch in ((90, "90a"), (89, "89")):
        here = DeviceInfo("cuda", "GPU", 1, 1, capability)
        monkeypatch.setattr(kernels_command, "device_info", lambda here=here: here)
        assert f"kernels for {arch}:" in kernels("--arch", "auto")[1]


def test_an_unknown_architecture_is_a_usage_error(kernels: Kernels) -> None:
    code, out, err = kernels("--arch", "90a,42")
    assert (code, out) == (2, "")
    assert "must be all, auto, or some of 75, 80" in err
