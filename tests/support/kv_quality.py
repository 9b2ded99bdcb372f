"""What a quantised KV cache costs in quality, against the 16-bit (on the CPU: 32-bit) one.

    .venv/bin/python tests/support/kv_quality.py [MODEL_DIRECTORY ...] [--prompts 100] [--device cpu]

100 prompts of 64 tokens, each continued greedily by up to 64 tokens. Prints for each model and format the
share of continuations that are the same to the last token, and the Kullback-Leibler divergence KL(16-bit ||
quantised) in nats of the next-token distributions, teacher-forced along the 16-bit continuations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lmtop import EngineConfig, Pipeline, SamplingParams
from lmtop.engine.demo.corpus import conversation
from lmtop.engine.pipeline_prompts import messages
from lmtop.engine.types import GREEDY, Request

LENGTH = 64
FORMATS = ("int8", "int4")


@dataclass(frozen=True)
class Quality:
    """Of one model in one format: share of unchanged continuations, mean and largest KL, in nats."""

    unchanged: float
    mean_kl: float
    max_kl: float
    positions: int

    def __str__(self) -> str:
        return (
            f"{self.unchanged:.0%} of the continuations unchanged, KL mean {self.mean_kl:.2e}, "
            f"largest {self.max_kl:.2e} ({self.positions} positions)"
        )


@contextmanager
def opened(model: str, kv: str, device: str = "cpu", **more: object) -> Iterator[Pipeline]:
    config = EngineConfig(
        model, kv=kv, device=device, session_len=256, max_batch_size=16, max_queue=1000, **more
    )  # type: ignore[arg-type]
    pipe = Pipeline(config)
    try:
        yield pipe
    finally:
        pipe.close()


def prompts(pipe: Pipeline, count: int) -> list[tuple[int, ...]]:
    """Texts of `LENGTH` tokens as the model knows them: conversations where it has a chat format, else its
    own words."""
    if pipe.info.has_template:
        texts = (
            pipe.template.render(messages(list(conversation(5, index))), False) for index in range(10 * count)
        )
        return [tuple(ids[:LENGTH]) for ids in texts if len(ids) >= LENGTH][:count]
    start = pipe.tokenizer.encode("Once upon a time", True)
    made = []
    for seed in range(count):
        sampling = SamplingParams(
            temperature=1.0, top_p=1.0, seed=seed, ignore_eos=True, max_new_tokens=LENGTH - len(start)
        )
        made.append(
            (*start, *_ids(pipe, Request(f"text-{seed}", prompt_ids=tuple(start), sampling=sampling)))
        )
    return made


def greedy(texts: list[tuple[int, ...]], new: int, name: str = "greedy") -> list[Request]:
    sampling = replace(GREEDY, max_new_tokens=new)
    return [
        Request(f"{name}-{index}", prompt_ids=text, sampling=sampling) for index, text in enumerate(texts)
    ]


def continuations(pipe: Pipeline, texts: list[tuple[int, ...]], new: int = LENGTH) -> list[list[int]]:
    """Greedy, all of them at the same time."""
    return [answer.token_ids for answer in pipe.answer_requests(greedy(texts, new))]


def _ids(pipe: Pipeline, request: Request) -> list[int]:
    return [token for piece in pipe.stream_request(request) for token in piece.token_ids]


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL of each row of logits [n, vocabulary], float64 [n]."""
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def measure(model: str, count: int = 100, device: str = "cpu") -> dict[str, Quality]:
    """The quality of each quantised format."""
    with opened(model, "16", device) as pipe:
        texts = prompts(pipe, count)
        expected = continuations(pipe, texts)
        whole = [[*text, *reply] for text, reply in zip(texts, expected, strict=True)]
        logits = pipe.get_logits(whole)
    found = {}
    for kv in FORMATS:
        with opened(model, kv, device) as pipe:
            same = sum(a == b for a, b in zip(continuations(pipe, texts), expected, strict=True))
            kl = torch.cat([divergence(a, b) for a, b in zip(logits, pipe.get_logits(whole), strict=True)])
        found[kv] = Quality(same / len(texts), kl.mean().item(), kl.max().item(), len(kl))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["demo"])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    for model in given.models:
        for kv, quality in measure(model, given.prompts, given.device).items():
            print(f"{Path(model).name} {kv}: {quality}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
