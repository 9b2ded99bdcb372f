"""Which device the engine runs on, and what is said where a GPU is there in vain (reliability E4, E5)."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command import call_lmtop
from support.engines import Client
from support.gpus import GIB, FakeNvml, Gpu, NvmlError, usable
from support.llama import write_llama

from lmtop.engine import devices, loader
from lmtop.engine.config import DeviceInfo, EngineConfig
from lmtop.engine.devices import device_info, torch_cuda
from lmtop.engine.faults import Faults
from lmtop.engine.hardware import kernel_errors
from lmtop.engine.local import LocalBackend
from lmtop.engine.types import GREEDY, DeviceError, Finished, Notice, Request
from lmtop.kernels.launch import LaunchError
from lmtop.kernels.nvrtc import CompileError

A, B = Gpu(), Gpu("NVIDIA A100", "GPU-bbbb-2", (8, 0), 80 * GIB, 10 * GIB)
H200 = DeviceInfo("cuda", "NVIDIA H200", 141 * GIB, 140 * GIB, 90)
MISMATCH = NvmlError(18, "Driver/library version mismatch")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama") / "good")


# --- what there is ---------------------------------------------------------------------------------------------


def test_the_first_gpu_is_taken_with_its_memory_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, A, B)
    assert device_info() == device_info("cuda") == H200
    assert device_info("cuda", reclaim=500 * GIB).free == 141 * GIB
    assert device_info("cpu").kind == "cpu"


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        ("1", "NVIDIA A100"),
        ("1,0", "NVIDIA A100"),
        (" 0 ", "NVIDIA H200"),
        ("GPU-bbbb-2", "NVIDIA A100"),
        ("GPU-bbb", "NVIDIA A100"),
        ("GPU-bbbb-2,GPU-aaaa-1", "NVIDIA A100"),
    ],
)
def test_cuda_visible_devices_chooses_by_index_and_by_uuid(
    monkeypatch: pytest.MonkeyPatch, visible: str, name: str
) -> None:
    usable(monkeypatch, A, B)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_info("cuda").name == name


def test_a_mig_instance_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, A, Gpu("NVIDIA H200 MIG 1g.18gb", "MIG-cc", total=18 * GIB))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-cc")
    assert device_info("cuda").total == 18 * GIB


@pytest.mark.parametrize("visible", ["", "-1", "7", "GPU-cccc", "none"])
def test_hidden_gpus_are_not_there(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    usable(monkeypatch, A, B)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = device_info()
    assert (found.kind, found.notice) == ("cpu", "")  # hidden on purpose
    with pytest.raises(DeviceError, match=f"no NVIDIA GPU is visible: CUDA_VISIBLE_DEVICES = '{visible}'"):
        device_info("cuda")


def test_gpus_are_numbered_as_nvml_does(monkeypatch: pytest.MonkeyPatch) -> None:
    usable(monkeypatch, A)
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    device_info()
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


# --- what cannot be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "machine", "reason"),
    [
        ((Gpu("Tesla P100", capability=(6, 0)),), {}, "it is older than compute capability 7.5"),
        ((A,), {"cuda": ""}, "this torch was built without CUDA; install torch with CUDA"),
        ((A,), {"cupy": False}, "CuPy is missing; install lmtop[cuda13]"),
        ((A,), {"cupy": False, "cuda": "12.8"}, "CuPy is missing; install lmtop[cuda12]"),
        ((Gpu(lost=True),), {}, "it does not answer (GPU is lost)"),
        ((A,), {"fails": MISMATCH}, "its driver does not answer (Driver/library version mismatch)"),
    ],
)
def test_a_gpu_in_vain_is_told_once_and_refused_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], machine: dict[str, object], reason: str
) -> None:
    usable(monkeypatch, *gpus, **machine)
    found = device_info()
    assert found.kind == "cpu"
    assert found.notice.startswith("running on the CPU, not on ") and found.notice.endswith(reason)
    with pytest.raises(DeviceError) as refused:
        device_info("cuda")
    assert str(refused.value) == f"device = 'cuda': {reason}; device = cpu runs without"
    assert refused.value.exit_code == 6
    assert device_info("cpu").notice == ""


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (FakeNvml(fails=NvmlError(12, "NVML Shared Library Not Found")), "no NVIDIA driver was found"),
        (FakeNvml(fails=NvmlError(9, "Driver Not Loaded")), "no NVIDIA driver was found"),
        (FakeNvml(fails=ModuleNotFoundError("pynvml")), "no NVIDIA driver was found"),
        (FakeNvml(), "no NVIDIA GPU is visible"),
    ],
)
def test_a_machine_without_a_gpu_is_no_news(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml, reason: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert device_info(nvml=nvml).notice == ""
    with pytest.raises(DeviceError, match=f"^device = 'cuda': {reason}; device = cpu"):
        device_info("cuda", nvml=nvml)


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("cuda: Optional[str] = '13.0'\ngit_version = 'x'\n", "13.0"),
        ('cuda = "12.8"\n', "12.8"),
        ("cuda: Optional[str] = None\nhip = '6.3'\n", ""),
    ],
)
def test_torchs_cuda_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cuda: str
) -> None:
    (tmp_path / "version.py").write_text(text)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: spec)
    assert torch_cuda() == cuda


def test_the_installed_torch_is_understood() -> None:
    import torch

    assert torch_cuda() == (torch.version.cuda or "")
    assert importlib.util.find_spec("torch") is not None and "torch" in sys.modules


def test_the_notice_reaches_who_chats_and_who_generates(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usable(monkeypatch, A, cupy=False)
    backend = LocalBackend()
    client = Client(backend)
    assert client.load(EngineConfig(str(model))).status == "ready"
    said = [event.text for event in client.events if isinstance(event, Notice)]
    backend.close()
    words = "running on the CPU, not on NVIDIA H200: CuPy is missing; install lmtop[cuda13]"
    assert said.count(words) == 1
    assert call_lmtop(tmp_path, monkeypatch, "generate", str(model), "hi", "--max-new-tokens", "2") == 0
    assert capsys.readouterr().err.count(words) == 1
    code = call_lmtop(tmp_path, monkeypatch, "generate", str(model), "hi", "--device", "cuda")
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (6, 1)
    assert "CuPy is missing; install lmtop[cuda13]; device = cpu runs without" in err


def test_e1_a_gpu_that_is_too_small_is_refused_with_numbers_and_a_way_out(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usable(
        monkeypatch,
        Gpu("NVIDIA GeForce GTX 1650", capability=(7, 5), total=4 * GIB, used=4 * GIB - (600 << 20)),
    )
    code = call_lmtop(tmp_path, monkeypatch, "generate", str(model), "hi")
    err = capsys.readouterr().err
    assert code == 6 and err.count("\n") == 1
    assert "not enough memory on NVIDIA GeForce GTX 1650: needs 8" in err
    assert "more than the 600.0 MiB free; choose a smaller model" in err


# --- kernels that do not compile -------------------------------------------------------------------------------


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The loader sees a GPU; the file in which the compiler's words must end."""
    monkeypatch.setattr(loader, "device_info", lambda wanted, reclaim=0: H200)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "lmtop" / "log" / "kernels.log"


