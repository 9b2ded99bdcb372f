"""Trains the demo model from scratch: `python -m lmtop.engine.demo.train --out DIR`.

Generates the conversations in parallel, trains the tokenizer on the first of them, trains the network on
the assistant's tokens only, evaluates on held-out prompts and writes everything to `--out`.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from .corpus import conversations
from .eval import evaluate, samples
from .heldout import CASES, SAMPLE_PROMPTS
from .net import Net, Shape, load_net, save_net
from .tokenizer import CONTEXT, END_OF_TEXT, START, render, save_tokenizer, train_tokenizer

_CHUNK = 2000  # conversations per job
_END_ID = 2


@dataclass(frozen=True)
class Data:
    """All conversations end to end: token ids, whether a token is to be predicted, and where each begins."""

    ids: npt.NDArray[np.uint16]
    wanted: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]  # [conversations + 1]


def encode(
    tokenizer: Tokenizer, seed: int, start: int, count: int
) -> tuple[list[int], list[bool], list[int]]:
    """Token ids, wanted flags and lengths of conversations `start` to `start + count - 1`."""
    ids: list[int] = []
    wanted: list[bool] = []
    lengths: list[int] = []
    opening = tokenizer.encode(f"{START}assistant\n").ids
    texts = [render(messages) for messages in conversations(seed, start, count)]
    for encoding in tokenizer.encode_batch(texts):
        row = encoding.ids[:CONTEXT]
        ids += row
        wanted += _answer_flags(row, opening)
        lengths.append(len(row))
    return ids, wanted, lengths


def _answer_flags(row: list[int], opening: list[int]) -> list[bool]:
    """True for the tokens of answers and the end token after each."""
    flags = [False] * len(row)
    inside, at = False, 0
    while at < len(row):
        if not inside and row[at : at + len(opening)] == opening:
            inside, at = True, at + len(opening)
            continue
        flags[at] = inside
        inside = inside and row[at] != _END_ID
        at += 1
    return flags


_Part = tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_], npt.NDArray[np.int64]]
_job_tokenizer: Tokenizer | None = None
_job_seed = 0


def _start_worker(text: str, seed: int) -> None:
    global _job_tokenizer, _job_seed
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _job_tokenizer, _job_seed = Tokenizer.from_str(text), seed


def _job(span: tuple[int, int]) -> _Part:
    assert _job_tokenizer is not None
    ids, wanted, lengths = encode(_job_tokenizer, _job_seed, *span)
    return np.array(ids, np.uint16), np.array(wanted, np.bool_), np.array(lengths, np.int64)


def make_data(tokenizer: Tokenizer, seed: int, count: int, workers: int) -> Data:
    """Generate and encode `count` conversations; the result does not depend on `workers`."""
    spans = [(at, min(_CHUNK, count - at)) for at in range(0, count, _CHUNK)]
    if workers == 1:
        _start_worker(tokenizer.to_str(), seed)
        return _join([_job(span) for span in spans])
    with multiprocessing.get_context("spawn").Pool(
        workers, _start_worker, (tokenizer.to_str(), seed)
    ) as pool:
        return _join(list(pool.imap(_job, spans)))


def _join(parts: list[_Part]) -> Data:
    ids, wanted, lengths = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Data(ids, wanted, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))


def batches(data: Data, tokens: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield index arrays for ever: conversations of similar length, at most `tokens` with their padding.

    Conversations are padded, not packed, so that none sees another's names and answers.
    """
    bounds = (np.diff(data.starts) // 32 + 1) * 32
    epoch = 0
    while True:
        rng = np.random.default_rng((seed, epoch))
        order = np.argsort(bounds + rng.random(len(bounds)), kind="stable")
        cuts, first = [], 0
        for at in range(1, len(order) + 1):
            if at == len(order) or (at + 1 - first) * bounds[order[at]] > tokens:
                cuts.append(order[first:at])
                first = at
        for which in rng.permutation(len(cuts)):
            yield cuts[which]
        epoch += 1


def collate(data: Data, rows: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs [B, T], flat positions whose next token is wanted [N], and those tokens [N]."""
    starts, lengths = data.starts[rows], data.starts[rows + 1] - data.starts[rows]
    width = int(lengths.max())
    column = np.arange(width)
    inside = column[None] < lengths[:, None]
    where = np.minimum(starts[:, None] + column[None], len(data.ids) - 1)
    ids = np.where(inside, data.ids[where], 0).astype(np.int64)
    wanted = data.wanted[where] & inside
    at = np.flatnonzero(np.pad(wanted[:, 1:], ((0, 0), (0, 1))))
    return torch.from_numpy(ids), torch.from_numpy(at), torch.from_numpy(ids.ravel()[at + 1])


def optimizer_for(net: Net, device: torch.device) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    matrices = [p for p in net.parameters() if p.dim() == 2]
    gains = [p for p in net.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), fused=device.type == "cuda")


def train(net: Net, data: Data, args: argparse.Namespace) -> list[dict[str, float]]:
    """Train in place for `args.steps` steps or `args.minutes`, whichever ends first; return the loss curve.

    The learning rate follows a cosine over whichever limit is nearer, so it always ends low.
    """
    device = next(net.parameters()).device
    optimizer = optimizer_for(net, device)
    stream = batches(data, args.batch_tokens, args.seed)
    curve: list[dict[str, float]] = []
    begin, seen, recent = time.perf_counter(), 0, []
    step, progress = 0, 0.0
    while progress < 1.0:
        ids, at, target = (t.to(device, non_blocking=True) for t in collate(data, next(stream)))
        rate = args.lr * min((step + 1) / args.warmup, 0.5 + 0.5 * math.cos(math.pi * progress) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            hidden = net(ids).flatten(0, 1)[at]
            loss = F.cross_entropy(net.logits(hidden).float(), target)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        step += 1
        recent.append(loss.detach())
        if step % args.log_every == 0 or step == args.steps:
            mean = torch.stack(recent).mean().item()
            recent.clear()
            seconds = time.perf_counter() - begin
            curve.append({"step": step, "loss": round(mean, 4), "lr": rate, "tokens": seen, "seconds": round(seconds, 1)})  # fmt: skip
            print(
                f"step {step} loss {mean:.4f} lr {rate:.2e} tokens {seen / 1e6:.1f}M {seconds:.0f} s",
                flush=True,
            )
        if step % args.save_every == 0 and step < args.steps:
            save_net(net, args.out)  # a run that is killed leaves its last state
        progress = max(step / args.steps, (time.perf_counter() - begin) / (60 * args.minutes))
    return curve


def held_out_loss(net: Net, data: Data) -> float:
    """Mean loss on conversations of a seed that training did not use."""
    device = next(net.parameters()).device
    total = count = 0.0
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for first in range(0, len(data.starts) - 1, 64):
            rows = np.arange(first, min(first + 64, len(data.starts) - 1))
            ids, at, target = (t.to(device) for t in collate(data, rows))
            logits = net.logits(net(ids).flatten(0, 1)[at]).float()
            total += float(F.cross_entropy(logits, target, reduction="sum"))
            count += len(target)
    return total / count


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the records")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--minutes", type=float, default=1000.0, help="stop (with the rate run down) by then")
    parser.add_argument("--conversations", type=int, default=1_500_000)
    parser.add_argument("--batch-tokens", type=int, default=65536)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=1000, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--eval-cases", type=int, default=len(CASES), help="how many held-out cases to run")
    parser.add_argument("--eval-tokens", type=int, default=250, help="longest answer in the evaluation")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Generate, train, save, evaluate."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    begin = time.perf_counter()
    first = conversations(args.seed, 0, min(40_000, args.conversations))
    tokenizer = train_tokenizer(message["content"] for messages in first for message in messages)
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    save_tokenizer(tokenizer, args.out)
    data = make_data(tokenizer, args.seed, args.conversations, args.workers)
    print(f"{args.conversations} conversations, {len(data.ids) / 1e6:.1f}M tokens, {data.wanted.sum() / 1e6:.1f}M "
          f"of answers, {time.perf_counter() - begin:.0f} s", flush=True)  # fmt: skip
    net = Net(Shape(vocab=tokenizer.get_vocab_size())).to(device)
    print(f"{sum(p.numel() for p in net.parameters())} parameters on {device}", flush=True)
    curve = train(net, data, args)
    save_net(net, args.out)
    report(args, tokenizer, data, curve, device)


def report(
    args: argparse.Namespace,
    tokenizer: Tokenizer,
    data: Data,
    curve: list[dict[str, float]],
    device: torch.device,
) -> None:
    """Evaluate the model as it was saved and write `training.json`, `eval.txt` and `samples.txt`."""
    net = load_net(args.out).to(device).eval()
    other = make_data(
        tokenizer, args.seed + 1_000_000, max(4, min(4000, args.conversations // 20)), workers=1
    )
    record = {
        "arguments": {key: str(value) for key, value in vars(args).items() if key != "out"},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "parameters": sum(p.numel() for p in net.parameters()),
        "tokens": len(data.ids),
        "answer_tokens": int(data.wanted.sum()),
        "held_out_loss": round(held_out_loss(net, other), 4),
        "curve": curve,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"held-out loss {record['held_out_loss']}", flush=True)
    text = evaluate(net, tokenizer, CASES[: args.eval_cases], args.eval_tokens)
    (args.out / "eval.txt").write_text(text)
    print(text, flush=True)
    shown = SAMPLE_PROMPTS if args.eval_cases >= len(CASES) else SAMPLE_PROMPTS[:2]
    (args.out / "samples.txt").write_text(samples(net, tokenizer, shown, 2 * args.eval_tokens))


if __name__ == "__main__":
    main()
