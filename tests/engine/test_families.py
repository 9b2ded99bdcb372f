"""Every wave-1 family through the whole engine: the ids that transformers generates, alone and in company."""

import random
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from support.engines import loaded
from support.tiny import NATIVE, SEEDS, WAVE1, checkpoint

from lmtop.engine.types import GREEDY, Request, SamplingParams

NO_EOS = ((2, -100.0),)
NEW = 64
LENGTHS = (5, 16, 33, 48)  # on both sides of the sliding windows (16) and of the original lengths (32)


def reference(name: str, seed: int = 0) -> tuple[tuple[int, ...], list[int]]:
    with safe_open(checkpoint(name, seed) / "reference.safetensors", "pt") as file:
        return tuple(file.get_tensor("input_ids")[0].tolist()), file.get_tensor("generated")[0].tolist()


def as_generated(name: str) -> SamplingParams:
    """The native references were made with eos suppressed, the remote layouts' without regard to it."""
    return replace(GREEDY, max_new_tokens=8, ignore_eos=True, logit_bias=NO_EOS if name in NATIVE else ())


def generate(name: str, prompts: torch.Tensor, count: int) -> list[list[int]]:
    """What transformers continues `prompts` [rows, length] with; eos is not among the choices.

    A new model each time: some rotary tables remember the longest sequence so far.
    """
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float32)
    with torch.inference_mode():
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )
    return out[:, prompts.shape[1] :].tolist()


@pytest.mark.parametrize("name", NATIVE)
def test_check_01_greedy_equals_transformers_generate(name: str) -> None:
    """8 prompts x 64 tokens (fewer where the context ends), one at a time and all at once.

    The two best logits of these 10,752 choices are at least 7.7e-5 apart: at a tie the order of a sum decides.
    """
    generator = torch.Generator().manual_seed(2)
    expected: dict[tuple[int, ...], list[int]] = {}
    for length in LENGTHS:
        prompts = torch.randint(7, 263, (2, length), generator=generator)
        replies = generate(name, prompts, NEW)
        expected.update(zip(map(tuple, prompts.tolist()), replies, strict=True))
    backend, client = loaded(checkpoint(name), max_batch_size=8, cache_block_seq_len=16, prefix_caching=False)
    info = client.state().info
    assert info is not None
    sampling = replace(GREEDY, max_new_tokens=NEW, ignore_eos=True, logit_bias=NO_EOS)
    numbered = list(enumerate(expected))
    for number, prompt in numbered:
        client.submit(Request(f"alone{number}", prompt_ids=prompt, sampling=sampling))
        client.wait([f"alone{number}"])
    client.submit(*(Request(f"among{n}", prompt_ids=prompt, sampling=sampling) for n, prompt in numbered))
    client.wait([f"among{n}" for n, _ in numbered])
    backend.close()
    for number, prompt in numbered:
        room = min(NEW, info.context_len - len(prompt))
        assert client.ids(f"alone{number}") == expected[prompt][:room], (number, len(prompt))
        assert client.ids(f"among{number}") == expected[prompt][:room], (number, len(prompt))


@pytest.mark.parametrize("style", ["v5", "hub"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WAVE1)
def test_check_01_every_fixture_gives_the_ids_of_its_reference(name: str, seed: int, style: str) -> None:
    """All seeds, both generations of config files, the layouts of remote code; alone, and all in one batch."""
    prompt, generated = reference(name, seed)
    rng = random.Random(f"{name} {seed}")
    backend, client = loaded(checkpoint(name, seed, style), max_batch_size=8, cache_block_seq_len=16)
    sampling = as_generated(name)
    client.submit(Request("alone", prompt_ids=prompt, sampling=sampling))
    client.wait(["alone"])
    company = [
        Request(
            f"c{n}",
            prompt_ids=tuple(rng.randrange(7, 263) for _ in range(rng.randrange(1, 56))),
            sampling=sampling,
        )
        for n in range(7)
    ]
    client.submit(*company[:3], Request("among", prompt_ids=prompt, sampling=sampling), *company[3:])
    client.wait(["among", *(request.id for request in company)])
    backend.close()
    assert client.ids("alone") == generated
    assert client.ids("among") == generated


@pytest.mark.parametrize("name", ["phi3_longrope", "llama_dynamic"])
def test_a_reply_that_grows_past_the_original_length_is_what_transformers_generates(name: str) -> None:
    prompt, _ = reference(name)
    backend, client = loaded(checkpoint(name), cache_block_seq_len=16)
    for length in (20, 31, 32, 33):
        expected = generate(name, torch.tensor([prompt[:length]]), 30)[0]
        for turn in range(2):  # the second time over the prefix cache
            request = Request(
                f"{length}-{turn}",
                prompt_ids=prompt[:length],
                sampling=replace(GREEDY, max_new_tokens=30, ignore_eos=True, logit_bias=NO_EOS),
            )
            client.submit(request)
            client.wait([request.id])
            assert client.ids(request.id) == expected, (length, turn)
    backend.close()
