"""The document of /v1/monitor: there and back, and whatever else a server may send."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtop.engine.monitor import Monitor, from_json, to_json
from lmtop.engine.samples import CpuSample, GpuSample, ProcessSample, TelemetrySnapshot
from lmtop.engine.types import (
    EngineSnapshot,
    KVSnapshot,
    MemorySplit,
    ModelInfo,
    ModelState,
    QueueSnapshot,
    RemoteError,
    SlotSnapshot,
    UsageError,
)


def full(command: str = "", user: str | None = None, path: str = "") -> Monitor:
    process = ProcessSample(7, user, "C", 5, None, "python", command)
    return Monitor(
        ModelState(
            "ready",
            "demo",
            1.0,
            "",
            ModelInfo("demo", path, "llama", 10, 2, 64, "cpu", "fp32", "int8", 8, True),
        ),
        EngineSnapshot(
            time=99.5,
            status="ready",
            heartbeat=4,
            steps=3,
            memory=MemorySplit("cpu", None, 1, 2, 3, 4, None),
            kv=KVSnapshot(64, 4, 1, 1, 1, b"\0\0\1\0\2\0\0\0", b"\0\1\1\0", ("s",)),
            slots=(SlotSnapshot(0, "r", "s", "l", "decode", 3, 3, 1, 1, 2.5, None, 0.7),),
            max_batch=8,
            queue=(QueueSnapshot("r2", "s", "l", 3, 0.5, "why"),),
            decode_tps=1.0,
            prefill_tps=2.0,
            step_ms_p50=3.0,
            step_ms_p99=4.0,
        ),
        TelemetrySnapshot(
            99.0,
            (GpuSample(0, "H200", "uuid", 5.0, processes=(process,)),),
            CpuSample(1.0, 2, (1.0, 2.0, 3.0), processes=(process,)),
        ),
    )


def test_there_and_back() -> None:
    document = json.loads(json.dumps(to_json(full(), 100.0)))
    assert from_json(document, 100.0) == full()
    later = from_json(document, 500.0)  # another machine's clock
    assert (later.engine.time, later.machine.time) == (499.5, 499.0)


def test_no_secret_is_sent() -> None:
    text = json.dumps(to_json(full("prog --key=sk-1", "somebody", "/home/somebody/models/x"), 100.0))
    assert not any(word in text for word in ("sk-1", "somebody", "--key"))


def test_a_failed_state_has_no_exception_in_it() -> None:
    state = Monitor(
        ModelState("failed", "x", error=UsageError("y"), message="y"), full().engine, full().machine
    )
    assert from_json(json.loads(json.dumps(to_json(state, 0))), 0).model.message == "y"


def test_fields_of_later_versions_are_passed_over_and_text_is_made_visible() -> None:
    document = to_json(full(), 100.0)
    document["new"] = document["engine"]["new"] = [1]
    document["model"]["name"] = "\x1b[2J"
    assert from_json(document, 100.0).model.name == "\u241b[2J"


def bomb() -> str:
    return base64.b64encode(zlib.compress(bytes(64 << 20))).decode()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("object",), "list", "not a monitor"),
        (("version",), 2, "version 2"),
        (("engine",), None, "engine is missing"),
        (("engine", "age_s"), "x", "engine.age_s"),
        (("engine", "age_s"), 1e308, "engine.age_s"),
        (("engine", "status"), "fine", "engine.status"),
        (("engine", "steps"), 1.5, "engine.steps"),
        (("engine", "steps"), True, "engine.steps"),
        (("engine", "steps"), 2**70, "engine.steps"),
        (("engine", "slots"), {}, "engine.slots"),
        (("engine", "slots"), [{}] * 5000, "engine.slots"),
        (("engine", "slots"), [{"row": 1}], "is missing"),
        (("engine", "kv", "owners"), "!", "engine.kv.owners"),
        (("engine", "kv", "owners"), 5, "engine.kv.owners"),
        (("engine", "kv", "owners"), "eAE=", "cut short"),
        (("engine", "kv", "owners"), bomb(), "larger"),
        (("machine", "cpu", "load"), [1], "machine.cpu.load"),
        (("model",), [], "model"),
        (("model", "name"), "x" * 5000, "model.name"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[str, ...], value: Any, said: str) -> None:
    document = copy.deepcopy(to_json(full(), 100.0))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RemoteError, match=said) as caught:
        from_json(document, 100.0)
    assert len(str(caught.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.data())
def test_anything_else_is_a_remote_error_or_a_monitor(data: st.DataObject) -> None:
    document: Any = json.loads(json.dumps(to_json(full(), 100.0)))
    place = document
    for _ in range(data.draw(st.integers(0, 4))):
        key = data.draw(st.sampled_from(sorted(place)))
        value = place[key]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = value[0]
        if not isinstance(value, dict) or not value:
            break
        place = value
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    with contextlib.suppress(RemoteError):
        assert isinstance(from_json(document, 100.0), Monitor)
