// What all parts of chain.cu share: its parameters, what lies where in shared memory, mail between CTAs.
#pragma once
#include "matvec_async.cuh"

#ifndef PACKED
#define PACKED 0
#endif
#ifndef GROUP
#define GROUP 128
#endif
constexpr int WARPS = 16, FINISHERS = 2, THREADS = 32 * (WARPS + FINISHERS + 1);
constexpr int MOST = 4, TOKENS = PACKED ? 4 : 8;  // products, tokens
constexpr int STEP = PACKED ? 2048 : 512;  // columns of a stage
constexpr int PART = STEP / WARPS, PIECES = PART / 8;  // columns of a stage that a warp takes; the same in 16 bytes of x
constexpr int GROUPS = PART / GROUP;                   // packed: of those
constexpr int SUM_BYTES = GROUPS * TOKENS * 8;         // packed: sum and scale of a warp's part of x, by group and token
constexpr int WEIGHT_BYTES = 16384, PAIR_BYTES = PACKED ? 2048 / GROUP * 64 : 0, STAGE_BYTES = WEIGHT_BYTES + PAIR_BYTES;
constexpr int COL = 20;   // floats from token to token of a tile's sums: conflict-free fragment stores
constexpr int XPAD = 64;  // bytes: keeps the tokens of B fragments on different banks

struct alignas(64) TensorMap {
  u64 opaque[16];
};
struct Phase {
  const u8* words;    // packed: [N / 16, K / 64, 32, 4] int32
  const u8* pairs;    // packed: [N / 16, K / GROUP, 8, 2] int32
  const T* x;         // [n, xstride]
  const float* gain;  // norm: gain' [K], or null
  const T* bias;      // [N] or null
  const T* residual;  // [n, ldy] or null
  void* y;            // T or float [n, ldy]
  float eps, scale;   // norm: y = scale * rsqrt(mean x^2 + eps) * W (gain' x)
  int N, K, ldy, xstride;
  int silu, out_float;
  int mail_in, mail_out, mail_added;  // bytes from the start of a mailbox to its x, its y and its residual; negative: not by mail
};
struct Chain {
  Phase phases[MOST];
  u8* mail;         // two mailboxes of mail_room bytes
  u32* state;       // [CTAs, 2]: launches so far; bytes of mail of the last
  int mail_room, mail_used;
  int count, n, stages, window, most_stages, gains;  // products; tokens; of the ring, of those under way; the most of a row; floats of the longest gain
};
struct Maps {
  TensorMap of[MOST];  // dense: [K / 64, N, 64] read in boxes of 8 x 8 x 64
};

#if ARCH >= 900
// --- what is where: byte offsets in shared memory ----------------------------------------------------------------------------
constexpr int FULL = 0, EMPTY = 16, RING_BARS = 64, BOXES = 384;  // two buffers of sums; the ring, at most 20 stages; [WARPS] u32
struct Layout {
  int zeros, ring, squares, red, gain, sums, x;
  INLINE Layout(const Chain& c) {
    zeros = 448;                                // 576 bytes: x of absent tokens
    ring = 1024;                                // (swizzled boxes want 1,024)
    squares = ring + c.stages * STAGE_BYTES;    // [MOST][WARPS][TOKENS] floats: of each product's x
    red = squares + MOST * WARPS * TOKENS * 4;  // [2][WARPS][n][COL] floats
    gain = red + 2 * WARPS * c.n * COL * 4;
    sums = gain + c.gains * 4;                  // packed: [WARPS][stages of a row][GROUPS][TOKENS] sums and scales of x
    x = sums + (PACKED ? WARPS * c.most_stages * SUM_BYTES : 0);
  }
};
INLINE u32 ring_full(u32 base, int slot) { return base + RING_BARS + slot * 16; }
INLINE u32 ring_empty(u32 base, int slot) { return base + RING_BARS + slot * 16 + 8; }

INLINE int tile_count(const Phase& p) { return p.silu ? (p.N / 2 + 7) / 8 : (p.N + 15) / 16; }
INLINE int stage_count(const Phase& p) { return (p.K + STEP - 1) / STEP; }

// Keeps a number in a register: a parameter read by a phase's index costs 40 cycles wherever it is read again.
template <typename N> INLINE N pinned(N x) {
  asm volatile("" : "+r"(x));
  return x;
}

// --- global memory that other CTAs write ---------------------------------------------------------------------------------------
// A product's result reaches the next one as mail: its numbers themselves say that they are there. Mail begins as EMPTY_MAIL,
// which no conversion gives (a NaN becomes 0x7fff), and is polled until it is something else: no flag, no fence, no barrier
// (those took 3.7 us a product, 6 while weights stream). Launches take two mailboxes in turn; each clears the other one.
constexpr u32 EMPTY_MAIL = 0xffffffff;
INLINE bool arrived(uint4 v) {  // 16 bytes, of which every 16 bits are a number
  return !(__vcmpeq2(v.x, EMPTY_MAIL) | __vcmpeq2(v.y, EMPTY_MAIL) | __vcmpeq2(v.z, EMPTY_MAIL) | __vcmpeq2(v.w, EMPTY_MAIL));
}
INLINE void send(void* p, uint2 v) { asm volatile("st.relaxed.gpu.global.v2.u32 [%0],{%1,%2};" ::"l"(p), "r"(v.x), "r"(v.y) : "memory"); }
INLINE float load_number(const T* p) {
  u16 v;
  asm volatile("ld.relaxed.gpu.global.u16 %0,[%1];" : "=h"(v) : "l"(p) : "memory");
  return to_float(*(T*)&v);
}

// A word of the state of this CTA, which nobody else changes: how many launches there were, whose parity is this one's mailbox;
// bytes of the last one's mail.
INLINE u32 state(const Chain& c, int word) {
  u32 v;
  asm volatile("ld.relaxed.gpu.global.u32 %0,[%1];" : "=r"(v) : "l"(c.state + 2 * blockIdx.x + word) : "memory");
  return v;
}

// --- shared memory by address ---------------------------------------------------------------------------------------------------
INLINE uint4 lds16(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
INLINE uint2 lds8(u32 at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1},[%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}
INLINE void sts4(u32 at, float v) { asm volatile("st.shared.f32 [%0],%1;" ::"r"(at), "f"(v) : "memory"); }
INLINE void release(u32 bar) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0) barrier_arrive(bar);
}
#endif
