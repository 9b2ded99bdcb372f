import json
import os
import threading
import time
from types import SimpleNamespace

import pytest
from support.machine import GIB, gpu_entry, machine_file

from lmtop.engine.nvml import Backoff, NvmlSampler
from lmtop.engine.telemetry import HISTORY, HOST, Telemetry
from lmtop.engine.types import UsageError


class NvmlError(Exception):
    def __init__(self, value):
        super().__init__(f"NVML error {value}")
        self.value = value


class FakeNvml:
    """The part of pynvml that the sampler uses, with readings that a test can make fail by name."""

    class NVMLError(NvmlError):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    class NVMLError_FunctionNotFound(NVMLError):
        pass

    class NVMLError_NotFound(NVMLError):
        pass

    class NVMLError_InvalidArgument(NVMLError):
        pass

    NVML_ERROR_NOT_FOUND = 6
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_PCIE_UTIL_TX_BYTES = 0
    NVML_PCIE_UTIL_RX_BYTES = 1
    nvmlMemory_v2 = 2

    def __init__(self, count=2, driver="580.1"):
        self.count = count
        self.driver = driver
        self.failing = set()
        self.calls = []
        self.mig = False

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append(name)
            if name in self.failing or "all" in self.failing:
                raise self.NVMLError(15)
            return self.answer(name, *args)

        return call

    def answer(self, name, *args):
        fixed = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": self.driver,
            "nvmlDeviceGetCount": self.count,
            "nvmlDeviceGetName": "NVIDIA H200\x1b[31m",
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=42, memory=7),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=10 * GIB, total=141 * GIB),
            "nvmlDeviceGetTemperature": 0,
            "nvmlDeviceGetPowerUsage": 412_300,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetFanSpeed": 30,
            "nvmlDeviceGetClockInfo": 1755,
            "nvmlDeviceGetPcieThroughput": 100,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=os.getpid(), usedGpuMemory=5)],
            "nvmlDeviceGetGraphicsRunningProcesses": [SimpleNamespace(pid=2**22 + 1, usedGpuMemory=None)],
            "nvmlDeviceGetMigMode": [int(self.mig), int(self.mig)],
            "nvmlDeviceGetMaxMigDeviceCount": 2,
        }
        if name == "nvmlDeviceGetHandleByIndex":
            return args[0]
        if name == "nvmlDeviceGetProcessUtilization":
            return [SimpleNamespace(pid=os.getpid(), smUtil=81, timeStamp=100)]
        if name == "nvmlDeviceGetMigDeviceHandleByIndex":
            if args[1]:
                raise self.NVMLError_NotFound(6)
            return "mig"
        return fixed[name]


def test_a_healthy_gpu_is_read_whole_and_its_texts_are_harmless():
    gpu = NvmlSampler(FakeNvml(count=1)).sample()[0]
    assert gpu.name == "NVIDIA H200\u241b[31m"
    assert (gpu.util, gpu.mem_used, gpu.mem_total) == (42.0, 10 * GIB, 141 * GIB)
    assert gpu.temperature == 0.0  # a real zero stays a zero
    assert (gpu.power, gpu.power_limit, gpu.pcie_rx) == (412.3, 700.0, 102_400)
    own, foreign = gpu.processes
    assert (own.pid, own.kind, own.memory, own.util) == (os.getpid(), "C", 5, 81.0)
    assert (foreign.kind, foreign.memory, foreign.util, foreign.name) == ("G", None, None, "n/a")


FIELDS = {
    "nvmlDeviceGetUtilizationRates": "util",
    "nvmlDeviceGetMemoryInfo": "mem_used",
    "nvmlDeviceGetTemperature": "temperature",
    "nvmlDeviceGetPowerUsage": "power",
    "nvmlDeviceGetEnforcedPowerLimit": "power_limit",
    "nvmlDeviceGetFanSpeed": "fan",
    "nvmlDeviceGetClockInfo": "sm_clock",
    "nvmlDeviceGetPcieThroughput": "pcie_tx",
    "nvmlDeviceGetComputeRunningProcesses": "processes",
}


@pytest.mark.parametrize(("call", "field"), FIELDS.items())
def test_a_failing_field_is_none_and_the_others_stay(call, field):
    nvml = FakeNvml(count=1)
    nvml.failing = {call}
    gpu = NvmlSampler(nvml).sample()[0]
    assert getattr(gpu, field) is None
    healthy = set(FIELDS.values()) - {field}
    assert all(getattr(gpu, name) is not None for name in healthy)


def test_a_failing_field_is_asked_less_and_less_often_and_comes_back():
    nvml = FakeNvml(count=1)
    nvml.failing = {"nvmlDeviceGetFanSpeed"}
    sampler = NvmlSampler(nvml)
    for _ in range(40):
        sampler.sample()
    assert nvml.calls.count("nvmlDeviceGetFanSpeed") == 6  # after 0, 1, 2, 4, 8, 16 samples of rest
    assert nvml.calls.count("nvmlDeviceGetUtilizationRates") == 40
    nvml.failing = set()
    assert any(sampler.sample()[0].fan == 30.0 for _ in range(40))


def test_backoff_rests_at_most_a_minute_of_samples():
    backoff, asked = Backoff(), []

    def fail():
        asked.append(1)
        raise OSError

    for _ in range(1000):
        assert backoff.read("x", fail) is None
    assert len(asked) == 7 + (1000 - 1 - 1 - 2 - 4 - 8 - 16 - 32 - 6) // 65


