// The paged cache, one layer of it: [blocks][kv_heads] records. A record holds BLOCK_SIZE tokens of one key-value
// head, contiguous:
//   K rows [BLOCK_SIZE][ROW_BYTES], V rows, then (KV_BITS < 16) K params [BLOCK_SIZE], V params [BLOCK_SIZE].
// A row is the head of one token. KV_BITS 16: HEAD_DIM numbers of type T. 8: one byte a number. 4: byte i of the row
// holds number 2i in its low and 2i + 1 in its high nibble, so that nibble n of a little-endian word is number n.
// Params of a row: (scale, min) as two halves, scale first (low); the value is min + scale * code, unsigned codes.
// What is quantised is the number as a 16-bit cache would store it, i.e. after rounding to T.
#pragma once
#include "common.cuh"

#ifndef KV_BITS
#define KV_BITS 16
#endif
#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef BLOCK_SIZE
#define BLOCK_SIZE 64
#endif

#define INF __int_as_float(0x7f800000)
constexpr bool QUANTISED = KV_BITS < 16;
constexpr int ROW_BYTES = HEAD_DIM * KV_BITS / 8;
constexpr int PARAM_BYTES = QUANTISED ? 4 : 0;
constexpr int V_OFFSET = BLOCK_SIZE * ROW_BYTES;
constexpr int K_PARAMS_OFFSET = 2 * V_OFFSET;
constexpr int V_PARAMS_OFFSET = K_PARAMS_OFFSET + BLOCK_SIZE * PARAM_BYTES;
constexpr int RECORD_BYTES = V_PARAMS_OFFSET + BLOCK_SIZE * PARAM_BYTES;

static_assert(HEAD_DIM % 8 == 0 && HEAD_DIM <= 256, "a head has 8, 16 .. 256 numbers");
static_assert(KV_BITS == 16 || KV_BITS == 8 || KV_BITS == 4, "a cached number has 16, 8 or 4 bits");

INLINE u8* kv_record(u8* cache, int block, int kv_heads, int kv_head) {
  return cache + ((i64)block * kv_heads + kv_head) * RECORD_BYTES;
}
INLINE const u8* kv_record(const u8* cache, int block, int kv_heads, int kv_head) {
  return cache + ((i64)block * kv_heads + kv_head) * RECORD_BYTES;
}

// --- one head, spread over a warp ---------------------------------------------------------------------------------
// Lane l holds numbers l * PER_LANE .. + PER_LANE - 1; lanes beyond HEAD_DIM hold nothing (see holds_head).
constexpr int PER_LANE = HEAD_DIM > 128 ? 8 : HEAD_DIM > 64 ? 4 : HEAD_DIM > 32 ? 2 : 1;

INLINE bool holds_head(int lane) { return lane * PER_LANE < HEAD_DIM; }
INLINE float rounded(float x) { return to_float(from_float(x)); }

INLINE float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

INLINE float warp_least(float x) {
#if ARCH >= 800  // as integers of the same order: one instruction instead of five exchanges
  const int bits = __float_as_int(x);
  const int least = __reduce_min_sync(~0u, bits ^ (bits >> 31 & 0x7fffffff));
  return __int_as_float(least ^ (least >> 31 & 0x7fffffff));
#else
#pragma unroll
  for (int step = 16; step; step >>= 1) x = fminf(x, __shfl_xor_sync(~0u, x, step));
  return x;
#endif
}

// This lane's numbers of the head at x, after the optional RMS norm (gain: HEAD_DIM floats or null) and the rotation
// of the first rope_dim: pairs (i, i + rope_dim / 2), cos and sin [rope_dim / 2]. Rounded to T after each. All lanes
// of the warp must call.
INLINE void load_head(float* out, const T* x, const float* gain, float eps, const float* cos, const float* sin,
                      int rope_dim, int lane) {
  const bool holds = holds_head(lane);
  const int half = rope_dim >> 1;
  float other[PER_LANE], c[PER_LANE], s[PER_LANE], sum = 0.f;
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    const int e = lane * PER_LANE + i;
    const bool turns = holds && e < rope_dim;
    const bool first = e < half;
    const int pair = first ? e : e - half;
    out[i] = holds ? to_float(x[e]) : 0.f;
    other[i] = turns ? to_float(x[first ? e + half : pair]) : 0.f;
    c[i] = turns ? cos[pair] : 1.f;
    s[i] = turns ? (first ? -sin[pair] : sin[pair]) : 0.f;
    sum += out[i] * out[i];
  }
  if (gain) {
    const float norm = rsqrtf(warp_sum(sum) / HEAD_DIM + eps);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const int e = lane * PER_LANE + i;
      if (!holds) continue;
      out[i] = rounded(out[i] * norm * gain[e]);
      if (e < rope_dim) other[i] = rounded(other[i] * norm * gain[e < half ? e + half : e - half]);
    }
  }
