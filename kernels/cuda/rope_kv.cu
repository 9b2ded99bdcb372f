// Prefill's step between the qkv product and attention: optional RMS norm of q and k heads, rotation, quantisation,
// write into the paged cache. Same order of roundings as load_head and quantise_head of kv.cuh, but a lane holds
// eight numbers: 16-byte loads and stores.
#include "kv.cuh"

#ifndef ROPE_DIM
#define ROPE_DIM HEAD_DIM
#endif
#ifndef QK_NORM
#define QK_NORM 0
#endif

constexpr int CHUNKS = HEAD_DIM / 8;
constexpr int LANES = CHUNKS <= 1 ? 1 : CHUNKS <= 2 ? 2 : CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : 32;
constexpr int HALF = ROPE_DIM / 2;
constexpr int THREADS = 256;

union Chunk {  // eight numbers of a head
  uint4 bits;
  u32 words[4];
  T2 pairs[4];
};

template <typename Combine> INLINE float over_lanes(float x, Combine combine) {
#pragma unroll
  for (int step = LANES / 2; step; step >>= 1) x = combine(x, __shfl_xor_sync(~0u, x, step, LANES));
  return x;
}
INLINE float add(float a, float b) { return a + b; }

INLINE void to_floats(float* x, const Chunk& chunk) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 p = to_float2(chunk.pairs[j]);
    x[2 * j] = p.x, x[2 * j + 1] = p.y;
  }
}
INLINE void from_floats(Chunk& chunk, const float* x) {
#pragma unroll
  for (int j = 0; j < 4; j++) chunk.pairs[j] = from_float2(x[2 * j], x[2 * j + 1]);
}

INLINE void normalise(Chunk& chunk, const float* gain, float eps, bool holds, int lane) {
  float x[8], sum = 0.f;
  to_floats(x, chunk);
#pragma unroll
  for (int j = 0; j < 8; j++) sum += x[j] * x[j];
  const float norm = rsqrtf(over_lanes(sum, add) / HEAD_DIM + eps);
#pragma unroll
  for (int j = 0; j < 8; j++) x[j] = holds ? x[j] * norm * gain[8 * lane + j] : 0.f;
  from_floats(chunk, x);
}

// cos, sin: of this token, HALF each.
INLINE void rotate(Chunk& chunk, const float* cos, const float* sin, int lane) {
  float x[8], other[8], c[8] = {}, s[8] = {};
  if constexpr (HALF % 8 == 0) {
    if (lane < ROPE_DIM / 8) {
      const int pair = 8 * lane < HALF ? 8 * lane : 8 * lane - HALF;
#pragma unroll
      for (int j = 0; j < 8; j += 4) {
        *(float4*)(c + j) = *(const float4*)(cos + pair + j);
        *(float4*)(s + j) = *(const float4*)(sin + pair + j);
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const int e = 8 * lane + j, pair = e < HALF ? e : e - HALF;
      if (e < ROPE_DIM) c[j] = cos[pair], s[j] = sin[pair];
    }
  }
  to_floats(x, chunk);
  if constexpr (HALF % 8 == 0) {  // the partner is a whole lane away
    const int from = lane < HALF / 8 ? lane + HALF / 8 : lane - HALF / 8;
    Chunk partner;
#pragma unroll
    for (int j = 0; j < 4; j++) partner.words[j] = __shfl_sync(~0u, chunk.words[j], from, LANES);
    to_floats(other, partner);
  } else {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      constexpr int UP = HALF, DOWN = 256 - HALF;  // 256: keeps the index positive, a multiple of 8
      const float up = __shfl_sync(~0u, x[(j + UP) % 8], lane + (j + UP) / 8, LANES);
      const float down = __shfl_sync(~0u, x[(j + DOWN) % 8], lane + (j + DOWN) / 8 - 32, LANES);
      other[j] = 8 * lane + j < HALF ? up : down;
    }
  }
#pragma unroll
  for (int j = 0; j < 8; j++)
    if (8 * lane + j < ROPE_DIM) x[j] = x[j] * c[j] + (8 * lane + j < HALF ? -other[j] : other[j]) * s[j];
  from_floats(chunk, x);
}

