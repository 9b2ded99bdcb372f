"""Quantising whole models: every family, against transformers, with damage, and with interruptions."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.awq_plain import tensors_of, write_plain
from support.llama import write_llama
from support.tiny import NATIVE, WAVE1, checkpoint, load
from torch import Tensor

from lmtop.engine import quantize_work
from lmtop.engine.demo.corpus import conversation
from lmtop.engine.models import demo_path
from lmtop.engine.quantize import Outcome, calibrate_model, quantise_model
from lmtop.engine.quantize_check import Comparison, compare, embedded
from lmtop.engine.quantize_job import Job, choose_group
from lmtop.engine.quantize_layers import MATRICES, Blocks, Layers, batches
from lmtop.engine.quantize_matrices import _pool, _smoothed
from lmtop.engine.spec import read_spec
from lmtop.engine.types import DeviceError, ModelError, UsageError

SHARED = Path(__file__).parents[2].parent / "shared"
STORIES = SHARED / "models" / "stories260k"
CPU = torch.device("cpu")


def quiet(stage: str, done: int, total: int) -> None:
    pass


def job(directory: Path, out: Path, **more: Any) -> Job:
    small: dict[str, Any] = {"samples": 4, "seqlen": 128, "free": 1 << 40}
    return Job(directory, out, **(small | more))


def made(directory: Path, out: Path, **more: Any) -> Outcome:
    with torch.inference_mode():
        return quantise_model(job(directory, out, **more), quiet, lambda text: None)


def logits(directory: Path, ids: Tensor) -> Tensor:
    decoder = load(directory)
    cache = decoder.new_cache(2 + len(ids) // 16, 16)
    table = torch.arange(1, 2 + len(ids) // 16)
    return decoder.logits(decoder.prefill(ids, 0, table, cache))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "llama", layers=3)


# --- a layer at a time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAVE1)
def test_layers_read_one_by_one_compute_what_the_decoder_computes(name: str) -> None:
    files = read_spec(checkpoint(name))
    reader, blocks = Layers(files, CPU), Blocks(files.spec, CPU)
    texts = [list(range(7, 47)), list(range(90, 107))]
    with torch.inference_mode():
        x = torch.cat(embedded(reader, texts, torch.float32))
        for index in range(files.spec.layers):
            x = blocks.run(reader.read(index).cast(torch.float32), x, [40, 17])
        decoder = load(checkpoint(name))
        for ids, rows in zip(texts, x.split([40, 17]), strict=True):
            want = decoder.prefill(torch.tensor(ids), 0, torch.arange(1, 5), decoder.new_cache(5, 16))
            torch.testing.assert_close(rows, want, rtol=1e-4, atol=1e-4)
    reader.close()


@pytest.mark.parametrize("name", WAVE1)
def test_smoothing_changes_no_result_before_rounding(name: str) -> None:
    files = read_spec(checkpoint(name))
    reader, blocks = Layers(files, CPU), Blocks(files.spec, CPU)
    generator = torch.Generator().manual_seed(0)
    layer = reader.read(1).cast(torch.float32)
    scales = {
        role: torch.exp(torch.randn(layer.matrices[role].weight.shape[1], generator=generator))
        for role in MATRICES
    }
    scales["o"] = _pool(files.spec)(scales["o"])
    with torch.inference_mode():
        x = embedded(reader, [list(range(7, 47))], torch.float32)[0] + torch.randn(40, files.spec.hidden)
        want = blocks.run(layer, x, [40])
        matrices, gains = _smoothed(files.spec, layer, scales)
        got = blocks.run(replace(layer, matrices=matrices, gains=gains), x, [40])
    assert not torch.equal(matrices["down"].weight, layer.matrices["down"].weight)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
    reader.close()


def test_texts_are_computed_together_up_to_a_limit() -> None:
    texts = [torch.empty(length, 1) for length in (5, 5, 20, 1, 1)]
    assert list(batches(texts, 10)) == [range(2), range(2, 3), range(3, 5)]
    assert list(batches([], 10)) == []


# --- whole models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama_gqa", "llama_bias", "qwen2", "qwen3", "phi3", "glm", "internlm2", "chatglm2",
                                  "baichuan2_7b", "qwen_v1"])  # fmt: skip
def test_the_result_is_the_same_model_here_dequantised_and_in_transformers(name: str, tmp_path: Path) -> None:
    source = checkpoint(name)
    outcome = made(source, tmp_path / "out", group=32)
    assert outcome.matrices > 0 and not outcome.kept
    assert outcome.comparison.divergence < 0.1
    files = read_spec(tmp_path / "out")
    assert files.quantised == "AWQ int4 g32"
    matrices = [place for place in files.placed if place.layer >= 0 and len(place.shape) == 2]
    assert all(place.packed is not None for place in matrices)
    plain = write_plain(tmp_path / "out", tmp_path / "plain")
    ids = torch.arange(7, 55)
    ours = logits(tmp_path / "out", ids)
    torch.testing.assert_close(ours, logits(plain, ids), rtol=1e-4, atol=1e-4)
    if name in NATIVE:
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
        with torch.inference_mode():
            theirs = model(ids.unsqueeze(0)).logits[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


def test_transformers_reads_the_configuration_as_awq(llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path / "out", group=32)
    import transformers

    config = transformers.AutoConfig.from_pretrained(tmp_path / "out").quantization_config
    awq = transformers.AwqConfig.from_dict(config)
    assert (awq.bits, awq.group_size, awq.zero_point, awq.modules_to_not_convert) == (
        4,
        32,
        True,
        ["lm_head"],
    )
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("hello")["input_ids"]


def talk(path: Path, seed: int, count: int) -> str:
    """Conversations of the kind that the built-in model was trained on, but of another seed."""
    lines = (json.dumps({"messages": conversation(seed, index)}) for index in range(count))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_the_demo_stays_within_3_percent_and_each_refinement_helps(tmp_path: Path) -> None:
    data, check = talk(tmp_path / "data.jsonl", 991, 16), talk(tmp_path / "check.jsonl", 992, 6)
    divergence = {}
    for name, more in (
        ("nearest", {"samples": 0}),
        ("awq", {}),
        ("gptq", {"method": "gptq"}),
    ):
        more = {"data": data, "check": check, "samples": 16, "seqlen": 512} | more
        outcome = made(demo_path(), tmp_path / name, **more)
        assert outcome.group == 128 and outcome.matrices == 49 and outcome.after < 0.4 * outcome.before
        assert abs(outcome.comparison.rise) < 0.03
        divergence[name] = outcome.comparison.divergence
        if name != "nearest":
            assert outcome.better is not None and outcome.better >= 0.9
    assert divergence["gptq"] < divergence["awq"] < divergence["nearest"] < 0.05


def test_stories260k_keeps_what_has_no_place_in_awq(tmp_path: Path) -> None:
    if not STORIES.exists():
        pytest.skip("the story model is not beside the repository")
    outcome = made(STORIES, tmp_path / "out", samples=16, seqlen=256)
    assert (outcome.group, outcome.matrices, len(outcome.kept)) == (64, 20, 15)  # 172 is no multiple of 8
    assert outcome.better is not None and outcome.better >= 0.9
    assert outcome.comparison.divergence < 0.1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "model.layers.4.mlp.down_proj" in config["quantization_config"]["modules_to_not_convert"]
    plain = write_plain(tmp_path / "out", tmp_path / "plain")
    ids = torch.arange(3, 40)
    torch.testing.assert_close(logits(tmp_path / "out", ids), logits(plain, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [{"symmetric": True}, {"group": -1}, {"samples": 0}, {"search": "none"}, {"method": "gptq"}],
    ids=str,
)
def test_every_option_changes_the_result_and_loads(more: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path / "usual")
    outcome = made(llama, tmp_path / "out", **more)
    usual, got = tensors_of(tmp_path / "usual"), tensors_of(tmp_path / "out")
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(usual[name], got[name])
    assert outcome.comparison.divergence < 1
    stored = load_file(tmp_path / "out" / "model.safetensors")
    if "symmetric" in more:
        assert bool(
            (stored["model.layers.0.self_attn.q_proj.qzeros"] == -0x77777778).all()
        )  # 8 in each nibble
    if "group" in more:
        assert stored["model.layers.0.self_attn.q_proj.scales"].shape == (1, 64)


def test_a_head_of_its_own_can_be_quantised(tmp_path: Path) -> None:
    of = write_llama(tmp_path / "wide")
    weights = load_file(of / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat((weights[name], weights[name][:3]))  # 264 rows: eight to a word
    save_file(weights, of / "model.safetensors")
    config = json.loads((of / "config.json").read_text()) | {"vocab_size": 264}
    (of / "config.json").write_text(json.dumps(config))
    made(of, tmp_path / "out", head="int4")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["quantization_config"]["modules_to_not_convert"] == []
    plain, ids = write_plain(tmp_path / "out", tmp_path / "plain"), torch.arange(7, 47)
    torch.testing.assert_close(logits(tmp_path / "out", ids), logits(plain, ids), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="embedding"):
        made(demo_path(), tmp_path / "tied", head="int4")


def test_a_matrix_with_nan_stays_and_the_layers_behind_it_are_calibrated(llama: Path, tmp_path: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, llama / "model.safetensors")
    outcome = made(llama, tmp_path / "out")
    assert {module for module, _ in outcome.kept} == {
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    }
    assert "NaN" in outcome.kept[0][1] and "unusable" in outcome.comparison.verdict
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.2.mlp.up_proj.qweight" in stored
    kept = stored["model.layers.1.mlp.up_proj.weight"]
    assert kept.dtype == torch.float16 and int(kept.isnan().sum()) == 1


def test_several_shards_are_one_checkpoint(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(llama, tmp_path / "one")
    monkeypatch.setattr(quantize_work, "SHARD_BYTES", 40_000)
    made(llama, tmp_path / "many")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2 and sorted(set(index["weight_map"].values())) == shards
    one, many = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "many")
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)
    assert index["metadata"]["total_size"] == read_spec(tmp_path / "many").stored_bytes


@pytest.mark.parametrize("source", ["demo", "llama"])
def test_the_check_tells_what_the_two_models_compute(source: str, llama: Path, tmp_path: Path) -> None:
    directory = demo_path() if source == "demo" else llama  # one with a head of 16 bits, one of float32
    made(directory, tmp_path / "out", samples=0)
    windows = [list(range(7, 57)), list(range(90, 250))]
    before, after = Layers(read_spec(directory), CPU), Layers(read_spec(tmp_path / "out"), CPU)
    with torch.inference_mode():
        found = compare(before, after, windows, 128, lambda done: None)
    divergence, losses = 0.0, [0.0, 0.0]
    for ids in windows:
        pair = [logits(where, torch.tensor(ids))[:-1].double() for where in (directory, tmp_path / "out")]
        p, q = (part.log_softmax(-1) for part in pair)
        divergence += float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
        for at, part in enumerate((p, q)):
            losses[at] += float(torch.nn.functional.nll_loss(part, torch.tensor(ids[1:]), reduction="sum"))
    count = sum(len(ids) - 1 for ids in windows)
    assert found.tokens == count
    assert found.divergence == pytest.approx(divergence / count, rel=1e-3)
    assert [found.before, found.after] == pytest.approx([math.exp(loss / count) for loss in losses], rel=1e-3)
    before.close()
    after.close()


def test_the_verdict_follows_perplexity_and_divergence() -> None:
    def verdict(after: float, divergence: float = 0.01, before: float = 10.0) -> str:
        return Comparison(before, after, divergence, 100).verdict.split(":")[0]

    assert [verdict(it) for it in (9.0, 10.29, 10.9, 11.1)] == ["good", "good", "usable", "poor"]
    assert [verdict(10.0, it) for it in (0.09, 0.2, 0.4)] == ["good", "usable", "poor"]
    assert verdict(math.inf) == verdict(math.nan) == verdict(10.0, math.nan) == "unusable"
    assert verdict(5000.0, before=5000.0) == "unclear"


# --- interruptions and refusals -----------------------------------------------------------------------------------


def stop_at(layer: int) -> Callable[[str, int, int], None]:
    def stage(name: str, done: int, total: int) -> None:
        if (name, done) == ("quantising", layer):
            raise KeyboardInterrupt

    return stage


def test_an_interrupted_job_goes_on_and_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        quantise_model(job(llama, tmp_path / "out"), stop_at(2), lambda text: None)
    folder = tmp_path / "out.partial"
    assert not (tmp_path / "out").exists()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert sorted(before) == ["part-00000.safetensors", "part-00001.safetensors"]
    (folder / "part-00001.safetensors").write_bytes(b"torn")  # as after a crash of the machine
    kept = []

    def stage(name: str, done: int, total: int) -> None:
        kept[:] = [(folder / "part-00000.safetensors").stat().st_mtime_ns] if folder.exists() else kept

    said: list[str] = []
    quantise_model(job(llama, tmp_path / "out"), stage, said.append)
    assert kept == [before["part-00000.safetensors"]]
    assert any("going on" in text for text in said)
    assert not folder.exists()
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("change", [{"symmetric": True}, {"samples": 3}, "weights"], ids=str)
def test_what_is_left_of_another_job_is_not_used(
    change: dict[str, Any] | str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantise_model(job(llama, tmp_path / "out"), stop_at(2), lambda text: None)
    if change == "weights":
        weights = load_file(llama / "model.safetensors")
        save_file({name: tensor * 1.5 for name, tensor in weights.items()}, llama / "model.safetensors")
    said: list[str] = []
    more = change if isinstance(change, dict) else {}
    quantise_model(job(llama, tmp_path / "out", **more), quiet, said.append)
    assert not any("going on" in text for text in said)
    made(llama, tmp_path / "fresh", **more)
    got, want = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "fresh")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_nobody_elses_folder_is_touched(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    for force, words in ((False, "--force"), (True, "holds no model")):
        with pytest.raises(UsageError, match=words):
            made(llama, out, force=force)
    assert (out / "letter.txt").read_text() == "dear"
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine").write_text("keep")
    with pytest.raises(UsageError, match="not of lmtop's making"):
        made(llama, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new.partial").iterdir() if path.name != "lock"] == ["mine"]
    for inside in (llama, llama / "quantised", llama.parent):
        with pytest.raises(UsageError, match="own directory"):
            made(llama, inside, force=True)
    with pytest.raises(UsageError, match="no folder"):
        made(llama, tmp_path / "nowhere" / "out")


def test_force_replaces_a_model_and_only_when_the_new_one_is_complete(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(llama, out)
    (out / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        quantise_model(job(llama, out, force=True, group=32), stop_at(1), lambda text: None)
    assert (out / "old").exists()
    made(llama, out, force=True, group=32)
    assert not (out / "old").exists() and read_spec(out).quantised == "AWQ int4 g32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "out"]


def test_two_at_once_do_not_mix(llama: Path, tmp_path: Path) -> None:
    work = quantize_work.Work(tmp_path / "out", {})
    work.open()
    with pytest.raises(UsageError, match="another lmtop"):
        made(llama, tmp_path / "out")
    work.close()


def test_a_full_disk_is_told_before_and_while_writing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(ModelError, match=r"needs .* on disk, 0\.0 MiB are free"):
            made(llama, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(quantize_work, "write_shards", full)
        with pytest.raises(ModelError, match="disk is full; finished layers are kept"):
            made(llama, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial" / "model").exists()
    said: list[str] = []
    quantise_model(job(llama, tmp_path / "out"), quiet, said.append)
    assert "4 of 4 parts are finished" in said[0] or "4 of 4 parts are finished" in said[-1]


def test_too_little_memory_is_told_before(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="GiB of memory"):
        made(llama, tmp_path / "out", free=1 << 20)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("group", "words"), [(7, "must be one of"), (0, "must be one of"), (128, "multiple of 128")]
)
def test_a_group_size_that_does_not_fit_is_refused_by_its_width(
    group: int, words: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        made(llama, tmp_path / "out", group=group)
    assert choose_group(read_spec(llama), None) == 32  # 64 does not divide 96


def test_a_quantised_model_is_not_quantised_again(llama: Path, tmp_path: Path) -> None:
    made(llama, tmp_path / "out")
    with pytest.raises(ModelError, match="quantised already"):
        made(tmp_path / "out", tmp_path / "again")


def test_calibrate_then_quantise_is_lmdeploys_rule_on_the_same_statistics(
    llama: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with torch.inference_mode():
        path = calibrate_model(job(llama, tmp_path / "work"), quiet, said.append)
    made(llama, tmp_path / "work", search="none", statistics=path)
    made(llama, tmp_path / "direct", search="none")
    got, want = tensors_of(tmp_path / "work"), tensors_of(tmp_path / "direct")
    assert all(torch.equal(got[name], want[name]) for name in want)
    other = write_llama(tmp_path / "other", seed=9, layers=3)
    with torch.inference_mode():
        theirs = calibrate_model(job(other, tmp_path / "theirs"), quiet, said.append)
    with pytest.raises(ModelError, match="of another checkpoint"):
        made(llama, tmp_path / "new", search="none", statistics=theirs)
    theirs.write_bytes(b"torn")
    with pytest.raises(ModelError, match="damaged"):
        made(llama, tmp_path / "new", search="none", statistics=theirs)
