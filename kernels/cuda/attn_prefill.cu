// Causal attention of a prefill chunk over the paged cache, for every architecture and head size: online softmax over
// tiles of keys on tensor cores (the scheme of FlashAttention-2, Dao 2023). See attn_prefill.cuh.
#include "attn_prefill.cuh"

#ifndef WARPS
#define WARPS 8
#endif
#ifndef ROW_TILES
#define ROW_TILES 1  // 16-row tiles of a warp: two share every fragment of K and V
#endif
#ifndef KEYS
#define KEYS 64  // of a tile
#endif
#ifndef STAGES
#define STAGES 2  // tiles in shared memory, where they are loaded as they are
#endif

constexpr int THREADS = 32 * WARPS;
constexpr int ROWS = 16 * ROW_TILES * WARPS;
constexpr int STEPS = (HEAD_DIM + 15) / 16;       // k16 steps of a head
constexpr int STRIDE = (2 * STEPS + 1) * 8;       // numbers of a row in shared memory: an odd number of chunks
constexpr int TILE = KEYS * STRIDE;
constexpr int DEPTH = QUANTISED ? 1 : STAGES;    // tiles in the type of the products
constexpr bool AHEAD = QUANTISED || DEPTH == 2;   // whether the next tile is on its way during this one
constexpr int RUN = BLOCK_SIZE < KEYS ? BLOCK_SIZE : KEYS;  // keys of a tile that lie in one block

typedef u16 Bits;  // a number in shared memory: T, or half where the cache is quantised

struct Shared {
  Bits q[ROWS * STRIDE];
  Bits k[DEPTH][TILE];
  Bits v[DEPTH][TILE];
#if KV_BITS < 16
  uint4 raw_k[KEYS * ROW_BYTES / 16];
  uint4 raw_v[KEYS * ROW_BYTES / 16];
  half2 params_k[KEYS];
  half2 params_v[KEYS];
#endif
};

INLINE void product(float* c, const u32* a, const u32* b) {
  if constexpr (QUANTISED) mma_f16(c, a, b);
  else mma(c, a, b);
}
#if KV_BITS == 16
// Tile of keys from position `at`, K and V, zeros for what nobody may see (it may be NaN, and 0 * NaN is NaN).
// `block`: the block that holds `at`, where one block covers the tile.
INLINE void fetch(Shared& s, const Context& context, int stage, int at, int block) {
#pragma unroll 2
  for (int i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
    const int row = i / CHUNKS, chunk = i - row * CHUNKS, position = at + row;
    const u8* record = context.record(RUN == KEYS ? block : context.block_of(position));
    const u8* from = record + position % BLOCK_SIZE * ROW_BYTES + chunk * 16;
    const bool valid = context.has(position);
    cp_async16(&s.k[stage][row * STRIDE + chunk * 8], from, valid);
    cp_async16(&s.v[stage][row * STRIDE + chunk * 8], from + V_OFFSET, valid);
  }
  cp_async_commit();
}
#else
INLINE void fetch(Shared& s, const Context& context, int, int at, int block) {
  constexpr int RUN_CHUNKS = RUN * ROW_BYTES / 16;  // a run of rows is contiguous in its block
  for (int i = threadIdx.x; i < KEYS / RUN * RUN_CHUNKS; i += THREADS) {
    const int run = i / RUN_CHUNKS, position = at + run * RUN;
    const u8* record = context.record(RUN == KEYS ? block : context.block_of(position));
    const u8* from = record + position % BLOCK_SIZE * ROW_BYTES + (i - run * RUN_CHUNKS) * 16;
    cp_async16(&s.raw_k[i], from);
    cp_async16(&s.raw_v[i], from + V_OFFSET);
  }
  for (int i = threadIdx.x; i < KEYS / 4; i += THREADS) {
    const int position = at + i * 4;
    const u8* record = context.record(RUN == KEYS ? block : context.block_of(position));
    const u8* from = record + K_PARAMS_OFFSET + position % BLOCK_SIZE * 4;
    cp_async16(&s.params_k[i * 4], from);
    cp_async16(&s.params_v[i * 4], from + (V_PARAMS_OFFSET - K_PARAMS_OFFSET));
  }
  cp_async_commit();
}
INLINE void widen(Bits* tile, const uint4* raw, const half2* params, const Context& context, int at) {
  constexpr int WORDS = KV_BITS / 4;  // of a chunk of eight numbers
  for (int i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
    const int row = i / CHUNKS, chunk = i - row * CHUNKS;
    union {
      uint4 bits;
      half2 pairs[4];
    } x;
#pragma unroll
    for (int w = 0; w < WORDS; w++) dequantise_word(x.pairs + w * 4 / WORDS, ((const u32*)raw)[i * WORDS + w], params[row]);
    if (!context.has(at + row)) x.bits = make_uint4(0, 0, 0, 0);
    *(uint4*)&tile[row * STRIDE + chunk * 8] = x.bits;
  }
}
#endif