// Write a head to its cache row, and its params.
INLINE void write(u8* row, half2* params, const Chunk& chunk, bool holds, int lane) {
  if constexpr (!QUANTISED) {
    if (holds) ((uint4*)row)[lane] = chunk.bits;
  } else {
    constexpr float TOP = (1 << KV_BITS) - 1;
    float x[8];
    to_floats(x, chunk);
    float low = INF, high = -INF;
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (holds) low = fminf(low, x[j]), high = fmaxf(high, x[j]);
    low = over_lanes(low, [](float a, float b) { return fminf(a, b); });
    high = over_lanes(high, [](float a, float b) { return fmaxf(a, b); });
    const half2 both = __floats2half2_rn(__fdiv_rn(high - low, TOP), low);
    const float scale = __low2float(both), min = __high2float(both), inverse = scale > 0.f ? __frcp_rn(scale) : 0.f;
    u32 codes[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float above = x[j] - min, rough = above * inverse;
      const float code = rintf(fmaf(fmaf(-rough, scale, above), inverse, rough));  // above / scale to the last bit
      codes[j] = (u32)fminf(fmaxf(code, 0.f), TOP);
    }
    u32 words[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; j++) words[j * KV_BITS / 32] |= codes[j] << (j * KV_BITS % 32);
    if (holds) {
      if constexpr (KV_BITS == 8) ((uint2*)row)[lane] = make_uint2(words[0], words[1]);
      else ((u32*)row)[lane] = words[0];
      if (lane == 0) *params = both;
    }
  }
}

// qkv [tokens, (heads + 2 kv_heads) * HEAD_DIM] of one sequence at positions start, start + 1 ..: q and k are rotated
// in place, k and v written to the blocks of `table`. gain [heads + kv_heads, HEAD_DIM] float32 (QK_NORM); cos, sin
// [tokens, ROPE_DIM / 2]. Grid (tokens, heads of all kinds / heads of a CTA).
extern "C" __global__ void __launch_bounds__(THREADS)
    rope_kv_write(T* qkv, const float* cos, const float* sin, const int* table, u8* cache, const float* gain,
                  float eps, int start, int heads, int kv_heads) {
  constexpr int PER_PASS = THREADS / LANES;
  pdl_launch();
  pdl_wait();
  const int token = blockIdx.x, position = start + token;
  const int lane = threadIdx.x % LANES, first = threadIdx.x / LANES;
  const bool holds = lane < CHUNKS;
  const int turned = heads + kv_heads, all = turned + kv_heads;
  uint4* rows = (uint4*)(qkv + (i64)token * all * HEAD_DIM);
  const int base = blockIdx.y * PER_PASS, head = base + first;
  const bool here = holds && head < all;
  Chunk chunk;
  chunk.bits = here ? rows[head * CHUNKS + lane] : make_uint4(0, 0, 0, 0);
  if (base < turned) {  // whole warps: every lane takes part in the shuffles
    Chunk rotated;
    rotated.bits = chunk.bits;
#if QK_NORM
    normalise(rotated, gain + min(head, turned - 1) * HEAD_DIM, eps, holds, lane);
#endif
    rotate(rotated, cos + token * HALF, sin + token * HALF, lane);
    if (head < turned) chunk.bits = rotated.bits;
    if (here && head < turned) rows[head * CHUNKS + lane] = chunk.bits;
  }
  if (base + PER_PASS <= heads) return;
  const int block = table[position / BLOCK_SIZE], slot = position % BLOCK_SIZE;
  const int cached = max(min(head, all - 1) - heads, 0);
  const bool is_key = cached < kv_heads;
  u8* record = kv_record(cache, block, kv_heads, is_key ? cached : cached - kv_heads);
  write(record + (is_key ? 0 : V_OFFSET) + slot * ROW_BYTES,
        (half2*)(record + (is_key ? K_PARAMS_OFFSET : V_PARAMS_OFFSET)) + slot, chunk, here && head >= heads, lane);
}
