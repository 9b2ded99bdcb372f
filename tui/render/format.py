"""Numbers as the screens write them. None is always `n/a`."""

from __future__ import annotations

NA = "n/a"
GIB = 1 << 30


def gib(value: float | None) -> str:
    """Bytes as a bare number of GiB: 141, 33.2, 0.16."""
    if value is None:
        return NA
    size = value / GIB
    if size >= 99.95:
        return f"{size:.0f}"
    return f"{size:.1f}" if size >= 0.995 or size == 0 else f"{size:.2f}"


def size(value: float | None) -> str:
    """Bytes with a unit, in about four characters: 18.5G, 310M, 4K."""
    if value is None:
        return NA
    for unit, factor in (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value >= factor * 0.9995:
            scaled = value / factor
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 or unit in "MK" else f"{scaled:.1f}{unit}"
    return f"{value:.0f}"


def count(value: float | None) -> str:
    """A number in about four characters: 940, 31k, 3.1k, 1.2M."""
    if value is None:
        return NA
    if value < 999.5:
        return f"{value:.0f}"
    for unit, factor in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        scaled = value / factor
        if scaled < 9.95:
            return f"{scaled:.1f}{unit}"
        if scaled < 999.5:
            return f"{scaled:.0f}{unit}"
    return f"{value:.1e}"


def tokens(value: float | None) -> str:
    """A length of text in tokens, its k being 1024 as in a model's context: 940, 4k, 7.5k, 128k, 1M."""
    if value is None:
        return NA
    for unit, factor in (("M", 1 << 20), ("k", 1 << 10)):
        if value >= factor:
            scaled = value / factor
            return f"{scaled:.0f}{unit}" if scaled >= 9.95 or scaled == int(scaled) else f"{scaled:.1f}{unit}"
    return f"{value:.0f}"


def rate(tokens_per_s: float | None) -> str:
    """Tokens per second: 0, 7.4, 71.4, 142, 3.1k."""
    if tokens_per_s is None:
        return NA
    if 0 < tokens_per_s < 99.95:
        return f"{tokens_per_s:.1f}"
    return count(tokens_per_s)


def percent(value: float | None) -> str:
    """A percentage, given in percent: 39%."""
    return NA if value is None else f"{value:.0f}%"


def share(part: float | None, whole: float | None) -> float | None:
    """part / whole, or None where it is not known."""
    return None if part is None or not whole else part / whole


def duration(seconds: float | None) -> str:
    """0.21s, 3.0s, 42s, 5m, 3h12, 2d."""
    if seconds is None:
        return NA
    if seconds < 0.995:
        return f"{seconds:.2f}s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    if seconds < 99.5:
        return f"{seconds:.0f}s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02d}" if hours < 48 else f"{hours // 24}d"


def number(value: float | None, unit: str = "") -> str:
    """A whole number and its unit, or n/a without one: 62C, 1755 MHz."""
    return NA if value is None else f"{value:.0f}{unit}"