// q rows of this CTA into shared memory, zeros beyond the last.
INLINE void fetch_queries(Shared& s, const T* q, int q_stride, int row0, int rows, int group) {
  for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
    const int r = i / CHUNKS, chunk = i - r * CHUNKS, row = row0 + r;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (row < rows) {
      const int token = row / group;
      x = query(q + (i64)token * q_stride + (row - token * group) * HEAD_DIM + chunk * 8);
    }
    *(uint4*)&s.q[r * STRIDE + chunk * 8] = x;
  }
}

// The columns that pad a head to whole k16 steps.
INLINE void clear_padding(Shared& s) {
  if constexpr (HEAD_DIM % 16 != 0) {
    const uint4 zero = make_uint4(0, 0, 0, 0);
    for (int r = threadIdx.x; r < ROWS; r += THREADS) *(uint4*)&s.q[r * STRIDE + HEAD_DIM] = zero;
    for (int r = threadIdx.x; r < DEPTH * KEYS; r += THREADS) {
      *(uint4*)&s.k[0][r * STRIDE + HEAD_DIM] = zero;
      *(uint4*)&s.v[0][r * STRIDE + HEAD_DIM] = zero;
    }
  }
}

// out [tokens, heads * HEAD_DIM]; q rows of a token at q + token * q_stride, position start + token. table: the
// sequence's block ids. One CTA: ROWS rows of one key-value head, the longest contexts first.
extern "C" __global__ void __launch_bounds__(THREADS, ROWS == 128 && HEAD_DIM <= 128 && WARPS == 4 ? 2 : 1)
    attn_prefill(const T* q, const u8* cache, const int* table, T* out, int tokens, int start, int heads, int kv_heads,
                 int q_stride, float scale, int window, float softcap, const float* slopes, const float* sinks) {
  extern __shared__ uint4 dynamic[];
  Shared& s = *(Shared*)dynamic;
  pdl_launch();
  pdl_wait();
  const int group = heads / kv_heads, rows = tokens * group;
  const int kv_head = blockIdx.x % kv_heads;
  const int row0 = (gridDim.x / kv_heads - 1 - blockIdx.x / kv_heads) * ROWS;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int last = start + (min(row0 + ROWS, rows) - 1) / group;
  const Scoring how = {scale * LOG2E, window, softcap};

  Context context;
  context.block_bytes = (i64)kv_heads * RECORD_BYTES;
  context.base = kv_record(cache, 0, kv_heads, kv_head);
  context.table = table;
  context.end = last + 1;
  context.first = WINDOW ? max(0, start + row0 / group - window + 1) : 0;
  const int begin = context.first / KEYS * KEYS;

  fetch(s, context, 0, begin, context.block_of(begin));
  int next_block = context.block_of(begin + KEYS);
  fetch_queries(s, q + kv_head * group * HEAD_DIM, q_stride, row0, rows, group);
  clear_padding(s);

  // This thread's rows: l/4 and l/4 + 8 of each tile.
  float slope[ROW_TILES][2], top[ROW_TILES][2], sum[ROW_TILES][2];
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int head = kv_head * group + min(row0 + (warp * ROW_TILES + t) * 16 + h * 8 + lane / 4, rows - 1) % group;
      slope[t][h] = SLOPES ? slopes[head] : 0.f;
      top[t][h] = SINKS ? sinks[head] * LOG2E : -INF;
      sum[t][h] = SINKS && lane % 4 == 0 ? 1.f : 0.f;
    }
  const int warp_row = row0 + warp * ROW_TILES * 16;
  const int low = start + min(warp_row, rows - 1) / group;  // positions of the warp's first and last row
  const int high = start + min(warp_row + ROW_TILES * 16 - 1, rows - 1) / group;

  float o[ROW_TILES][2 * STEPS][4] = {};
  const Bits* q_rows = s.q + (warp * ROW_TILES * 16 + lane % 16) * STRIDE + lane / 16 * 8;
  const int k_offset = (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8;
  const int v_offset = lane % 16 * STRIDE + lane / 16 * 8;

  int stage = 0;
  for (int at = begin; at <= last; at += KEYS) {
    if (!AHEAD && at > begin) {
      __syncthreads();
      fetch(s, context, 0, at, context.block_of(at));
    }
    cp_async_wait<0>();
    __syncthreads();
#if KV_BITS < 16
    widen(s.k[0], s.raw_k, s.params_k, context, at);
    widen(s.v[0], s.raw_v, s.params_v, context, at);
    __syncthreads();
#endif
    const Bits *k = s.k[stage] + k_offset, *v = s.v[stage] + v_offset;
    if (DEPTH == 2) stage ^= 1;
    if (AHEAD && at + KEYS <= last) {
      fetch(s, context, stage, at + KEYS, next_block);
      next_block = context.block_of(at + 2 * KEYS);
    }
    if (at > high || (WINDOW && at + KEYS - 1 <= low - window)) continue;  // nothing that this warp may see

    float p[ROW_TILES][KEYS / 8][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      u32 a[ROW_TILES][4];
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) ldmatrix4(a[t], q_rows + t * 16 * STRIDE + step * 16);
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        u32 b[4];
        ldmatrix4(b, k + n * 16 * STRIDE + step * 16);
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
          product(p[t][2 * n], a[t], b);
          product(p[t][2 * n + 1], a[t], b + 2);
        }
      }
    }

    const bool border = at + KEYS - 1 > low || (WINDOW && at <= high - window);
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if constexpr (SPECIAL) {
#pragma unroll
          for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
              p[t][n][2 * h + e] = logit(p[t][n][2 * h + e], how, slope[t][h], at + n * 8 + lane % 4 * 2 + e);
        }
        if (border) {
          const int row = min(warp_row + t * 16 + h * 8 + lane / 4, rows - 1);
          const int newest = start + row / group - at - lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
              if (n * 8 + e > newest || (WINDOW && n * 8 + e <= newest - window)) p[t][n][2 * h + e] = -INF;
        }
        float best = p[t][0][2 * h];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) best = fmaxf(best, fmaxf(p[t][n][2 * h], p[t][n][2 * h + 1]));
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
        const float factor = SPECIAL ? 1.f : how.scale;
        const float new_top = fmaxf(top[t][h], best * factor);
        const float shift = new_top == -INF ? 0.f : new_top;  // a row that sees nothing yet
        const float keep = exp2_fast(top[t][h] - shift);
        top[t][h] = new_top;
        float total = 0.f;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            p[t][n][2 * h + e] = exp2_fast(fmaf(p[t][n][2 * h + e], factor, -shift));
            total += p[t][n][2 * h + e];
          }
        sum[t][h] = sum[t][h] * keep + total;
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) o[t][n][2 * h] *= keep, o[t][n][2 * h + 1] *= keep;
      }

