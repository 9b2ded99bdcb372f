// Matrix product of packed 4-bit weights (w4.py) and many tokens with mma.sync, for every chip from sm_75 on: weights are
// the A operand, tokens the B operand (see gemm_tile.cuh). Each warp unpacks its own 16 rows; tokens lie in shared memory
// as rows of 64 numbers, their 16-byte pieces exchanged by token number so that ldmatrix meets no bank conflict.
//
// Stream-K (Osama et al. 2023): the tiles' steps along K, tile after tile, are cut into equal parts, one per block. A
// tile that several blocks share is added up by the one that ends last, always in the order of the blocks, so that
// the result does not depend on who that is.
//
// Macros: GROUP, BN tokens 16..128, MB 1 or 2 blocks of 64 features per four warps, STAGES.
#define W4 1
#include "gemm_tile.cuh"
#include "gemm_w4.cuh"

constexpr int TOKEN_BYTES = 2 * BN * 128, WORD_BYTES = BM / 16 * 1024;
constexpr int STAGE_BYTES = TOKEN_BYTES + WORD_BYTES + BM / 16 * PAIR_BYTES;

struct Weights {
  const u8* words;  // [tiles16, steps, 1024]
  const u8* pairs;  // [tiles16, steps, PAIR_BYTES]
};

// --- the schedule -----------------------------------------------------------------------------------------------
struct Schedule {
  int steps, token_tiles, total, blocks;
  INLINE Schedule(int n, int feature_tiles, int steps_) : steps(steps_), token_tiles((n + BN - 1) / BN), blocks(gridDim.x) {
    total = token_tiles * feature_tiles * steps;
  }
  INLINE int start(int block) const { return (int)((i64)total * block / blocks); }
  INLINE int owner(int step) const { return (int)(((i64)(step + 1) * blocks - 1) / total); }
};

struct Workspace {
  float4* partial;  // [2 * blocks, MB * QUADS, CONSUMERS]: what a block has of a tile it shares
  int* arrived;     // [tiles] zero before and after
};

// --- partial sums -------------------------------------------------------------------------------------------------
// Whether this block, which worked on the steps from `first` (of all) on within `tile`, is to write the tile out; then
// acc is the whole sum. Called by all consumers. A block has at most two shared tiles: the one it starts in the
// middle of or at the start of (slot 0), and a later one (slot 1).
INLINE bool add_partial(float (&acc)[MB][BN / 2], const Schedule& s, const Workspace& p, int tile, int* last) {
  const int low = s.owner(tile * s.steps), high = s.owner((tile + 1) * s.steps - 1);
  if (low == high) return true;
  const int me = blockIdx.x, thread = threadIdx.x;
  const size_t size = (size_t)MB * QUADS * CONSUMERS;
  float4* mine = p.partial + (2 * me + (s.start(me) < tile * s.steps)) * size + thread;
#pragma unroll
  for (int mb = 0; mb < MB; mb++)
#pragma unroll
    for (int q = 0; q < QUADS; q++) __stcg(mine + (mb * QUADS + q) * CONSUMERS, *(float4*)&acc[mb][4 * q]);
  __threadfence();
  barrier(ALL, CONSUMERS);
  if (thread == 0) {
    const int before = atomicAdd(p.arrived + tile, 1);
    *last = before == high - low;
    if (before == high - low) p.arrived[tile] = 0;
    __threadfence();
  }
  barrier(ALL, CONSUMERS);
  if (!*last) return false;
  constexpr int CHUNK = MB * QUADS < 4 ? MB * QUADS : 4;
#pragma unroll
  for (int c = 0; c < MB * QUADS; c += CHUNK) {
    float4 sum[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) sum[i] = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int b = low; b <= high; b++) {
      const float4* from = p.partial + (2 * b + (s.start(b) < tile * s.steps)) * size + thread;
#pragma unroll
      for (int i = 0; i < CHUNK; i++) {
        const float4 v = __ldcg(from + (c + i) * CONSUMERS);
        sum[i].x += v.x, sum[i].y += v.y, sum[i].z += v.z, sum[i].w += v.w;
      }
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i++) *(float4*)&acc[(c + i) / QUADS][4 * ((c + i) % QUADS)] = sum[i];
  }
  return true;
}

