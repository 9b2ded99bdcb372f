"""The packed layout of 4-bit weights: what is packed comes back, and lies where the kernels look for it."""

import pytest
import torch

from lmtop.kernels.cuda.w4 import PackError, pack_w4, unpack_w4


def random_w4(rows: int, columns: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(rows * 7919 + columns)
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    scales = (torch.rand(rows, groups) + 0.1).half()
    return codes, scales, torch.randint(0, 17, (rows, groups), dtype=torch.uint8)


@pytest.mark.parametrize("gate_up", [False, True])
@pytest.mark.parametrize(
    "rows, columns, group", [(16, 128, 128), (48, 256, 64), (22, 96, 32), (6, 384, 128), (2, 64, 64)]
)
def test_round_trip(rows: int, columns: int, group: int, gate_up: bool) -> None:
    given = random_w4(rows, columns, columns // group)
    packed = pack_w4(*given, gate_up=gate_up)
    assert (packed.rows, packed.columns, packed.group) == (rows, columns, group)
    assert packed.padded_rows % 16 == packed.padded_columns % 128 == 0
    assert all(torch.equal(a, b) for a, b in zip(unpack_w4(packed), given, strict=True))


def test_one_group_per_row_becomes_groups_of_128() -> None:
    codes, scales, zeros = random_w4(16, 320, 1)
    packed = pack_w4(codes, scales, zeros)
    assert packed.group == 128
    back = unpack_w4(packed)
    assert torch.equal(back[0], codes)
    assert torch.equal(back[1], scales.expand(-1, 3)) and torch.equal(back[2], zeros.expand(-1, 3))


@pytest.mark.parametrize("gate_up", [False, True])
def test_every_nibble_lies_where_the_fragment_wants_it(gate_up: bool) -> None:
    codes, scales, zeros = random_w4(64, 256, 8)
    packed = pack_w4(codes, scales, zeros, gate_up=gate_up)
    words, pairs = packed.words.tolist(), packed.pairs.tolist()
    for row, k in [(0, 0), (7, 9), (8, 1), (29, 200), (40, 77), (63, 255)]:
        half, within = divmod(row, 32)
        at = (within // 8 * 16 + within % 8 + 8 * half) if gate_up else row
        r, c = at % 16, k % 16
        word = words[at // 16][k // 64][r % 8 * 4 + c % 8 // 2][k % 64 // 16]
        assert (word >> (4 * (r // 8 + 2 * (c // 8)) + 16 * (c % 2))) & 15 == codes[row, k]
        pair = pairs[at // 16][k // 32][r % 8][r // 8] & 0xFFFFFFFF
        assert pair >> 16 == zeros[row, k // 32]
        assert pair & 0xFFFF == int(scales[row, k // 32].view(torch.int16)) & 0xFFFF


def test_padding_weighs_nothing() -> None:
    packed = pack_w4(*random_w4(18, 160, 5))
    codes = packed.words.view(torch.uint8).view(2, 4, 32, 16)
    assert packed.group == 32 and packed.pairs.shape == (2, 8, 8, 2)
    assert not codes[:, 3].any() and not packed.pairs[:, 5:].any() and not packed.pairs[1, :, 2:].any()


@pytest.mark.parametrize("columns, groups", [(256, 3), (256, 16), (128, 2 * 128)])
def test_groups_that_no_kernel_runs_are_refused(columns: int, groups: int) -> None:
    with pytest.raises(PackError, match="groups of"):
        pack_w4(*random_w4(16, columns, groups))


def test_wrong_kinds_are_refused() -> None:
    codes, scales, zeros = random_w4(16, 128, 1)
    with pytest.raises(PackError, match="uint8"):
        pack_w4(codes, scales.float(), zeros)
    with pytest.raises(PackError, match="belong together"):
        pack_w4(codes, scales[:8], zeros)
    with pytest.raises(PackError, match="even"):
        pack_w4(*random_w4(15, 128, 1), gate_up=True)