#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
      u32 a[ROW_TILES][4];
#pragma unroll
      for (int t = 0; t < ROW_TILES; t++) {
        a[t][0] = pack(p[t][2 * step][0], p[t][2 * step][1]);
        a[t][1] = pack(p[t][2 * step][2], p[t][2 * step][3]);
        a[t][2] = pack(p[t][2 * step + 1][0], p[t][2 * step + 1][1]);
        a[t][3] = pack(p[t][2 * step + 1][2], p[t][2 * step + 1][3]);
      }
#pragma unroll
      for (int d = 0; d < STEPS; d++) {
        u32 b[4];
        ldmatrix4_trans(b, v + step * 16 * STRIDE + d * 16);
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++) {
          product(o[t][2 * d], a[t], b);
          product(o[t][2 * d + 1], a[t], b + 2);
        }
      }
    }
  }

  // Through this warp's own rows of shared memory, for whole 16-byte stores.
  __syncwarp();
  T* staged = (T*)s.q + warp * ROW_TILES * 16 * STRIDE;
#pragma unroll
  for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float total = sum[t][h];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float norm = 1.f / total;
      T* row = staged + (t * 16 + h * 8 + lane / 4) * STRIDE + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 2 * STEPS; n++) *(T2*)(row + n * 8) = from_float2(o[t][n][2 * h] * norm, o[t][n][2 * h + 1] * norm);
    }
  __syncwarp();
  for (int i = lane; i < ROW_TILES * 16 * CHUNKS; i += 32) {
    const int r = i / CHUNKS, chunk = i - r * CHUNKS, row = warp_row + r;
    if (row >= rows) break;
    const int token = row / group, head = kv_head * group + row - token * group;
    *(uint4*)(out + ((i64)token * heads + head) * HEAD_DIM + chunk * 8) = *(const uint4*)(staged + r * STRIDE + chunk * 8);
  }
}
