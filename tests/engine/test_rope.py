"""engine.md check 4: rotary tables equal transformers' within 1e-6, attention factor included."""

from __future__ import annotations

import pytest
import torch
from support.tiny import checkpoint
from transformers import GlmConfig, LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lmtop.engine.fusing import head_rows
from lmtop.engine.hfconfig import ConfigReader
from lmtop.engine.rope import Rotary, inverse_frequencies
from lmtop.engine.spec import Rope, interpret, read_spec

HEAD = 64
SIZES = {
    "hidden_size": 4 * HEAD,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "vocab_size": 32,
    "pad_token_id": 0,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
LONG = {
    "short_factor": [1.0 + 0.05 * i for i in range(HEAD // 2)],
    "long_factor": [1.0 + i for i in range(HEAD // 2)],
    "original_max_position_embeddings": 512,
}
CASES = {
    "default": {"rope_type": "default"},
    "theta": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", **YARN},
    "yarn mscale": {"rope_type": "yarn", "mscale": 0.8, "mscale_all_dim": 0.5, **YARN},
    "yarn factor": {"rope_type": "yarn", "attention_factor": 1.3, "beta_fast": 20, "beta_slow": 2, **YARN},
    "yarn smooth": {"rope_type": "yarn", "truncate": False, **YARN},
    "longrope": {"rope_type": "longrope", **LONG},
    "longrope factor": {"rope_type": "longrope", "factor": 32.0, **LONG},
    "longrope attention": {"rope_type": "longrope", "attention_factor": 1.19, **LONG},
    "partial": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "partial yarn": {"rope_type": "yarn", "partial_rotary_factor": 0.75, **YARN},
}


def both(case: str) -> tuple[Rope, LlamaConfig]:
    parameters = {"rope_theta": 10000.0, **CASES[case]}
    config = LlamaConfig(**SIZES, max_position_embeddings=2048, rope_parameters=dict(parameters))
    raw = {"model_type": "phi3", **SIZES, "max_position_embeddings": 2048, "rope_parameters": parameters}
    return interpret(raw).spec.rope, config


@pytest.mark.parametrize("length", [100, 512, 513, 2048, 5000])
@pytest.mark.parametrize("case", CASES)
def test_check_04_frequencies_and_factor_equal_transformers(case: str, length: int) -> None:
    rope, config = both(case)
    if rope.kind == "default":
        theirs = LlamaRotaryEmbedding.compute_default_rope_parameters
        expected, factor = theirs(config)
        expected = expected[: rope.dim // 2] if rope.dim == HEAD else _partial(rope)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[rope.kind](config, torch.device("cpu"), seq_len=length)
    ours = inverse_frequencies(rope, torch.tensor([length]))
    ours = ours if ours.dim() == 1 else ours[0]
    assert torch.allclose(ours, expected, rtol=0, atol=1e-6)
    assert torch.allclose(ours.log(), expected.log(), rtol=0, atol=1e-5)  # small ones too
    assert rope.attention_factor == pytest.approx(factor, abs=1e-6)


def _partial(rope: Rope) -> torch.Tensor:
    return rope.theta ** -(torch.arange(0, rope.dim, 2).double() / rope.dim).float()


@pytest.mark.parametrize("case", CASES)
def test_check_04_tables(case: str) -> None:
    """cos and sin of a prompt: those of its length for every position, sign and factor folded in."""
    rope, _ = both(case)
    positions = torch.tensor([0, 1, 7, 511, 512, 900])
    cos, sin = Rotary(rope, torch.device("cpu"))(positions, 901)
    frequencies = inverse_frequencies(rope, torch.full((6,), 901)).expand(6, -1)
    angles = positions[:, None].float() * frequencies
    sign = torch.cat((-torch.ones(rope.dim // 2), torch.ones(rope.dim // 2)))
    assert cos.shape == sin.shape == (6, 1, rope.dim)
    assert torch.allclose(cos[:, 0], torch.cat((angles, angles), 1).cos() * rope.attention_factor, atol=1e-6)
    assert torch.allclose(
        sin[:, 0], torch.cat((angles, angles), 1).sin() * sign * rope.attention_factor, atol=1e-6
    )


def test_check_04_interleaved_pairs_are_turned_as_transformers_turns_them() -> None:
    """Rows reordered at load and rotated by halves are what GLM's rotation of neighbours gives."""
    directory = checkpoint("glm")
    files = read_spec(directory)
    rope, heads, dim = files.spec.rope, files.spec.heads, files.spec.head_dim
    positions = torch.arange(100)
    q = torch.randn(100, heads * dim, generator=torch.Generator().manual_seed(1))
    theirs, _ = apply_rotary_pos_emb(
        q.view(1, 100, heads, dim).transpose(1, 2),
        q.view(1, 100, heads, dim).transpose(1, 2),
        *GlmRotaryEmbedding(GlmConfig.from_pretrained(directory))(q, positions[None]),
    )
    where = head_rows(files.spec, files.layout, "q")
    ours = torch.empty_like(q).index_copy_(1, where, q).view(100, heads, dim)
    cos, sin = Rotary(rope, torch.device("cpu"))(positions, 100)
    turning = ours[..., : rope.dim]
    turned = turning * cos + turning.roll(rope.dim // 2, -1) * sin
    rotated = torch.cat((turned, ours[..., rope.dim :]), -1).flatten(1)[:, where]
    assert rope.dim < dim, "GLM-4 rotates a part of each head"
    assert torch.allclose(rotated, theirs[0].transpose(0, 1).flatten(1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", ["dynamic", "longrope"])
def test_length_of_a_token_is_its_prompt_or_its_own(case: str) -> None:
    rope, _ = both(case)
    rotary = Rotary(rope, torch.device("cpu"))
    positions = torch.tensor([100, 2999, 3000])
    mixed, _ = rotary(positions, torch.tensor([3000, 3000, 50]))
    alone = torch.cat([rotary(positions[i : i + 1], n)[0] for i, n in enumerate((3000, 3000, 3001))])
    assert torch.equal(mixed, alone)
    short, _ = rotary(positions[:1], 101)
    assert not torch.allclose(mixed[:1], short)


def test_salt_separates_what_cannot_share_keys() -> None:
    dynamic, longrope, plain = both("dynamic")[0], both("longrope")[0], both("yarn")[0]
    assert dynamic.salt(2048) == dynamic.salt(5) == 0
    assert len({dynamic.salt(n) for n in (2048, 2049, 2050)}) == 3
    assert longrope.salt(512) == 0
    assert longrope.salt(513) == longrope.salt(900) == 1
    assert plain.salt(9000) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 5e5}}),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"original_max_position_embeddings": 512, "rope_scaling": {**LONG, "type": "su"}},
            {"rope_parameters": {"rope_type": "longrope", **LONG}},
        ),
    ],
)
def test_both_generations_of_files_agree(old: dict, new: dict) -> None:
    base = {"model_type": "phi3", **SIZES, "max_position_embeddings": 2048}
    assert interpret(base | old).spec.rope == interpret(base | new).spec.rope


def test_phi3_keeps_the_original_length_outside() -> None:
    config = Phi3Config(
        **SIZES, max_position_embeddings=2048, original_max_position_embeddings=512, rope_scaling=None
    )
    stored = {k: v for k, v in config.to_dict().items() if v is not None}
    assert interpret(stored).spec.rope.kind == "default"
    assert ConfigReader(stored).integer("original_max_position_embeddings") == 512
