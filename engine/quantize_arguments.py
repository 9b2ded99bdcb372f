"""The flags of `lmtop quantize` and `lmtop lite`. They are a command's input: no variables, no keys. LMDeploy's names
where it has them; where its flag takes True or False, so does ours."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from .text import one_line
from .types import UsageError


@dataclass(frozen=True, slots=True)
class Flag:
    """`name` is its key in `Options.extra`. Without a metavar it is a truth value and may stand alone."""

    flag: str
    name: str
    metavar: str
    help: str


_SHARED = (
    Flag(
        "--calib-dataset",
        "calib_dataset",
        "DATA",
        "text or chat JSONL file, or LMDeploy's name of a data set (c4, ptb, wikitext2, pileval, ...), which needs "
        "the package datasets (default: a bundled text)",
    ),
    Flag("--calib-samples", "calib_samples", "N", "texts to calibrate with; 0 is without (128)"),
    Flag("--calib-seqlen", "calib_seqlen", "N", "tokens of a text (2048)"),
    Flag(
        "--check-dataset",
        "check_dataset",
        "FILE",
        "text or chat JSONL file for the check at the end (default: a bundled text)",
    ),
    Flag("--w-bits", "w_bits", "4", "bits of a weight: 4"),
    Flag(
        "--w-group-size",
        "w_group_size",
        "N",
        "weights that share a scale: 32, 64, 128, or -1, a whole row (default: the largest that fits)",
    ),
    Flag("--w-sym", "w_sym", "", "zero points in the middle: no asymmetric ranges"),
)
_QUANTIZE = (
    Flag("--out", "out", "DIR", "directory of the quantised model"),
    Flag("--work-dir", "work_dir", "DIR", "LMDeploy's name for --out"),
    Flag(
        "--search",
        "search",
        "{grid,none}",
        "scales: the best of a grid for each matrix, or LMDeploy's rule (grid)",
    ),
    Flag(
        "--method",
        "rounding",
        "{awq,gptq}",
        "awq rounds to nearest; gptq also corrects each error in what follows: better, where many tokens of "
        "fitting text calibrate it (awq)",
    ),
    Flag(
        "--head",
        "quantised_head",
        "{16,int4}",
        "bits of the last matrix; int4 loads here, not everywhere (16)",
    ),
)
_LITE = (
    Flag("--work-dir", "work_dir", "DIR", "directory of the result (work_dir)"),
    Flag(
        "--search-scale",
        "search_scale",
        "",
        "search for the scales, or not (default: unless calibrate left statistics)",
    ),
    Flag(
        "--batch-size",
        "batch_size",
        "N",
        "of no effect: as many texts are computed together as the device likes",
    ),
)
NAMES = (*dict.fromkeys(flag.name for flag in (*_SHARED, *_QUANTIZE, *_LITE)), "force", "method", "more")


def add_quantize(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", nargs="?", help="a directory, a hub id, or demo; 16 bits")
    _add(command, (*_QUANTIZE, *_SHARED))


def add_lite(command: argparse.ArgumentParser) -> None:
    command.add_argument("method", metavar="METHOD", help="auto_awq, calibrate; kv_qparams is not needed")
    command.add_argument("model", metavar="MODEL", nargs="?", help="a directory, a hub id, or demo; 16 bits")
    command.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    _add(command, (*_LITE, *_SHARED))
    command.set_defaults(out=None, search=None, rounding=None, quantised_head=None)


def _add(command: argparse.ArgumentParser, flags: tuple[Flag, ...]) -> None:
    command.add_argument("--force", action="store_true", help="replace the model that is there")
    for flag in flags:
        if flag.metavar:
            command.add_argument(flag.flag, dest=flag.name, metavar=flag.metavar, help=flag.help)
        else:
            command.add_argument(
                flag.flag, dest=flag.name, nargs="?", const="true", metavar="BOOL", help=flag.help
            )


def truth(flag: str, text: str | None) -> bool:
    """LMDeploy's True and False; a flag that stands alone is true."""
    if text is None or text.lower() in ("false", "0", "no"):
        return False
    if text.lower() in ("true", "1", "yes"):
        return True
    raise UsageError(f"{flag} = {one_line(text, 40)!r}: must be true or false")


def integer(flag: str, text: str, low: int, high: int) -> int:
    """A flag's number. UsageError says what it may be."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise UsageError(f"{flag} = {one_line(text, 40)!r}: must be an integer from {low} to {high}")
    return value