def test_a_lost_gpu_keeps_its_row_and_the_process_alive_then_returns():
    nvml = FakeNvml(count=2)
    sampler = NvmlSampler(nvml)
    assert sampler.sample()[1].util == 42
    nvml.failing = {"all"}
    for _ in range(5):
        lost = sampler.sample()
        assert [gpu.name for gpu in lost] == ["NVIDIA H200\u241b[31m"] * 2
        assert lost[1].util is None and lost[1].mem_used is None and lost[1].processes is None
    nvml.failing = set()
    assert any(sampler.sample()[1].util == 42 for _ in range(80))


def test_quiet_processes_have_no_use_reading_and_no_backoff():
    nvml = FakeNvml(count=1)
    sampler = NvmlSampler(nvml)
    assert sampler.sample()[0].processes[0].util == 81.0
    assert sampler.sample()[0].processes[0].util is None  # the same stale sample again


def test_mig_instances_have_memory_and_no_utilisation():
    nvml = FakeNvml(count=1)
    nvml.mig = True
    (instance,) = NvmlSampler(nvml).sample()[0].mig
    assert (instance.index, instance.mem_used, instance.mem_total) == (0, 10 * GIB, 141 * GIB)
    assert not hasattr(instance, "util")


def test_no_driver_is_one_notice_and_the_host_is_still_read():
    nvml = FakeNvml()
    nvml.failing = {"nvmlInit"}
    telemetry = Telemetry(nvml=nvml)
    snapshot = telemetry.sample()
    assert snapshot.notice == "no NVIDIA GPU: NVML error 15"
    assert snapshot.gpus == () and snapshot.cpu.ram_total > 0 and snapshot.cpu.rss > 0
    nvml.failing = set()  # the driver is loaded later
    assert any(telemetry.sample().gpus for _ in range(40))
    assert telemetry.snapshot().notice == ""


def test_a_machine_without_nvml_says_why(monkeypatch):
    monkeypatch.delenv("LMTOP_FAKE_GPU", raising=False)
    snapshot = Telemetry().sample()
    assert snapshot.gpus or snapshot.notice.startswith("no NVIDIA GPU: ")


def test_all_gpus_silent_is_said_and_the_driver_is_opened_again():
    nvml = FakeNvml(count=1)
    telemetry = Telemetry(nvml=nvml)
    telemetry.sample()
    nvml.failing = {"all"}
    for _ in range(31):
        snapshot = telemetry.sample()
    assert snapshot.notice.startswith("no NVIDIA GPU: ")  # nvmlInit was tried again
    nvml.failing = set()
    assert any(telemetry.sample().gpus for _ in range(40))


def test_the_thread_samples_and_stops_and_history_has_a_fixed_length():
    before = threading.active_count()
    telemetry = Telemetry(interval=0.001, nvml=FakeNvml(count=1))
    telemetry.start()
    deadline = time.monotonic() + 20
    while len(telemetry.histories().get(0, SimpleNamespace(util=())).util) < HISTORY:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first = telemetry.snapshot()
    while telemetry.snapshot() is first:
        assert time.monotonic() < deadline
    telemetry.stop()
    assert threading.active_count() == before
    history = telemetry.histories()[0]
    assert len(history.util) == len(history.power) == len(history.memory) == HISTORY
    assert len(telemetry.histories()[HOST].memory) == HISTORY


def test_the_fake_machine_is_refused_outside_tests(tmp_path, monkeypatch):
    monkeypatch.setenv("LMTOP_FAKE_GPU", str(machine_file(tmp_path / "m.json", [gpu_entry(0)])))
    monkeypatch.delenv("LMTOP_TEST", raising=False)
    with pytest.raises(UsageError, match="LMTOP_TEST=1"):
        Telemetry()


def test_the_fake_machine_is_read_again_and_survives_a_torn_file(tmp_path, monkeypatch):
    path = machine_file(tmp_path / "m.json", [gpu_entry(0, util=10.0)])
    monkeypatch.setenv("LMTOP_TEST", "1")
    monkeypatch.setenv("LMTOP_FAKE_GPU", str(path))
    telemetry = Telemetry()
    assert telemetry.sample().gpus[0].util == 10.0
    assert len(telemetry.histories()[0].util) == HISTORY
    machine_file(path, [gpu_entry(0, util=None)])
    assert telemetry.sample().gpus[0].util is None
    path.write_text("{")
    assert telemetry.sample().gpus[0].util is None


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"gpus": [{"index": 0, "colour": 1}]})])
def test_an_unusable_fake_machine_is_one_clear_error(tmp_path, monkeypatch, content):
    path = tmp_path / "m.json"
    path.write_text(content)
    monkeypatch.setenv("LMTOP_TEST", "1")
    monkeypatch.setenv("LMTOP_FAKE_GPU", str(path))
    with pytest.raises(UsageError, match=r"LMTOP_FAKE_GPU=.*m\.json"):
        Telemetry()


def test_host_processes_are_ranked_by_memory_and_a_first_use_reading_is_unknown():
    nvml = FakeNvml()
    nvml.failing = {"nvmlInit"}
    telemetry = Telemetry(processes=True, nvml=nvml)
    processes = telemetry.sample().cpu.processes
    sizes = [it.memory for it in processes]
    assert sizes == sorted(sizes, reverse=True) and any(it.pid == os.getpid() for it in processes)
    assert all(it.util is None for it in processes)
    assert any(it.util is not None for it in telemetry.sample().cpu.processes)
