import json
from pathlib import Path

import pytest
from support.command import call_lmtop, run_lmtop
from support.machine import GIB, gpu_entry, machine_file

from lmtop.engine import models
from lmtop.engine.config import DeviceInfo
from lmtop.kernels import bench, nvrtc
from lmtop.tui import doctor_gpu


def test_it_tells_what_there_is_and_lets_the_engine_answer(tmp_path: Path) -> None:
    done = run_lmtop(tmp_path, "doctor", CUDA_VISIBLE_DEVICES="")
    topics = [line[3:].split()[0] for line in done.stdout.splitlines()[:-1]]
    expected = ["lmtop", "packages", "machine", "gpu", "terminal", "config", "history", "models", "engine"]
    assert list(dict.fromkeys(topics)) == expected
    assert not list(tmp_path.rglob("history.db"))  # it only looks
    gpu = next(line for line in done.stdout.splitlines() if line[3:].startswith("gpu"))
    assert gpu.endswith("; the engine runs on the CPU, on the reference kernels in torch")
    engine = done.stdout.splitlines()[-2]
    if models.demo_path().exists():
        assert done.returncode == 0, done.stdout
        assert engine.startswith("ok engine") and "tok/s" in engine


def test_without_the_built_in_model_it_still_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "demo_path", lambda: tmp_path / "gone")
    assert call_lmtop(tmp_path, monkeypatch, "doctor", "--json") == 1
    findings = {finding["topic"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["engine"]["state"] == "bad"
    assert "install lmtop again" in findings["engine"]["text"]


def test_it_names_what_will_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "demo_path", lambda: tmp_path / "gone")
    broken = tmp_path / "models" / "\x1b[31mred"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    (tmp_path / "data").write_text("")  # where the history's folder would be
    folders = ("--folders", str(tmp_path / "models"), "--folders", "/nowhere")
    assert call_lmtop(tmp_path, monkeypatch, "doctor", *folders) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert any(line.startswith("!! history") and "will not be saved" in line for line in lines)
    assert any(line.startswith("-- models") and "\u241b[31mred cannot be loaded" in line for line in lines)
    assert "!! models     /nowhere: no such directory (models.folders)" in lines
    assert lines[-1] == "3 of these will not work"
    assert out.replace("\n", "").isprintable()


def with_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    info: DeviceInfo,
) -> list[tuple[str, str, str]]:
    """(topic, state, text) of what `doctor` says of a machine with one GPU, of which the engine knows `info`."""
    monkeypatch.setattr(models, "demo_path", lambda: tmp_path / "gone")
    monkeypatch.setattr(doctor_gpu, "device_info", lambda: info)
    path = machine_file(tmp_path / "machine.json", gpus=[gpu_entry(0)])
    call_lmtop(tmp_path, monkeypatch, "doctor", "--json", LMTOP_FAKE_GPU=str(path), LMTOP_TEST="1")
    findings = json.loads(capsys.readouterr().out)
    return [(f["topic"], f["state"], f["text"]) for f in findings if f["topic"] in ("gpu", "cuda", "kernels")]


HOPPER = DeviceInfo("cuda", "NVIDIA H200", 141 * GIB, 140 * GIB, 90)


def test_a_gpu_is_shown_with_its_kernels_and_how_near_their_limit_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = bench.Reading(4650.0, "28672 x 4096 fp16", 53.5, 0.944)
    monkeypatch.setattr(bench, "quick_reading", lambda: reading)
    gpu, cuda, kernels = with_gpu(tmp_path, monkeypatch, capsys, HOPPER)
    assert gpu[:2] == ("gpu", "ok") and gpu[2].startswith("0 NVIDIA H200, 141 GiB, driver ")
    assert cuda[:2] == ("cuda", "ok")
    assert cuda[2].startswith("compute capability 9.0, kernels for sm_90a (wgmma, bulk copies, early launch)")
    assert "NVRTC " in cuda[2]
    assert kernels == (
        "kernels",
        "ok",
        "memory reads at 4,650 GB/s; a 28672 x 4096 fp16 product for one token takes 53.5 us, 94% of that",
    )


def test_kernels_that_do_not_run_and_a_missing_compiler_are_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvrtc, "_roots", lambda: ())
    nvrtc._find_compiler.cache_clear()
    try:
        _, cuda, kernels = with_gpu(tmp_path, monkeypatch, capsys, HOPPER)
    finally:
        nvrtc._find_compiler.cache_clear()
    assert cuda[1] == "bad" and "libnvrtc was not found: install" in cuda[2]
    assert kernels[1] == "bad" and kernels[2].startswith("do not run: ")


def test_a_gpu_that_cannot_be_used_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "running on the CPU, not on NVIDIA H200: CuPy is missing; install lmtop[cuda13]"
    told = with_gpu(tmp_path, monkeypatch, capsys, DeviceInfo("cpu", "CPU", GIB, GIB, notice=why))
    assert [(topic, state) for topic, state, _ in told] == [("gpu", "ok"), ("gpu", "note")]
    assert told[1][2] == why