def test_e4_kernels_that_do_not_compile_leave_the_model_on_the_cpu(model: Path, h200: Path) -> None:
    backend = LocalBackend(faults=Faults("kernels@1:fail"))
    client = Client(backend)
    state = client.load(EngineConfig(str(model), session_len=128))
    assert state.status == "ready", state.message
    assert state.info is not None
    assert (state.info.device, state.info.weights) == ("CPU", "fp32")  # planned anew: a GPU has no fp32
    said = [event.text for event in client.events if isinstance(event, Notice)]
    assert len([text for text in said if "running on the CPU, not on NVIDIA H200: kernel" in text]) == 1
    assert any(str(h200) in text for text in said)
    assert h200.read_text() == "the compiler's own words"
    client.submit(Request("a", prompt_ids=(9, 8, 7), sampling=GREEDY))
    client.wait(["a"])
    assert isinstance(client.last("a"), Finished)
    backend.close()


def test_e4_a_gpu_that_was_asked_for_is_not_left_in_silence(model: Path, h200: Path) -> None:
    backend = LocalBackend(faults=Faults("kernels@1:fail"))
    state = Client(backend).load(EngineConfig(str(model), device="cuda"))
    assert state.status == "failed"
    assert state.error is not None and state.error.exit_code == 6
    assert state.message.endswith("; device = cpu runs without") and "does not compile" in state.message
    assert backend.snapshot().memory is None
    backend.close()


def test_e4_no_room_on_the_cpu_either_names_both(
    model: Path, h200: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = DeviceInfo("cpu", "CPU", GIB, 1 << 20)
    monkeypatch.setattr(loader, "cpu_info", lambda notice: small)
    backend = LocalBackend(faults=Faults("kernels@1:fail"))
    state = Client(backend).load(EngineConfig(str(model)))
    assert state.status == "failed"
    assert "does not compile" in state.message and "and not enough memory on CPU: needs" in state.message
    backend.close()


def cupy_error(text: str) -> Exception:
    return type("CUDADriverError", (RuntimeError,), {"__module__": "cupy_backends.cuda.api.driver"})(text)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (CompileError("kernel gemv.cu does not compile: gemv.cu(3): error: no"), "gemv.cu(3): error: no"),
        (LaunchError("kernel gemv was refused\n(CUDA error 209)"), "kernel gemv was refused"),
        (cupy_error("CUDA_ERROR_INVALID_IMAGE: bad"), "CuPy: CUDADriverError: CUDA_ERROR_INVALID_IMAGE: bad"),
    ],
)
def test_whatever_a_kernel_raises_is_one_line(raised: Exception, words: str) -> None:
    with pytest.raises(DeviceError) as caught, kernel_errors():
        raise raised
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ZeroDivisionError), kernel_errors():
        raise ZeroDivisionError
