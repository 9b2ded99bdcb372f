"""Models of any shape with random weights: speed does not depend on what the weights are.

A config.json (or the name of a built-in shape) becomes the same description that a model directory gives, with
tensors that are nowhere; `engine.weights` asks `Noise` for their contents, and all else is as ever.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .architecture import Spec
from .checkpoint import StoredTensor
from .config import EngineConfig, require_fit, resolve
from .hfconfig import CONFIG_CAP, read_json
from .roles import assign_roles
from .spec import ModelFiles, interpret
from .types import ModelError

if TYPE_CHECKING:
    from .loader import Prepared
    from .tokenizer import Tokenizer

NOWHERE = Path("random weights")  # where a tensor is stored that is made up
STORED = {"float16": "F16", "float32": "F32"}
SPREAD = 0.02  # standard deviation, as models are initialised
NOISE = (1 << 24) - 3  # numbers that are drawn; a prime, so that rows of no width repeat soon

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "internlm2-1.8b": {
        "model_type": "internlm2",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 92544,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
}


def prepare_random(config: EngineConfig) -> Prepared:
    """What `loader.prepare` gives, for a model that is nowhere; `config.model` names a shape or a config.json.
    Raises ModelError or DeviceError."""
    from .devices import device_info
    from .loader import Prepared, sizes_of
    from .template import plain_template

    files = random_files(config.model)
    device = device_info(config.device)
    plan = resolve(config, sizes_of(files), device)
    require_fit(plan, device, config.force)
    tokenizer = id_tokenizer(files.spec.vocab)
    return Prepared(config, NOWHERE, files, device, plan, tokenizer, plain_template(tokenizer))


def random_files(shape: str) -> ModelFiles:
    """The model of a built-in shape or of a config.json. ModelError when it is not understood."""
    config = SHAPES.get(shape)
    if config is None:
        path = Path(shape).expanduser()
        if not path.is_file():
            raise ModelError(f"{shape}: neither a config.json nor one of {', '.join(SHAPES)}")
        config = read_json(path, CONFIG_CAP)
    told = interpret(config)
    inner = config.get("intermediate_size", config.get("ffn_hidden_size"))
    if not isinstance(inner, int) or inner < 1:
        raise ModelError(f"{shape}: intermediate_size: missing")
    dtype = str(config.get("torch_dtype", config.get("dtype", "bfloat16")))
    shapes = _shapes(told.spec, inner, bool(told.tie))
    tensors = [
        StoredTensor(name, NOWHERE, STORED.get(dtype, "BF16"), size, 0, 2 * math.prod(size))
        for name, size in shapes.items()
    ]
    placed, spec = assign_roles(told.spec, told.family, tensors, bool(told.tie))
    return ModelFiles(
        directory=NOWHERE,
        family=told.family.model_types[0],
        layout=told.family,
        spec=spec,
        config=config,
        generation={},
        eos_ids=(),
        placed=placed,
        parameters=sum(map(math.prod, shapes.values())),
        stored_bytes=sum(tensor.nbytes for tensor in tensors),
        widest=max(2 * inner, (spec.heads + 2 * spec.kv_heads) * spec.head_dim),
        digest=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        dtype=dtype if dtype in STORED else "bfloat16",
        notices=told.notices,
    )


def _shapes(spec: Spec, inner: int, tied: bool) -> Mapping[str, tuple[int, ...]]:
    """The tensors of a decoder without biases, in Llama's names, which every family's rules understand."""
    hidden, queries, keys = spec.hidden, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    if spec.qk_norm:
        layer |= {"self_attn.q_norm": (spec.head_dim,), "self_attn.k_norm": (spec.head_dim,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab, hidden)}
    for index in range(spec.layers):
        shapes |= {f"model.layers.{index}.{name}.weight": size for name, size in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (spec.vocab, hidden)
    return shapes


class Noise:
    """The contents of made-up tensors, on `device`: drawn once, since their values do not matter."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        numbers = torch.randn(NOISE, generator=generator, device=device)
        self._noise = numbers.mul_(SPREAD).bfloat16()

    def rows(self, tensor: StoredTensor) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a tensor, piece by piece: ones for the gain of a norm, else normal numbers."""
        count, width = tensor.shape[0], math.prod(tensor.shape[1:])
        if len(tensor.shape) == 1:
            yield 0, torch.ones_like(self._noise[:count])
            return
        step = max(1, NOISE // width)
        for first in range(0, count, step):
            rows = min(step, count - first)
            yield first, self._noise[: rows * width].view(rows, width)


def id_tokenizer(vocab: int) -> Tokenizer:
    """A tokenizer for ids alone: the text of a token is its number and a space."""
    import tokenizers

    from .tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"{i} ": i for i in range(vocab)}, unk_token="0 ")
    )
    backend.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(backend, "random weights")
