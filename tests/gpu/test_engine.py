"""The whole model on a GPU: every family against the CPU backend, graphs against single launches, neighbours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.engines import Client, loaded
from support.tiny import SHARED, WAVE1, checkpoint

from lmtop.engine.config import EngineConfig, resolve
from lmtop.engine.devices import device_info
from lmtop.engine.hardware import Hardware, open_hardware
from lmtop.engine.loader import sizes_of
from lmtop.engine.model import Decoder
from lmtop.engine.spec import read_spec
from lmtop.engine.types import GREEDY, Delta, Request, SamplingParams
from lmtop.engine.weights import load_weights
from lmtop.kernels import reference

STORIES = SHARED / "models" / "stories260k"
BLOCK = 16


def build(directory: Path, device: str, dtype: str, weights: str = "16", kv: str = "16") -> Decoder:
    """A decoder alone; on the CPU it computes in float32."""
    files = read_spec(directory)
    config = EngineConfig(
        str(directory),
        device=device,
        dtype=dtype if device == "cuda" else "float32",
        weights=weights,
        kv=kv,
        cache_block_seq_len=BLOCK,
        cache_max_entry_count=64,
    )
    plan = resolve(config, sizes_of(files), device_info(device))
    if device == "cpu":
        hardware = Hardware(torch.device("cpu"), reference, plan, config)
    else:
        hardware = open_hardware(config, plan, files, device, lambda share, text: None, lambda: False)
    loaded_weights = load_weights(
        files,
        getattr(torch, plan.dtype),
        hardware.device,
        lambda share, text: None,
        lambda: False,
        hardware.layer,
    )
    return Decoder(files.spec, loaded_weights, hardware.ops, plan.kv_format)


def logits_of(decoder: Decoder, ids: torch.Tensor, device: str, decoded: int = 6) -> torch.Tensor:
    """Logits of every position: a prompt in two chunks, then token by token, through shuffled blocks."""
    index = torch.int64 if device == "cpu" else torch.int32
    cache = decoder.new_cache(12, BLOCK)
    table = torch.tensor([7, 3, 9, 1, 5, 2, 8, 4], dtype=index, device=device)
    ids = ids.to(device)
    prompt = len(ids) - decoded
    cut = prompt // 2
    parts = [
        decoder.prefill(ids[:cut], 0, table, cache, len(ids)),
        decoder.prefill(ids[cut:prompt], cut, table, cache, len(ids)),
    ]
    for at in range(prompt, len(ids)):
        position = torch.tensor([at], dtype=index, device=device)
        length = torch.tensor([len(ids)], dtype=index, device=device)
        parts.append(decoder.decode(ids[at : at + 1], position, table[None], cache, length))
    # few rows at a time, so that the last matrix meets the kernels of decoding as well
    return torch.cat([decoder.logits(part.contiguous()) for part in parts]).cpu()


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    assert torch.isfinite(got).all()
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 6e-3), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("name", WAVE1)
def test_every_family_gives_the_logits_of_the_cpu(name: str, dtype: str, bound: float) -> None:
    directory = checkpoint(name)
    vocab = read_spec(directory).spec.vocab
    ids = torch.randint(0, vocab, (70,), generator=torch.Generator().manual_seed(4))
    want = logits_of(build(directory, "cpu", dtype), ids, "cpu")
    got = logits_of(build(directory, "cuda", dtype), ids, "cuda")
    assert relative(got, want) <= bound


@pytest.mark.parametrize("weights", ["16", "int4"])
@pytest.mark.parametrize("kv", ["16", "int8", "int4"])
def test_quantised_models_give_the_logits_of_the_cpu(weights: str, kv: str) -> None:
    ids = torch.randint(3, 512, (100,), generator=torch.Generator().manual_seed(5))
    want = logits_of(build(STORIES, "cpu", "float16", weights, kv), ids, "cpu")
    got = logits_of(build(STORIES, "cuda", "float16", weights, kv), ids, "cuda")
    # codes of the cache may round to the neighbour where the two backends differ in the last bit
    assert relative(got, want) <= (1e-2 if kv == "16" else 4e-2)


def replies(requests: list[Request], directory: Path = STORIES, **config: object) -> dict[str, list[object]]:
    """Tokens and log-probabilities of each request, on the GPU."""
    settings = {"device": "cuda", "dtype": "float16", "session_len": 512, "cache_max_entry_count": 800}
    backend, client = loaded(directory, **{**settings, **config})
    try:
        client.submit(*requests)
        client.wait([request.id for request in requests])
        return {request.id: [*client.ids(request.id), *chosen(client, request.id)] for request in requests}
    finally:
        backend.close()


def chosen(client: Client, name: str) -> list[float]:
    deltas = [event for event in client.of(name) if isinstance(event, Delta)]
    return [entry.chosen.logprob for delta in deltas for entry in delta.logprobs]


def requests(count: int, sampling: SamplingParams) -> list[Request]:
    return [
        Request(f"r{n}", prompt_ids=(1, 403 + n), sampling=replace(sampling, seed=n)) for n in range(count)
    ]


def test_graphs_equal_single_launches_bit_for_bit() -> None:
    asked = requests(5, SamplingParams(temperature=0.9, top_p=0.95, max_new_tokens=60, logprobs=2))
    assert replies(asked) == replies(asked, graphs=False)


def test_overlap_changes_nothing() -> None:
    asked = requests(3, SamplingParams(temperature=0.9, top_k=40, max_new_tokens=60))
    assert replies(asked) == replies(asked, overlap=False)


def test_a_seed_gives_the_same_tokens_alone_and_among_63_neighbours() -> None:
    sampling = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=100, ignore_eos=True)
    crowd = requests(64, sampling)
    settings = {"max_batch_size": 64, "reproducible": True}
    together = replies(crowd, **settings)
    for request in crowd[::13]:
        assert replies([request], **settings)[request.id] == together[request.id]


def test_greedy_text_is_the_cpus() -> None:
    asked = [Request("r", prompt_ids=(1, 403), sampling=replace(GREEDY, max_new_tokens=100))]
    backend, client = loaded(STORIES, device="cpu")
    try:
        client.submit(*asked)
        client.wait(["r"])
        assert replies(asked)["r"] == client.ids("r")
    finally:
        backend.close()
