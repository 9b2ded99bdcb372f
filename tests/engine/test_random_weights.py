from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.llama import config

from lmtop.engine.checkpoint import StoredTensor
from lmtop.engine.config import EngineConfig
from lmtop.engine.loader import build
from lmtop.engine.random_weights import (
    NOWHERE,
    SHAPES,
    SPREAD,
    Noise,
    id_tokenizer,
    prepare_random,
    random_files,
)
from lmtop.engine.types import ModelError


def write(directory: Path, **more: object) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(config(context=256) | more))
    return str(path)


@pytest.mark.parametrize(
    ("shape", "parameters"), [("llama-3-8b", 8_030_261_248), ("internlm2-1.8b", 1_889_110_016)]
)
def test_the_built_in_shapes_have_the_parameters_of_their_models(shape: str, parameters: int) -> None:
    files = random_files(shape)
    assert files.parameters == parameters
    assert files.stored_bytes == 2 * parameters
    assert files.dtype == "float16"
    assert files.widest == 2 * SHAPES[shape]["intermediate_size"]


@pytest.mark.parametrize("more", [{}, {"tie_word_embeddings": True}, {"model_type": "qwen3"}])
def test_a_model_of_any_shape_computes(tmp_path: Path, more: dict[str, object]) -> None:
    prepared = prepare_random(EngineConfig(write(tmp_path, **more), max_batch_size=2))
    engine = build(prepared)
    assert prepared.directory == NOWHERE
    assert engine.weights_bytes == 4 * prepared.files.parameters
    weights = engine.runner._decoder._weights
    assert weights.layers[0].attn_norm.eq(1).all()
    numbers = weights.layers[1].down.weight
    assert numbers.isfinite().all()
    assert 0.8 * SPREAD < numbers.std() < 1.2 * SPREAD
    assert engine.tokenizer.vocab_size == prepared.files.spec.vocab
    assert not engine.scheduler.eos_ids


def test_large_tensors_are_filled_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtop.engine.random_weights.NOISE", 1009)
    noise = Noise(torch.device("cpu"))
    pieces = list(noise.rows(StoredTensor("w", NOWHERE, "BF16", (250, 100), 0, 0)))
    assert [first for first, _ in pieces] == list(range(0, 250, 10))
    assert all(rows.shape == (10, 100) for _, rows in pieces)
    ((first, gain),) = noise.rows(StoredTensor("n", NOWHERE, "BF16", (100,), 0, 0))
    assert first == 0 and gain.eq(1).all() and len(gain) == 100


def test_ids_have_a_text() -> None:
    tokenizer = id_tokenizer(300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode([5, 77, 299]) == "5 77 299 "
    assert not tokenizer.eos_ids


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither a config\.json nor one of llama-3-8b, internlm2-1\.8b"):
        random_files(str(tmp_path / "gone.json"))
    with pytest.raises(ModelError, match="intermediate_size: missing"):
        random_files(write(tmp_path, intermediate_size=None))
    with pytest.raises(ModelError, match="not supported"):
        random_files(write(tmp_path, model_type="mamba"))
