"""The front door to a model directory: `read_spec` tells everything that can be known without reading a weight.

Standard library only and quick (headers are read, no tensor), so that dialogs and lists can call it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import converted
from .architecture import Rope, Spec, refuse, spec_from_config
from .checkpoint import StoredTensor, check_directory, read_tensors
from .families import BY_MODEL_TYPE, HARMLESS, NEEDS, NEUTRAL, Family
from .hfconfig import CONFIG_CAP, ConfigReader, read_json
from .quantised import label_of, own_groups, read_scheme
from .roles import Placed, assign_roles
from .types import ModelError

__all__ = ["ModelFiles", "Rope", "Spec", "read_spec"]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model directory that can be loaded: everything knowable without reading a weight.

    `family` is the model_type, `layout` how it stores tensors and `placed` the role of each.
    `parameters` counts elements of the decoder, `stored_bytes` their size in the files, `dtype` is the stored
    type of most plain ones ("float32", "bfloat16", ...), `widest` the longest activation row of a layer in
    elements, `digest` an identity of the checkpoint. `notices` are for the user, once. `quantised` is what most
    matrices are stored as ("AWQ int4 g128"), empty where none is quantised; `int4`: see `quantised.own_groups`.
    `converted`: `lmtop convert` wrote it.
    """

    directory: Path
    family: str
    layout: Family
    spec: Spec
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    eos_ids: tuple[int, ...]
    placed: tuple[Placed, ...]
    parameters: int
    stored_bytes: int
    widest: int
    digest: str
    dtype: str
    notices: tuple[str, ...]
    quantised: str = ""
    int4: Mapping[tuple[int, str], int] = field(default_factory=dict)
    converted: bool = False


@dataclass(frozen=True, slots=True)
class Interpretation:
    """What config.json alone tells. `tie` is its word on a shared head, None where it says nothing."""

    family: Family
    spec: Spec
    eos_ids: tuple[int, ...]
    tie: bool | None
    notices: tuple[str, ...]


def interpret(config: Mapping[str, Any]) -> Interpretation:
    """Understand a config.json completely, or raise ModelError naming the key that is not."""
    reader = ConfigReader(config)
    notices: list[str] = []
    family = _family(reader)
    spec = spec_from_config(reader, family, notices)
    eos_ids = reader.ids("eos_token_id")
    says_tie = reader.raw("tie_word_embeddings")[1] is not None
    tie = reader.boolean("tie_word_embeddings") if says_tie else None
    if reader.raw("auto_map")[1] is not None:
        notices.append("The model brings its own code (auto_map): it is ignored, never run.")
    reader.audit(HARMLESS, NEUTRAL)
    return Interpretation(family, spec, eos_ids, tie, tuple(notices))


def read_spec(directory: Path) -> ModelFiles:
    """Read and check a model directory. Raises ModelError naming the file and key or tensor."""
    check_directory(directory)
    config = read_json(directory / "config.json", CONFIG_CAP)
    told = interpret(config)
    family = told.family
    generation_path = directory / "generation_config.json"
    generation = read_json(generation_path, CONFIG_CAP) if generation_path.exists() else {}
    eos = dict.fromkeys(told.eos_ids + ConfigReader(generation, generation_path.name).ids("eos_token_id"))
    ours = converted.read_manifest(directory)
    layout = family if ours is None else converted.layout_of(family)
    tensors = read_tensors(directory, () if ours is None else ours.shards)
    scheme = read_scheme(config, directory) if ours is None else converted.SCHEME
    placed, spec = assign_roles(told.spec, layout, tensors, told.tie, scheme)
    used = [tensor for place in placed for tensor in place.stored]
    label = label_of(placed)
    notices = told.notices
    if scheme is not None and not label and ours is None:
        notices += (f"config.json announces {scheme.method} weights, but all are stored unquantised.",)
    return ModelFiles(
        directory=directory,
        family=family.model_types[0],
        layout=layout,
        spec=spec,
        config=config,
        generation=generation,
        eos_ids=tuple(token for token in eos if token < spec.vocab),
        placed=placed,
        parameters=sum(math.prod(place.shape) for place in placed),
        stored_bytes=sum(tensor.nbytes for tensor in used),
        widest=_widest(spec, placed),
        digest=_digest(config, used),
        dtype=_main_dtype(placed),
        notices=notices,
        quantised=label,
        int4=own_groups(placed, spec),
        converted=ours is not None,
    )


def _widest(spec: Spec, placed: tuple[Placed, ...]) -> int:
    downs = [place.shape[1] for place in placed if place.role == "down" and place.part == "weight"]
    return max(2 * max(downs), (spec.heads + 2 * spec.kv_heads) * spec.head_dim)


def _digest(config: Mapping[str, Any], tensors: list[StoredTensor]) -> str:
    """Identity of a checkpoint without reading it: configuration, headers, and each shard's size and time."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(
            f"{tensor.name} {tensor.dtype} {tensor.shape} {tensor.offset}\n".encode("utf-8", "replace")
        )
    for path in sorted({tensor.path for tensor in tensors}):
        info = path.stat()
        digest.update(f"{info.st_size} {info.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _main_dtype(placed: tuple[Placed, ...]) -> str:
    size: dict[str, int] = {}
    for tensor in (place.tensor for place in placed if place.packed is None):
        size[tensor.dtype] = size.get(tensor.dtype, 0) + tensor.nbytes
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return names[max(size, key=lambda dtype: size[dtype])]


def _family(reader: ConfigReader) -> Family:
    name = reader.string("model_type", default="")
    if not name:
        raise ModelError("config.json: model_type: missing")
    reader.mapping("quantization_config", "compression_config")  # see engine.quantised
    if name not in BY_MODEL_TYPE:
        feature = NEEDS.get(name)
        raise refuse(name, f" (needs {feature})" if feature else "")
    return BY_MODEL_TYPE[name]
