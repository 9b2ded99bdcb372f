"""From stored tensors to the decoder's fused ones: q|k|v and gate|up, of plain or quantised matrices.

What is folded here: fused layouts are split and re-fused as q|k|v and gate|up, interleaved rotary becomes rotate-half
by reordering rows. A fused matrix all of whose parts hold four-bit codes stays so; else all of it becomes plain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels.ops import Dense, Int4
from ..quant.formats import FormatError
from ..quant.formats_dense import dequantise, dequantise_codes
from ..quant.formats_int import Codes, Raw, column_order, half_scales, read_codes, regroup
from .families import Family
from .hfconfig import name_some
from .roles import FUSED, Placed, wrong_part
from .spec import ModelFiles, Spec

_MATRICES = ("qkv", "o", "gate_up", "down")


def head_rows(spec: Spec, layout: Family, role: str) -> Tensor:
    """Row of the fused q|k|v tensor for each row of a stored q, k, v or qkv tensor."""
    queries, keys = spec.heads, spec.kv_heads
    parts = {
        "q": range(queries),
        "k": range(queries, queries + keys),
        "v": range(queries + keys, queries + 2 * keys),
    }
    if role != "qkv":
        heads = list(parts[role])
    elif layout.qkv == "concat":
        heads = list(range(queries + 2 * keys))
    else:
        share = queries // keys
        groups = ([*range(g * share, (g + 1) * share), queries + g, queries + keys + g] for g in range(keys))
        heads = [head for group in groups for head in group]
    plain = torch.arange(spec.head_dim)
    turned = plain.clone()
    if layout.interleaved:  # pair (2i, 2i + 1) becomes (i, i + dim / 2)
        pairs = torch.arange(spec.rope.dim).view(2, -1).t().reshape(-1)
        turned[: spec.rope.dim] = pairs
    within = [turned if head < queries + keys else plain for head in heads]
    return torch.cat([head * spec.head_dim + rows for head, rows in zip(heads, within, strict=True)])


class Fused:
    """The decoder's tensors while they are being filled.

    `tensors` by (layer, role, part), `linears` by (layer, role), as `prepare` makes them; `head` is a last matrix with
    codes of its own. `plain` names what has four-bit codes and could not keep them. Fused matrices are handed to
    `prepare` as soon as they are whole."""

    def __init__(
        self,
        files: ModelFiles,
        dtype: torch.dtype,
        device: torch.device,
        prepare: Callable[[str, Dense | Int4], Any],
    ) -> None:
        self._spec = files.spec
        self._dtype, self._device, self._prepare = dtype, device, prepare
        self.tensors: dict[tuple[int, str, str], Tensor] = {}
        self.linears: dict[tuple[int, str], Any] = {}
        self.head: Int4 | None = None
        self._rows = {role: head_rows(files.spec, files.layout, role) for role in ("q", "k", "v", "qkv")}
        self._width = {
            place.layer: place.shape[1]
            for place in files.placed
            if place.role == "down" and place.part == "weight"
        }
        self._missing = Counter((place.layer, FUSED.get(place.role, place.role)) for place in files.placed)
        self._own = files.int4
        self._waiting: dict[tuple[int, str], list[tuple[Placed, Raw]]] = {}
        self.plain: list[str] = []
        self._suspicious: list[str] = []

    def notices(self) -> tuple[str, ...]:
        """What the user should know of the weights, once all are placed."""
        if not self._suspicious:
            return ()
        return (f"The weights hold NaN or infinity in {name_some(self._suspicious)}.",)

    def suspect(self, place: Placed) -> None:
        """Not all numbers of this tensor are finite."""
        self._suspicious.append(place.tensor.name)

    def placed(self, place: Placed) -> None:
        """What is stored there is in; the layer it completes goes to the backend."""
        key = (place.layer, FUSED.get(place.role, place.role))
        self._missing[key] -= 1
        if self._missing[key]:
            return
        whole = self._assemble(key, self._waiting.pop(key)) if key in self._waiting else None
        if key[1] == "lm_head":
            self.head = whole
        elif key[1] in _MATRICES:
            bias = self.tensors.pop((*key, "bias"), None)
            layer = Dense(self.tensors.pop((*key, "weight")), bias) if whole is None else whole
            self.linears[key] = self._prepare(key[1], layer)

    def quantised(self, place: Placed, raw: Raw) -> None:
        """Take the tensors of a quantised matrix, on the device as stored."""
        key = (place.layer, FUSED.get(place.role, place.role))
        if key in self._own:
            self._waiting.setdefault(key, []).append((place, raw))
            return
        assert place.packed is not None
        try:
            self._put_plain(place, dequantise(place.packed, raw, self._dtype))
        except FormatError as error:
            raise wrong_part(place.parts, error) from None
        if place.packed.int4:
            self.plain.append(place.tensor.name.rpartition(".")[0])

    def target(self, place: Placed) -> tuple[Tensor, int | Tensor]:
        """The tensor that a stored one goes into, and where its rows go: from a first row on, or one by one."""
        total, role = self._total(place)
        return self._get(place, role, (total, *place.shape[1:])), self._where(place)

    def _total(self, place: Placed) -> tuple[int, str]:
        """Rows and role of the fused tensor that a place is a part of."""
        role = FUSED.get(place.role, place.role)
        if role == "qkv":
            return (self._spec.heads + 2 * self._spec.kv_heads) * self._spec.head_dim, role
        if role == "gate_up":
            return 2 * self._width[place.layer], role
        return place.shape[0], role

    def _where(self, place: Placed) -> int | Tensor:
        if place.role in self._rows:
            rows = self._rows[place.role]
            return int(rows[0]) if bool((rows.diff() == 1).all()) else rows
        return self._width[place.layer] if place.role == "up" else 0

    def _get(self, place: Placed, role: str, shape: tuple[int, ...]) -> Tensor:
        key = (place.layer, role, place.part)
        if key not in self.tensors:
            dtype = torch.float32 if role.endswith("norm") else self._dtype
            make = torch.zeros if place.part == "bias" else torch.empty  # a fused bias may be stored in part
            self.tensors[key] = make(shape, dtype=dtype, device=self._device)
        return self.tensors[key]

    def _put_plain(self, place: Placed, weight: Tensor) -> None:
        target, rows = self.target(place)
        _put(target, rows, weight)
        if not bool(torch.isfinite(weight).all()):
            self.suspect(place)

    def _assemble(self, key: tuple[int, str], waiting: list[tuple[Placed, Raw]]) -> Int4 | None:
        """A fused matrix from parts with codes; None where it became a plain one in `tensors`."""
        parts = []
        for place, raw in waiting:
            assert place.packed is not None
            try:
                parts.append((place, read_codes(place.packed, raw)))
            except FormatError as error:
                raise wrong_part(place.parts, error) from None
        waiting.clear()  # as stored, they are needed no more
        orders = [None if codes.natural else column_order(codes) for _, codes in parts]
        alike = all(
            (order is None) == codes.natural and _same(order, orders[0])
            for order, (_, codes) in zip(orders, parts, strict=True)
        )
        scales = [half for _, codes in parts if (half := half_scales(codes.scales, self._dtype)) is not None]
        if alike and len(scales) == len(parts):
            return self._int4_of(key, parts, scales, orders[0])
        for place, codes in parts:
            self._put_plain(place, dequantise_codes(codes, self._dtype))
            self.plain.append(place.tensor.name.rpartition(".")[0])
        return None

    def _int4_of(
        self,
        key: tuple[int, str],
        parts: list[tuple[Placed, Codes]],
        scales: list[Tensor],
        order: Tensor | None,
    ) -> Int4:
        """Parts of one order of columns, with their scales in float16, as one matrix."""
        group, columns = self._own[key], parts[0][0].shape[1]
        total, _ = self._total(parts[0][0])

        def fused(width: int, dtype: torch.dtype, values: list[Tensor]) -> Tensor:
            whole = torch.empty(total, width, dtype=dtype, device=self._device)
            for (place, _), part in zip(parts, values, strict=True):
                _put(whole, self._where(place), part)
            return whole

        def spread(values: Tensor, codes: Codes) -> Tensor:
            return regroup(values, codes.group, group, columns)

        groups = -(-columns // group)
        zeros = [spread(codes.zeros, codes) for _, codes in parts]
        halves = [spread(half, codes) for half, (_, codes) in zip(scales, parts, strict=True)]
        every = [
            codes.codes if order is None or codes.order is not None else codes.codes[:, order]
            for _, codes in parts
        ]
        return Int4(
            fused(columns, torch.uint8, every),
            fused(groups, torch.float16, halves),
            fused(groups, torch.uint8, zeros),
            group,
            self.tensors.pop((*key, "bias"), None),
            order,
        )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _put(target: Tensor, rows: int | Tensor, values: Tensor) -> None:
    if isinstance(rows, int):
        target[rows : rows + len(values)].copy_(values)
    else:
        target.index_copy_(0, rows.to(target.device), values.to(target.dtype))
