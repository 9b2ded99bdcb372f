"""Converted models: the logits of the original to the last bit, whole directories or none, damage refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import llama, llama_dir, quantised
from support.llama_dir import refused
from support.quantised import KINDS
from support.tiny import WAVE1, checkpoint
from torch import Tensor

from lmtop.engine.checkpoint import read_header
from lmtop.engine.config import DeviceInfo, EngineConfig, resolve
from lmtop.engine.convert import Job, convert_model
from lmtop.engine.converted import check_contents
from lmtop.engine.hardware import Hardware
from lmtop.engine.loader import sizes_of
from lmtop.engine.model import Decoder
from lmtop.engine.spec import read_spec
from lmtop.engine.types import ModelError, UsageError
from lmtop.engine.weights import Weights, load_weights
from lmtop.kernels import reference
from lmtop.kernels.ops import Int4
from lmtop.quant.formats_dense import dequantise

CPU = torch.device("cpu")
ROOM = DeviceInfo("cpu", "a CPU", 64 << 30, 48 << 30)
IDS = torch.randint(0, 60, (30,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def convert(source: Path, out: Path, **choices: Any) -> Path:
    job = Job(source, out, source.name, "1.0", **choices)
    with torch.inference_mode():
        convert_model(job, lambda stage, done, total: None)
    return out


def load(directory: Path, weights: str, dtype: str) -> tuple[Decoder, Weights]:
    """As a load on the CPU does it."""
    files, config = read_spec(directory), EngineConfig(str(directory), weights=weights, dtype=dtype)
    hardware = Hardware(CPU, reference, resolve(config, sizes_of(files), ROOM), config)
    loaded = load_weights(
        files, getattr(torch, dtype), CPU, lambda share, text: None, lambda: False, hardware.layer
    )
    return Decoder(files.spec, loaded, reference), loaded


def logits(directory: Path, weights: str, dtype: str) -> Tensor:
    decoder, _ = load(directory, weights, dtype)
    return decoder.logits(decoder.prefill(IDS, 0, torch.arange(1, 8), decoder.new_cache(8, 16)))


def assert_alike(source: Path, made: Path, weights: str, dtype: str) -> None:
    want = logits(source, weights, dtype)
    assert torch.isfinite(want).all() and torch.equal(logits(made, weights, dtype), want)


def plain_llama(directory: Path, stored: torch.dtype = torch.float32, **sizes: int) -> Path:
    of = llama.config(context=128, **sizes)
    tensors = {name: tensor.to(stored) for name, tensor in llama.tensors(of, 1).items()}
    return llama.write(directory, of, tensors)


# --- the same numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["16", "int4"])
@pytest.mark.parametrize("name", WAVE1)
def test_every_family(tmp_path: Path, name: str, weights: str) -> None:
    made = convert(checkpoint(name), tmp_path / "made", weights=weights)
    assert read_spec(made).spec == read_spec(checkpoint(name)).spec
    assert_alike(checkpoint(name), made, weights, "float32")


@pytest.mark.parametrize("weights", ["16", "int4"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_stored_types_stay_so_and_load_in_any(tmp_path: Path, stored: torch.dtype, weights: str) -> None:
    source = plain_llama(tmp_path / "source", stored)
    made = convert(source, tmp_path / "made", weights=weights)
    with safe_open(made / "lmtop-00001.safetensors", "pt") as file:
        assert file.get_tensor("embed.weight").dtype == stored
    for dtype in ("float32", "bfloat16") if weights == "16" else ("float32",):
        assert_alike(source, made, weights, dtype)


def test_matrices_of_several_types_lose_nothing(tmp_path: Path) -> None:
    of = llama.config(context=128)
    tensors = {name: tensor.bfloat16() for name, tensor in llama.tensors(of, 1).items()}
    for name in (
        "lm_head.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ):
        tensors[name] = llama.tensors(of, 2)[name].half() if "up" in name else llama.tensors(of, 2)[name]
    source = llama.write(tmp_path / "source", of, tensors)
    made = convert(source, tmp_path / "made")
    with safe_open(made / "lmtop-00001.safetensors", "pt") as file:
        assert file.get_tensor("layers.0.qkv.weight").dtype == torch.float32
        assert file.get_tensor("layers.1.qkv.weight").dtype == torch.bfloat16
    assert_alike(source, made, "16", "float32")


@pytest.mark.parametrize("weights", ["16", "int4"])
def test_another_type_of_the_users_choice(tmp_path: Path, weights: str) -> None:
    source = plain_llama(tmp_path / "source")
    made = convert(source, tmp_path / "made", weights=weights, dtype="bfloat16")
    assert read_spec(made).dtype == "bfloat16"
    assert_alike(source, made, weights, "bfloat16")


@pytest.mark.parametrize("weights", ["auto", "16", "int4"])
@pytest.mark.parametrize("name", KINDS)
def test_every_quantised_format(tmp_path: Path, name: str, weights: str) -> None:
    source = quantised.write(plain_llama(tmp_path / "plain", inner=160), tmp_path / "q", KINDS[name])
    made = convert(source, tmp_path / "made", weights=weights)
    own = bool(read_spec(source).int4)
    choice = ("int4" if own else "16") if weights == "auto" else weights
    codes = bool(read_spec(made).quantised)
    # scales that float16 cannot hold, in a model that is float32 otherwise: its codes become plain, as at a load
    assert codes is (choice == "int4" and name != "ct_fp32_scales")
    for dtype in ("float32", "bfloat16") if KINDS[name].kept and codes else ("float32",):
        assert torch.equal(logits(made, choice if codes else "16", dtype), logits(source, choice, dtype))


@pytest.mark.parametrize("family", ["internlm2", "chatglm2", "baichuan2_7b", "qwen_v1", "phi3", "qwen3"])
@pytest.mark.parametrize("name", ["awq", "gptq_act", "fp8_block"])
def test_quantised_fused_and_interleaved_layouts(tmp_path: Path, family: str, name: str) -> None:
    source = quantised.write(checkpoint(family), tmp_path / "q", KINDS[name])
    made = convert(source, tmp_path / "made")
    assert_alike(source, made, "int4" if KINDS[name].kept else "16", "float32")


@pytest.mark.parametrize("hidden,inner", [(72, 52), (104, 205), (264, 136)])
@pytest.mark.parametrize("weights", ["16", "int4"])
def test_odd_sizes(tmp_path: Path, hidden: int, inner: int, weights: str) -> None:
    source = plain_llama(tmp_path / "source", hidden=hidden, inner=inner)
    assert_alike(source, convert(source, tmp_path / "made", weights=weights), weights, "float32")


@pytest.mark.parametrize("weights", ["16", "int4"])
def test_a_head_with_codes_and_biases(tmp_path: Path, weights: str) -> None:
    of = llama.config(vocab=264, context=128)
    tensors = llama.tensors(of)
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors[name.removesuffix("weight") + "bias"] = torch.randn(tensors[name].shape[0])
    kind = replace(KINDS["gptq_act"], fits=lambda rows, columns: True)
    source = quantised.write(
        llama.write(tmp_path / "plain", of, tensors), tmp_path / "q", kind, lambda name: "v_proj" in name, head=True
    )  # fmt: skip
    made = convert(source, tmp_path / "made", weights=weights)
    assert ((-1, "lm_head") in read_spec(made).int4) is (weights == "int4")
    assert_alike(source, made, weights, "float32")


def test_codes_come_back_as_they_were(tmp_path: Path) -> None:
    source = quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", KINDS["gptq_act"])
    _, before = load(source, "int4", "float16")
    _, after = load(convert(source, tmp_path / "made"), "int4", "float16")
    for old, new in zip(before.layers, after.layers, strict=True):
        for role in ("qkv", "o", "gate_up", "down"):
            one, other = getattr(old, role), getattr(new, role)
            assert isinstance(one, Int4) and isinstance(other, Int4) and one.group == other.group
            for part in ("codes", "scales", "zeros", "order"):
                assert torch.equal(getattr(one, part), getattr(other, part)), (role, part)


def test_stored_codes_stand_for_the_same_weights_wherever_they_lie(tmp_path: Path) -> None:
    """As plain weights too, which a matrix becomes that no kernel takes codes of."""
    made = convert(
        quantised.write(plain_llama(tmp_path / "plain"), tmp_path / "q", KINDS["gptq_act"]), tmp_path / "made"
    )
    place = next(place for place in read_spec(made).placed if place.role == "down")
    stored = load_file(place.tensor.path)
    raw = {part: stored[tensor.name] for part, tensor in place.parts.items()}
    assert place.packed is not None and "order" in raw
    _, loaded = load(made, "16", "float32")
    assert torch.equal(dequantise(place.packed, raw, torch.float32), loaded.layers[place.layer].down.weight)


# --- the directory -----------------------------------------------------------------------------------------


def test_shards_are_small_and_other_readers_understand_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtop.engine.convert_shards.SHARD_BYTES", 60_000)
    source = plain_llama(tmp_path / "source")
    made = convert(source, tmp_path / "made", weights="int4")
    shards = sorted(made.glob("lmtop-*"))
    assert len(shards) > 2
    for path in shards:
        with safe_open(path, "pt") as file:
            for tensor in read_header(path):
                assert file.get_tensor(tensor.name).shape == tensor.shape
        assert min(tensor.offset for tensor in read_header(path)) % 4096 == 0
    assert_alike(source, made, "int4", "float32")
    assert not (tmp_path / "made.converting").exists()


def test_a_full_header_begins_another_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtop.engine.convert_shards.HEADER_BYTES", 700)
    source = plain_llama(tmp_path / "source")
    made = convert(source, tmp_path / "made")
    assert len(sorted(made.glob("lmtop-*"))) > 1
    assert_alike(source, made, "16", "float32")


def test_what_is_there_stays_unless_forced(tmp_path: Path) -> None:
    source = plain_llama(tmp_path / "source")
    made = convert(source, tmp_path / "made")
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    with pytest.raises(UsageError, match="is there already; --force replaces it"):
        convert(source, made)
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before
    convert(source, made, weights="int4", force=True)
    assert read_spec(made).quantised.startswith("lmtop int4")


@pytest.mark.parametrize("force", [False, True])
def test_an_interruption_leaves_nothing_and_the_old_one_whole(tmp_path: Path, force: bool) -> None:
    source, out = plain_llama(tmp_path / "source"), tmp_path / "made"
    old = read_spec(convert(source, out)).digest if force else None

    def interrupt(stage: str, done: float, total: int) -> None:
        if stage == "checksums":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_model(Job(source, out, "m", "1.0", force=force), interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["made", "source"] if force else ["source"])
    assert old is None or read_spec(out).digest == old


def test_an_interruption_between_the_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = plain_llama(tmp_path / "source")
    out = convert(source, tmp_path / "made")
    digest, rename = read_spec(out).digest, Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if target == out and self.name == "model":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        convert(source, out, weights="int4", force=True)
    assert read_spec(out).digest == digest and not (tmp_path / "made.converting").exists()


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = plain_llama(tmp_path / "source")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(ModelError, match=r"converting source needs .* on disk, .* free"):
        convert(source, tmp_path / "made")
    assert not (tmp_path / "made.converting").exists()


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = plain_llama(tmp_path / "source")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmtop.engine.convert_shards.Shards.add", full)
    with pytest.raises(ModelError, match="the disk is full: nothing was kept"):
        convert(source, tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_converted_models_are_no_sources(tmp_path: Path) -> None:
    made = convert(llama_dir.write(tmp_path / "m"), tmp_path / "made")
    with pytest.raises(ModelError, match="is converted already; start from the original"):
        convert(made, tmp_path / "again")


# --- damage ------------------------------------------------------------------------------------------------


def change(**fields: Any) -> Callable[[Path], None]:
    def apply(made: Path) -> None:
        path = made / "lmtop.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def cut(made: Path) -> None:
    os.truncate(made / "lmtop-00001.safetensors", (made / "lmtop-00001.safetensors").stat().st_size - 1)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer": (change(version=2), "lmtop.json: format 2 is newer than this lmtop, which reads 1"),
    "version": (change(version="1"), "lmtop.json: is not what lmtop convert writes"),
    "foreign": (change(format="other"), "lmtop.json: is not what lmtop convert writes"),
    "no JSON": (lambda made: (made / "lmtop.json").write_text("{"), "lmtop.json: not valid JSON"),  # type: ignore[dict-item, return-value]
    "manifest gone": (lambda made: (made / "lmtop.json").unlink(), "without its lmtop.json"),
    "shard gone": (
        lambda made: (made / "lmtop-00001.safetensors").unlink(),
        "shards missing: lmtop-00001.safetensors; convert the model again",
    ),
    "cut": (cut, "lmtop-00001.safetensors: .* bytes, lmtop.json tells .*: damaged"),
    "no shards": (change(shards={}), "lmtop.json: shards: there are none"),
    "escape": (
        change(shards={"../lmtop-00001.safetensors": {"bytes": 1, "sha256": ""}}),
        "is no name of a shard",
    ),
    "no size": (change(shards={"lmtop-00001.safetensors": {"sha256": ""}}), "must tell bytes and sha256"),
    "files": (change(files=[]), "lmtop.json: files: must be an object"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    source = quantised.write(plain_llama(folder / "plain"), folder / "q", KINDS["gptq_act"])
    return convert(source, folder / "made")


@pytest.fixture
def made(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "made"))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_name(made: Path, name: str) -> None:
    spoil, told = DAMAGE[name]
    spoil(made)
    assert re.search(told, refused(made))


def rewrite(made: Path, name: str, value: Tensor | None) -> None:
    """Replace one tensor, the manifest made to fit."""
    path = made / "lmtop-00001.safetensors"
    tensors = load_file(path)
    tensors.pop(name)
    save_file(tensors if value is None else {**tensors, name: value}, path)
    change(shards={path.name: {"bytes": path.stat().st_size, "sha256": ""}})(made)


AT = "layers.1.down."


@pytest.mark.parametrize(
    "name,value,told",
    [
        (f"{AT}zeros", None, "comes without zeros"),
        (f"{AT}scales", torch.ones(64, 2, dtype=torch.float16), r"\[64, 2\], expected \[64, 3\]"),
        (f"{AT}scales", torch.ones(64, 3), "is F32, expected F16"),
        (f"{AT}codes_g32", torch.zeros(64, 47, dtype=torch.uint8), r"expected \[64, 48\]"),
        ("layers.0.attn_norm.weight", None, "tensors missing: layers.0.attn_norm.weight"),
    ],
)
def test_shapes_are_checked_at_each_load(made: Path, name: str, value: Tensor | None, told: str) -> None:
    rewrite(made, name, value)
    assert re.search(told, refused(made))


@pytest.mark.parametrize(
    "part,value,told",
    [
        ("scales", torch.full((64, 3), float("nan"), dtype=torch.float16), "holds NaN or infinity"),
        ("zeros", torch.full((64, 3), 16, dtype=torch.uint8), "holds a zero point above 15"),
        ("order", torch.zeros(96, dtype=torch.int32), "does not name every input once"),
        ("order", torch.arange(1, 97, dtype=torch.int32), "does not name every input once"),
    ],
)
def test_contents_without_sense_are_refused(made: Path, part: str, value: Tensor, told: str) -> None:
    rewrite(made, AT + part, value)
    with pytest.raises(ModelError, match=f"lmtop-00001.safetensors: layers.1.down.{part} {told}"):
        load(made, "int4", "float32")


def test_checksums_find_one_changed_bit_and_edited_files(made: Path) -> None:
    assert check_contents(made, lambda share: None)[1] == []
    (made / "config.json").write_text((made / "config.json").read_text() + " ")
    assert check_contents(made, lambda share: None)[1] == ["config.json"]
    path = made / "lmtop-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)
    read_spec(made)  # a cheap check does not see it
    with pytest.raises(ModelError, match=r"lmtop-00001\.safetensors: its contents are not what was written"):
        check_contents(made, lambda share: None)
