"""Reading the flags of the benchmarks."""

from __future__ import annotations

from contextlib import suppress

from .text import one_line
from .types import UsageError


def numbers(flag: str, text: str, high: int, many: bool = True, low: int = 1) -> tuple[int, ...]:
    """A flag's integers, each once; UsageError for anything else."""
    numbers: list[int] = []
    with suppress(ValueError):
        numbers = [int(part) for part in text.split(",")]
    if not numbers or (len(numbers) > 1 and not many) or not all(low <= n <= high for n in numbers):
        what = "integers like 1,16,64, each" if many else "an integer"
        raise UsageError(f"{flag} = {one_line(text, 60)!r}: must be {what} from {low} to {high}")
    return tuple(dict.fromkeys(numbers))
