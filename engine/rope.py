"""Rotary tables: the cosines and sines by which a position turns a head, for every kind of stretching.

Two kinds choose frequencies by length. The token at position p of a sequence that was admitted with a prompt of
n tokens uses those of length max(n, p + 1): what transformers computes for a prompt and, token by token, for its
continuation with a cache. It depends on (n, p) alone, so a sequence that is recomputed gets the same numbers.
 - dynamic: the base grows with the length beyond `original`.
 - longrope: short or long factors, by whether the length exceeds `original`. At that border all cached keys are
   of the other set: a sequence whose `Rope.salt` changes must be computed anew with its current length as n.
Prompts of different n may share cached keys only where `Rope.salt` is equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .spec import Rope


def inverse_frequencies(rope: Rope, lengths: Tensor | None = None) -> Tensor:
    """Radians per position, float32: [dim / 2], or [n, dim / 2] for lengths [n] where the kind depends on them
    (lengths None: of a short sequence). Formulas: transformers/modeling_rope_utils.py."""
    index = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    plain = 1.0 / rope.theta**index
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain)
    if rope.kind == "longrope":
        short = 1.0 / (torch.tensor(rope.short_factor) * rope.theta**index)
        long = 1.0 / (torch.tensor(rope.long_factor) * rope.theta**index)
        return short if lengths is None else torch.where(lengths.unsqueeze(1) > rope.original, long, short)
    if rope.kind == "dynamic" and lengths is not None:
        stretch = rope.factor * lengths.clamp_min(rope.original) / rope.original - (rope.factor - 1)
        base = rope.theta * stretch ** (rope.dim / (rope.dim - 2))
        return 1.0 / base.unsqueeze(1) ** index
    return plain


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Long wavelengths are stretched by factor, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    blend = (rope.original / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / rope.factor + blend * plain


def _yarn(rope: Rope, plain: Tensor) -> Tensor:
    """NTK by parts (Peng et al. 2023): a ramp over dimensions from kept to stretched frequencies."""

    def dimension(rotations: float) -> float:
        turns = rope.original / (rotations * 2 * math.pi)
        return rope.dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)


class Rotary:
    """cos and sin of any positions, on one device: by calling it, or from its numbers.

    frequencies [dim / 2] float32, radians per position. Where `by_length`: beyond `original` tokens they are `long`
    (longrope), or their base grows by (stretch * length / original - stretch + 1)^(dim / (dim - 2)) (dynamic)."""

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self._rope = rope
        self.by_length = rope.kind in ("dynamic", "longrope")
        self.original, self.attention_factor = rope.original, rope.attention_factor
        self.stretch = rope.factor if rope.kind == "dynamic" else 0.0
        frequencies = inverse_frequencies(rope)
        self.frequencies = frequencies.to(device)
        self.long: Tensor | None = None
        if rope.kind == "longrope":
            self.long = inverse_frequencies(rope, torch.tensor([rope.original + 1]))[0].to(device)
        # cos(-a) = cos(a) and sin(-a) = -sin(a): the sign of the rotate-half form comes with the angle
        self._frequencies = torch.cat((-frequencies, frequencies)).to(device)

    def __call__(self, positions: Tensor, lengths: Tensor | int) -> tuple[Tensor, Tensor]:
        """positions [n] int64; lengths: prompt length of the rows' sequences, [n] or one for all.

        Returns cos and sin, [n, 1, dim] float32 with the attention factor; sin has the sign of the rotate-half
        form, minus in its first half."""
        at, frequencies = positions.view(-1, 1, 1), self._frequencies
        if self.by_length:
            reached = positions + 1
            reached = reached.clamp_min(lengths) if isinstance(lengths, int) else reached.maximum(lengths)
            chosen = inverse_frequencies(self._rope, reached.cpu()).to(positions.device)
            frequencies = torch.cat((-chosen, chosen), 1).unsqueeze(1)
        angles = at * frequencies
        cos, sin, factor = angles.cos(), angles.sin_(), self._rope.attention_factor
        return (cos, sin) if factor == 1 else (cos.mul_(factor), sin.mul_(factor))
