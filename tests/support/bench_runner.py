"""Decode speed of the runner beside `transformers.generate`, same model, same process (issue 2, bar 3).

    .venv/bin/python tests/support/bench_runner.py MODEL_DIRECTORY [tokens] [threads]

Greedy, float32, CPU. Prints one JSON line: tokens/s, ratios, and microseconds of a step by part.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from lmtop.engine.runner import Runner
from lmtop.engine.spec import read_spec
from lmtop.engine.types import GREEDY, RowStart, SamplingParams, StepPlan, TableDiff, Work

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.tiny import load

BLOCK = 64


class Timed:
    """A decoder whose calls are timed: what is left of a step is the host and the draw."""

    def __init__(self, inner: object) -> None:
        self.inner = inner
        self.seconds = 0.0

    def __getattr__(self, name: str) -> object:
        method = getattr(self.inner, name)

        def call(*args: object) -> object:
            begun = time.perf_counter()
            try:
                return method(*args)
            finally:
                self.seconds += time.perf_counter() - begun

        return call


def decode(
    decoder: object, vocab: int, rows: int, tokens: int, sampling: SamplingParams
) -> tuple[float, list]:
    """Seconds to decode `tokens` of each of `rows` rows after a one-token prompt, and the first row's ids."""
    blocks = -(-(tokens + 1) // BLOCK)
    runner = Runner(
        decoder, max_batch=rows, num_blocks=rows * blocks + 1, block_size=BLOCK, max_context=tokens + 1,
        vocab=vocab, device=torch.device("cpu"), eos_ids=(),
    )  # fmt: skip
    starts = tuple(RowStart(row, row, sampling, row, (1,), 1, 1) for row in range(rows))
    tables = tuple(
        TableDiff(row, 0, tuple(range(1 + row * blocks, 1 + (row + 1) * blocks))) for row in range(rows)
    )
    prefill = tuple(Work(row, 0, row, 0, 1, (1,), True) for row in range(rows))
    ids = [runner.collect(runner.launch(StepPlan(0, starts, tables, (), prefill))).rows[0].token]
    begun = time.perf_counter()
    for step in range(1, tokens):
        works = tuple(Work(row, 0, row, step, 1, (), True) for row in range(rows))
        ids.append(runner.collect(runner.launch(StepPlan(step, (), (), works, ()))).rows[0].token)
    return time.perf_counter() - begun, ids


def main(directory: Path, tokens: int = 256, threads: int = 2) -> None:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    vocab = read_spec(directory).spec.vocab
    decoder = load(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    prompt = torch.tensor([[1]])
    more = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def best(run: object, times: int = 5) -> float:
        return min(run() for _ in range(times))  # type: ignore[operator]

    def generate() -> float:
        begun = time.perf_counter()
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **more)
        return time.perf_counter() - begun

    decode(decoder, vocab, 1, 8, GREEDY)
    theirs = tokens / best(generate, 3)
    one = (tokens - 1) / best(lambda: decode(decoder, vocab, 1, tokens, GREEDY)[0])
    eight = 8 * (tokens - 1) / best(lambda: decode(decoder, vocab, 8, tokens, GREEDY)[0])
    sampled = (tokens - 1) / best(lambda: decode(decoder, vocab, 1, tokens, SamplingParams())[0])
    host = {}
    for rows in (1, 8):
        timed = Timed(decoder)
        total = decode(timed, vocab, rows, tokens, GREEDY)[0]
        host[rows] = round(1e6 * (total - timed.seconds) / tokens, 1)
    print(
        json.dumps(
            {
                "model": directory.name,
                "threads": threads,
                "transformers_tps": round(theirs),
                "one_row_tps": round(one),
                "eight_rows_tps": round(eight),
                "one_row_default_sampling_tps": round(sampled),
                "one_row_over_transformers": round(one / theirs, 2),
                "eight_rows_over_one": round(eight / one, 2),
                "host_and_draw_us_per_step": host,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:4]))
