// What both prefill attention kernels share: variants, the context that a CTA reads, logits.
// Rows are (token, head of the group) pairs, so that all query heads of a key-value head share what is read. Keys and
// values come from the cache as stored; quantised ones become halves in shared memory, and then the products are in
// half precision also for a bfloat16 model.
#pragma once
#include "kv.cuh"

#ifndef WINDOW
#define WINDOW 0
#endif
#ifndef SOFTCAP
#define SOFTCAP 0
#endif
#ifndef SLOPES
#define SLOPES 0
#endif
#ifndef SINKS
#define SINKS 0
#endif

constexpr int CHUNKS = HEAD_DIM / 8;  // 16-byte chunks of a head
constexpr float LOG2E = 1.4426950408889634f;
constexpr bool SPECIAL = SOFTCAP || SLOPES;

// The keys this CTA reads: positions first .. end - 1; `base` is its key-value head's record of block 0.
struct Context {
  const u8* base;
  i64 block_bytes;
  const int* table;
  int first, end;

  INLINE int block_of(int position) const { return table[min(position, end - 1) / BLOCK_SIZE]; }
  INLINE const u8* record(int block) const { return base + block * block_bytes; }
  INLINE bool has(int position) const { return position >= first && position < end; }
};

// Two numbers in the type of the products.
INLINE u32 pack(float a, float b) {
  if constexpr (QUANTISED) {
    const half2 p = __floats2half2_rn(a, b);
    return *(const u32*)&p;
  } else {
    const T2 p = from_float2(a, b);
    return *(const u32*)&p;
  }
}

// Eight query numbers in the type of the products.
INLINE uint4 query(const T* q) {
  uint4 x = *(const uint4*)q;
  if constexpr (QUANTISED && DTYPE_BF16) {
    const T2* pairs = (const T2*)&x;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 p = to_float2(pairs[j]);
      ((u32*)&x)[j] = pack(p.x, p.y);
    }
  }
  return x;
}

struct Scoring {
  float scale;  // with log2(e), for softmax in base 2
  int window;
  float softcap;
};

// Logits in base 2 of one score; column: the key's position.
INLINE float logit(float x, const Scoring& how, float slope, int column) {
  x *= how.scale;
#if SOFTCAP
  const float cap = how.softcap * LOG2E;  // tanh(y) = 1 - 2 / (1 + exp(2 y))
  x = cap - 2.f * cap * __fdividef(1.f, 1.f + exp2_fast(x * (2.f / how.softcap)));
#endif
#if SLOPES
  x += slope * LOG2E * column;
#endif
  return x;
}
