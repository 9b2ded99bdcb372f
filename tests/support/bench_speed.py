"""Decode speed of the whole engine beside `transformers.generate`: same model, same process, taking turns.

    .venv/bin/python tests/support/bench_speed.py MODEL_DIRECTORY [tokens] [rounds]

Greedy, float32, CPU, each with its own default number of threads. Tokens/s of the best round each; the last
line is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from lmtop.engine.types import GREEDY, Request

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.engines import Client, loaded


def ours(client: Client, streams: int, tokens: int, name: str) -> float:
    sampling = replace(GREEDY, max_new_tokens=tokens, ignore_eos=True)
    requests = [Request(f"{name}-{n}", prompt_ids=(1, 403 + n), sampling=sampling) for n in range(streams)]
    begun = time.perf_counter()
    client.submit(*requests)
    client.wait([request.id for request in requests])
    return streams * tokens / (time.perf_counter() - begun)


def theirs(model: object, tokens: int) -> float:
    ids = torch.tensor([[1, 403]])
    begun = time.perf_counter()
    model.generate(  # type: ignore[attr-defined]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return tokens / (time.perf_counter() - begun)


def main(directory: str, tokens: int = 400, rounds: int = 5) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    backend, client = loaded(Path(directory))
    one, eight, hf = [], [], []
    for round in range(rounds + 1):
        one.append(ours(client, 1, tokens, f"one{round}"))
        eight.append(ours(client, 8, tokens, f"eight{round}"))
        hf.append(theirs(model, tokens))
    backend.close()
    best = [max(values[1:]) for values in (one, eight, hf)]  # the first round warms up
    print(
        json.dumps(
            {
                "tokens": tokens,
                "transformers_threads": torch.get_num_threads(),  # the engine's thread has its own number
                "load": os.getloadavg()[0],
                "lmtop_1": round_to(best[0]),
                "lmtop_8": round_to(best[1]),
                "transformers": round_to(best[2]),
                "one_over_transformers": round_to(best[0] / best[2]),
                "eight_over_one": round_to(best[1] / best[0]),
            }
        )
    )


def round_to(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
