// Packed 4-bit weights (w4.py) to the A operand of the tensor cores, in the model's type.
#pragma once
#include "common.cuh"

constexpr int GROUPS_PER_STEP = 128 / GROUP;
constexpr int PAIR_BYTES = 64 * GROUPS_PER_STEP;  // scales and zeros of 16 rows and 128 columns

// The scales and zeros of rows r and r + 8, each twice in a word.
struct Scales {
  u32 scale[2], zero[2];
#if DTYPE_BF16
  u32 rest[2];  // what the bfloat16 of the fp16 scale lacks
#endif
};

INLINE float scale_of(u32 pair) { return __half2float(__ushort_as_half((u16)(pair & 0xffff))); }

// pair: of this lane's rows: (scale fp16, zero integer) of r, of r + 8.
INLINE Scales scales_of(uint2 pair) {
  Scales s;
  const u32 both[2] = {pair.x, pair.y};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const u32 zero = __byte_perm(both[i], 0, 0x3232);
#if DTYPE_BF16
    const float exact = scale_of(both[i]);
    const T head = from_float(exact), tail = from_float(exact - to_float(head));
    s.scale[i] = __byte_perm(__bfloat16_as_ushort(head), 0, 0x1010);
    s.rest[i] = __byte_perm(__bfloat16_as_ushort(tail), 0, 0x1010);
    s.zero[i] = zero | 0x43004300;  // 128 + zero
#else
    s.scale[i] = __byte_perm(both[i], 0, 0x1010);
    s.zero[i] = i ? zero << 4 | 0x54005400 : zero | 0x64006400;  // 64 + zero : 1024 + zero
#endif
  }
  return s;
}

// One word, 16 columns of the lane's rows, to the four registers of an m16k16 A fragment: q - zero, exact.
INLINE void subtract_zero(u32 word, const Scales& s, u32* a) {
#if DTYPE_BF16
  const u32 raw[4] = {and_or(word, 0x000f000f, 0x43004300), and_or(word >> 4, 0x000f000f, 0x43004300),  // 128 + q
                      and_or(word >> 8, 0x000f000f, 0x43004300), and_or(word >> 12, 0x000f000f, 0x43004300)};
#else
  const u32 high = word >> 8;
  const u32 raw[4] = {and_or(word, 0x000f000f, 0x64006400), and_or(word, 0x00f000f0, 0x54005400),  // 1024 + q, 64 + q
                      and_or(high, 0x000f000f, 0x64006400), and_or(high, 0x00f000f0, 0x54005400)};
#endif
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const T2 d = __hsub2(*(const T2*)&raw[i], *(const T2*)&s.zero[i % 2]);
    a[i] = *(const u32*)&d;
  }
}

// The same times the scale, rounded once.
INLINE void dequantise(u32 word, const Scales& s, u32* a) {
  subtract_zero(word, s, a);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const T2 d = *(const T2*)&a[i], scale = *(const T2*)&s.scale[i % 2];
#if DTYPE_BF16
    const T2 w = __hfma2(d, scale, __hmul2(d, *(const T2*)&s.rest[i % 2]));  // d * rest is exact: 5 + 3 bits
#else
    const T2 w = __hmul2(d, scale);
#endif
    a[i] = *(const u32*)&w;
  }
}