#pragma unroll
  for (int i = 0; i < PER_LANE; i++)
    if (lane * PER_LANE + i < rope_dim) out[i] = rounded(__fadd_rn(__fmul_rn(out[i], c[i]), __fmul_rn(other[i], s[i])));
}

// The codes of a head's numbers and its (scale, min): scale = (max - min) / (2^KV_BITS - 1) and min rounded to half
// first, then code = round((x - min) / scale), 0 where scale is 0. All lanes of the warp must call.
INLINE half2 quantise_head(u32* codes, const float* x, int lane) {
  constexpr float TOP = (1 << KV_BITS) - 1;
  const bool holds = holds_head(lane);
  float low = holds ? x[0] : INF, high = holds ? x[0] : -INF;
#pragma unroll
  for (int i = 1; i < PER_LANE; i++) {
    if (holds) low = fminf(low, x[i]), high = fmaxf(high, x[i]);
  }
  low = warp_least(low), high = -warp_least(-high);
  const half2 params = __floats2half2_rn(__fdiv_rn(high - low, TOP), low);
  const float scale = __low2float(params), min = __high2float(params);
  const float inverse = scale > 0.f ? __frcp_rn(scale) : 0.f;
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    // (x - min) / scale, correctly rounded (Markstein 1990), without the slow path of the division
    const float guess = (x[i] - min) * inverse;
    const float code = rintf(fmaf(fmaf(-guess, scale, x[i] - min), inverse, guess));
    codes[i] = (u32)fminf(fmaxf(code, 0.f), TOP);
  }
  return params;
}

// Write a head into its row (of a record, or a copy in shared memory). All lanes of the warp must call.
INLINE void store_row(u8* row, const float* x, int lane) {  // KV_BITS 16
  if (!holds_head(lane)) return;
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) ((T*)row)[lane * PER_LANE + i] = from_float(x[i]);
}
INLINE void store_codes(u8* row, const u32* codes, int lane) {  // KV_BITS 8, 4
  const bool holds = holds_head(lane);
  if constexpr (KV_BITS == 8) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
      if (holds) row[lane * PER_LANE + i] = (u8)codes[i];
  } else if constexpr (PER_LANE == 1) {  // two lanes share a byte
    const u32 next = __shfl_down_sync(~0u, codes[0], 1);
    if (holds && lane % 2 == 0) row[lane / 2] = (u8)(codes[0] | next << 4);
  } else {
#pragma unroll
    for (int i = 0; i < PER_LANE; i += 2)
      if (holds) row[(lane * PER_LANE + i) / 2] = (u8)(codes[i] | codes[i + 1] << 4);
  }
}

// --- reading ----------------------------------------------------------------------------------------------------------
// An integer below 1024 in a half's low bits is the subnormal code * 2^-24, which tensor cores multiply exactly: codes
// enter a product by a mask alone, and its sum is multiplied by CODE_UNIT.
constexpr float CODE_UNIT = 16777216.f;

// The numbers of one word in order, min + scale * code, as halves: int8 four, int4 eight. params: (scale, min).
INLINE void dequantise_word(half2* out, u32 word, half2 params) {
  const half2 scale = __low2half2(params), min = __high2half2(params);
  const half2 base = __float2half2_rn(1024.f);  // 1024 + code, exact
#pragma unroll
  for (int i = 0; i < 16 / KV_BITS; i++) {
    u32 pair;  // code 2i in the low half, 2i + 1 in the high one
    if constexpr (KV_BITS == 8) {
      pair = __byte_perm(word, 0x64646464u, i ? 0x7372 : 0x7170);
    } else {
      const u32 byte = word >> 8 * i;
      pair = (byte & 0xfu) | (byte & 0xf0u) << 12 | 0x64006400u;
    }
    out[i] = __hfma2(__hsub2(*(half2*)&pair, base), scale, min);
  }
}