// --- one step ---------------------------------------------------------------------------------------------------------
INLINE void load_weights(u8* stage, const Weights& w, const Product& p, int tile_m, int step) {
  const int tile16 = tile_m * (BM / 16), count = (p.rows + 15) / 16 - tile16;
#pragma unroll
  for (int c = threadIdx.x; c < BM / 16 * 64; c += CONSUMERS)
    cp_async16(stage + TOKEN_BYTES + c * 16, w.words + ((size_t)(tile16 + min(c / 64, count - 1)) * p.steps + step) * 1024 + c % 64 * 16);
  constexpr int PIECES = PAIR_BYTES / 16;
#pragma unroll
  for (int c = threadIdx.x; c < BM / 16 * PIECES; c += CONSUMERS)
    cp_async16(stage + TOKEN_BYTES + WORD_BYTES + c * 16,
               w.pairs + ((size_t)(tile16 + min(c / PIECES, count - 1)) * p.steps + step) * PAIR_BYTES + c % PIECES * 16);
}

INLINE void load_tokens(u8* stage, const T* x, const Product& p, int columns, int token0, int step) {
#pragma unroll
  for (int c = threadIdx.x; c < BN * 16; c += CONSUMERS) {
    const int token = c / 16, half = c / 8 % 2, piece = c % 8, column = step * 128 + half * 64 + piece * 8;
    const bool there = token0 + token < p.n && column < columns;
    cp_async16(stage + half * (BN * 128) + token * 128 + (piece ^ token % 8) * 16,
               there ? x + (size_t)(token0 + token) * columns + column : x, there);
  }
}

INLINE void multiply(float (&acc)[MB][BN / 2], const u8* stage) {
  const int warp = threadIdx.x / 128 * MB * 4 + threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  const u8* words = stage + TOKEN_BYTES + warp * 1024 + lane * 16;
  const u8* pairs = stage + TOKEN_BYTES + WORD_BYTES + warp * PAIR_BYTES + lane / 4 * 8;
  const int token = lane / 16 * 8 + lane % 8, odd = lane / 8 % 2;  // the row whose address this lane gives to ldmatrix
#pragma unroll
  for (int half = 0; half < 2; half++) {
    u32 word[MB][4];
    Scales s[MB];
#pragma unroll
    for (int mb = 0; mb < MB; mb++) *(uint4*)word[mb] = *(const uint4*)(words + mb * 4096 + half * 512);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 b[BN / 4];
#pragma unroll
      for (int t = 0; t < BN / 16; t++)
        ldmatrix4(b + 4 * t, stage + half * (BN * 128) + (t * 16 + token) * 128 + ((2 * j + odd) ^ token % 8) * 16);
#pragma unroll
      for (int mb = 0; mb < MB; mb++) {
        if (j * 16 % GROUP == 0)
          s[mb] = scales_of(*(const uint2*)(pairs + mb * 4 * PAIR_BYTES + (half * 64 + j * 16) / GROUP * 64));
        u32 a[4];
        dequantise(word[mb][j], s[mb], a);
#pragma unroll
        for (int q = 0; q < QUADS; q++) mma(acc[mb] + 4 * q, a, b + 2 * q);
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS, 1)
    gemm(const T* x, const __grid_constant__ Weights w, const __grid_constant__ Product p, const __grid_constant__ Workspace space,
         int feature_tiles, int columns) {
  extern __shared__ __align__(128) u8 shared[];
  float* const buffer = (float*)(shared + STAGES * STAGE_BYTES);
  int* const last = (int*)((u8*)buffer + EPILOGUE_BYTES);
  const Schedule s(p.n, feature_tiles, p.steps);
  const int begin = s.start(blockIdx.x), end = s.start(blockIdx.x + 1);
  const auto stage = [&](int i) { return shared + (i - begin) % STAGES * STAGE_BYTES; };
  const auto weights = [&](int i) {
    if (i < end) load_weights(stage(i), w, p, i / s.steps / s.token_tiles, i % s.steps);
  };
  const auto tokens = [&](int i) {
    if (i < end) load_tokens(stage(i), x, p, columns, i / s.steps % s.token_tiles * BN, i % s.steps);
    cp_async_commit();
  };
  pdl_launch();
  for (int i = begin; i < begin + STAGES - 1; i++) weights(i);
  pdl_wait();
  for (int i = begin; i < begin + STAGES - 1; i++) tokens(i);
  float acc[MB][BN / 2];
  for (int at = begin; at < end;) {
    const int tile = at / s.steps, stop = min(end, (tile + 1) * s.steps);
#pragma unroll
    for (int mb = 0; mb < MB; mb++)
#pragma unroll
      for (int i = 0; i < BN / 2; i++) acc[mb][i] = 0.0f;
    for (int i = at; i < stop; i++) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();
      weights(i + STAGES - 1);
      tokens(i + STAGES - 1);
      multiply(acc, stage(i));
    }
    at = stop;
    if (add_partial(acc, s, space, tile, last)) finish_all(acc, p, buffer, tile / s.token_tiles, tile % s.token_tiles * BN);
  }
}
