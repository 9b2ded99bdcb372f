// Matrix product for many tokens on Hopper: weights are the A operand of wgmma, tokens the B operand (see gemm_tile.cuh).
// W4: packed 4-bit weights (w4.py) go from shared memory through the consumers' registers; else plain [rows, K] weights
// are read by wgmma from shared memory. Warp 8 is the producer; everything comes by tensor copies (a bulk copy per 16
// rows is slower than the whole product). Weights do not wait for the kernel before this one, tokens do.
//
// SPLIT > 1: a cluster of SPLIT blocks shares a tile, each with its part of K; then each adds up some of the tokens, in
// the order of the blocks, from the shared memory of all (through global memory this took three times as long).
//
// Macros: W4, GROUP (W4 only), BN tokens 16..256, MB 1 or 2 blocks of 64 features per warpgroup, STAGES, SPLIT.
#include "gemm_tile.cuh"
#if W4
#include "gemm_w4.cuh"
#endif
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "gemm_hopper.cuh"
#define HOPPER 1
#else
#define HOPPER 0
struct alignas(64) TensorMap {
  u64 opaque[16];
};
#endif

// With few tokens the scales are applied to sums over a group, which is exact and cheaper; with many, to the weights.
#define FOLD (W4 && GROUP >= 64 && MB == 1 && BN <= 128)
// Many sums need more registers than an even share: a whole producer warpgroup gives its own to the consumers.
constexpr bool WIDE = MB * BN * (1 + FOLD) >= 256;
constexpr int THREADS = CONSUMERS + (WIDE ? 128 : 32);
constexpr int TOKEN_BYTES = 2 * BN * 128;  // 128 columns as two boxes of 64
#if W4
constexpr int WEIGHT_BYTES = BM / 16 * 1024, EXTRA_BYTES = BM / 16 * PAIR_BYTES;
#else
constexpr int WEIGHT_BYTES = BM * 256, EXTRA_BYTES = 0;
#endif
constexpr int STAGE_BYTES = (TOKEN_BYTES + WEIGHT_BYTES + EXTRA_BYTES + 1023) / 1024 * 1024;

struct Weights {
  TensorMap words;  // plain: the matrix, boxes of 64 x 64. W4: 32-bit words, [tiles16, 256 a step], boxes of BM / 16 steps
#if W4
  TensorMap pairs;  // 32-bit words, [tiles16, PAIR_BYTES / 4 a step]
#endif
};

#if HOPPER
struct Pipeline {
  u8* stages;
  u64 *full, *empty;  // empty[STAGES]: a barrier that nobody waits for
};

// --- producer -----------------------------------------------------------------------------------------------------
INLINE void load_weights(const Pipeline& pipe, const Weights& w, const Product& p, int stage, int tile_m, int step) {
  u8* to = pipe.stages + stage * STAGE_BYTES + TOKEN_BYTES;
  u64* bar = pipe.full + stage;
  mbar_expect(bar, TOKEN_BYTES + WEIGHT_BYTES + EXTRA_BYTES);
#if W4
  tensor_load(to, &w.words, step * 256, tile_m * (BM / 16), bar);
  tensor_load(to + WEIGHT_BYTES, &w.pairs, step * (PAIR_BYTES / 4), tile_m * (BM / 16), bar);
#else
#pragma unroll
  for (int block = 0; block < 2 * MB; block++) {
    const int row = p.silu ? tile_m * 64 + block * (p.rows / 2) : tile_m * BM + block * 64;
#pragma unroll
    for (int half = 0; half < 2; half++)
      tensor_load(to + (2 * block + half) * 8192, &w.words, step * 128 + half * 64, row, bar);
  }
#endif
}

INLINE void load_tokens(const Pipeline& pipe, const TensorMap* x, int stage, int token0, int step) {
#pragma unroll
  for (int half = 0; half < 2; half++)
    tensor_load(pipe.stages + stage * STAGE_BYTES + half * (BN * 128), x, step * 128 + half * 64, token0, pipe.full + stage);
}

// Which tiles are this block's, and which of their steps.
struct Schedule {
  int first_tile, stride, tiles, token_tiles, begin, end;
  INLINE Schedule(const Product& p, int feature_tiles) {
    const int rank = blockIdx.x % SPLIT;
    first_tile = blockIdx.x / SPLIT, stride = gridDim.x / SPLIT;
    token_tiles = (p.n + BN - 1) / BN, tiles = feature_tiles * token_tiles;
    begin = p.steps * rank / SPLIT, end = p.steps * (rank + 1) / SPLIT;
  }
};

INLINE void produce(const Pipeline& pipe, const Schedule& s, const Weights& w, const TensorMap* x, const Product& p) {
  const int ahead = min(s.end - s.begin, STAGES), tile0 = s.first_tile;
  for (int i = 0; i < ahead; i++) load_weights(pipe, w, p, i, tile0 / s.token_tiles, s.begin + i);
  pdl_wait();
  for (int i = 0; i < ahead; i++) load_tokens(pipe, x, i, tile0 % s.token_tiles * BN, s.begin + i);
  int i = ahead;
  for (int tile = tile0; tile < s.tiles; tile += s.stride)
    for (int step = s.begin + (tile == tile0 ? ahead : 0); step < s.end; step++, i++) {
      const int stage = i % STAGES;
      if (i >= STAGES) mbar_wait(pipe.empty + stage, (i / STAGES + 1) & 1);
      load_weights(pipe, w, p, stage, tile / s.token_tiles, step);
      load_tokens(pipe, x, stage, tile % s.token_tiles * BN, step);
    }
}

// --- consumers ----------------------------------------------------------------------------------------------------
INLINE void release(u64* bar) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbar_arrive(bar);
}

struct Sums {
  float acc[MB][BN / 2];
#if FOLD
  float part[MB][BN / 2];  // of the present group, without its scale
  float scale[MB][2];      // of the present group, rows r and r + 8
#endif
};

INLINE void clear(Sums& s) {
#pragma unroll
  for (int mb = 0; mb < MB; mb++) {
#pragma unroll
    for (int i = 0; i < BN / 2; i++) s.acc[mb][i] = 0.0f;
#if FOLD
#pragma unroll
    for (int i = 0; i < BN / 2; i++) s.part[mb][i] = 0.0f;
    s.scale[mb][0] = s.scale[mb][1] = 0.0f;
#endif
  }
}

#if FOLD
INLINE void fold(Sums& s, int mb) {
  pin(s.part[mb]);
#pragma unroll
  for (int i = 0; i < BN / 2; i++) s.acc[mb][i] += s.part[mb][i] * s.scale[mb][i / 2 % 2];
  pin(s.acc[mb]);
}
#endif

// The products of one step of 128 columns; `i` counts the block's steps. On return the wgmmas of this step may still
// run; the stage before is given back unless this is the tile's first step (chosen without a branch: with one, ptxas
// peels the loop and then runs the wgmmas one by one, C7513).
INLINE void multiply(Sums& sums, u32 (&a)[2][16], const Pipeline& pipe, int i, bool first) {
  const u8* stage = pipe.stages + i % STAGES * STAGE_BYTES;
  const int group = threadIdx.x / 128;
  const u64 b = descriptor(stage);
  u64* const before = pipe.empty + (first ? STAGES : (i - 1) % STAGES);
  mbar_wait(pipe.full + i % STAGES, i / STAGES & 1);
#if W4
  const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  const u8* words = stage + TOKEN_BYTES + (group * MB * 4 + warp) * 1024 + lane * 16;
  const u8* pairs = stage + TOKEN_BYTES + WEIGHT_BYTES + (group * MB * 4 + warp) * PAIR_BYTES + lane / 4 * 8;
#if FOLD
  Scales s[MB];
#endif
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int mb = 0; mb < MB; mb++) {
      const int turn = half * MB + mb;
      const uint4 quad = *(const uint4*)(words + mb * 4096 + half * 512);
      const u32 word[4] = {quad.x, quad.y, quad.z, quad.w};
      u32(&fragment)[16] = a[turn % 2];
      wgmma_wait<1>();  // whoever read these registers has ended
      if (turn == 1) release(before);
#if FOLD
      const bool fresh = half * 64 % GROUP == 0;
      const uint2 pair = *(const uint2*)(pairs + mb * 4 * PAIR_BYTES + half * 64 / GROUP * 64);
      if (fresh) s[mb] = scales_of(pair);
#pragma unroll
      for (int j = 0; j < 4; j++) subtract_zero(word[j], s[mb], fragment + 4 * j);
      pin(fragment);            // unpacked while the wgmmas run
      if (fresh && mb == 0) {  // all at once: with any wgmma in flight, reading sums makes ptxas run them one by one (C7514)
        wgmma_wait<0>();
#pragma unroll
        for (int m = 0; m < MB; m++) fold(sums, m);
      }
      if (fresh) sums.scale[mb][0] = scale_of(pair.x), sums.scale[mb][1] = scale_of(pair.y);
      float(&to)[BN / 2] = sums.part[mb];
#else
      const bool fresh = false;
      Scales s;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (j * 16 % GROUP == 0)
          s = scales_of(*(const uint2*)(pairs + mb * 4 * PAIR_BYTES + (half * 64 + j * 16) / GROUP * 64));
        dequantise(word[j], s, fragment + 4 * j);
      }
      float(&to)[BN / 2] = sums.acc[mb];
#endif
      pin(fragment);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; j++) wgmma_rs(to, fragment + 4 * j, b + half * (BN * 8) + 2 * j, j > 0 || !fresh);
      wgmma_commit();
    }
#else
  const u64 weights = descriptor(stage + TOKEN_BYTES + group * MB * 16384);
  wgmma_fence();
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int mb = 0; mb < MB; mb++)
        wgmma_ss(sums.acc[mb], weights + (2 * mb + half) * 512 + 2 * j, b + half * (BN * 8) + 2 * j);
  wgmma_commit();
  wgmma_wait<1>();
  release(before);
#endif
}

#if SPLIT > 1
// Adds up what the blocks of the cluster have of the tile, and stores it.
INLINE void finish_together(const float (&acc)[MB][BN / 2], const Pipeline& pipe, const Product& p, float* buffer, int tile_m, int token0) {
  float4* mine = (float4*)pipe.stages + threadIdx.x;  // the pipeline is empty: with SPLIT a block has one tile
  barrier(ALL, CONSUMERS);
#pragma unroll
  for (int mb = 0; mb < MB; mb++)
#pragma unroll
    for (int q = 0; q < QUADS; q++) mine[(mb * QUADS + q) * CONSUMERS] = *(const float4*)&acc[mb][4 * q];
  cluster_barrier();
#pragma unroll 1
  for (int c = blockIdx.x % SPLIT; c < BN / EPILOGUE_TOKENS; c += SPLIT) {
    float4 part[SPLIT][MB][2];
#pragma unroll
    for (int i = 0; i < SPLIT; i++)
#pragma unroll
      for (int mb = 0; mb < MB; mb++)
#pragma unroll
        for (int q = 0; q < 2; q++) part[i][mb][q] = ld_cluster(mine + (mb * QUADS + 2 * c + q) * CONSUMERS, i);
    float sum[MB][8];
#pragma unroll
    for (int mb = 0; mb < MB; mb++)
#pragma unroll
      for (int q = 0; q < 2; q++) {
        float4 v = part[0][mb][q];
#pragma unroll
        for (int i = 1; i < SPLIT; i++) {
          const float4 more = part[i][mb][q];
          v.x += more.x, v.y += more.y, v.z += more.z, v.w += more.w;
        }
        *(float4*)&sum[mb][4 * q] = v;
      }
    finish(sum, p, buffer, tile_m, token0 + c * EPILOGUE_TOKENS);
  }
  cluster_barrier();  // our shared memory may still be read
}
#endif

INLINE void consume(const Pipeline& pipe, const Schedule& s, const Product& p, float* buffer) {
  pdl_wait();  // before anything is written, or the residual read
  Sums sums;
  u32 a[2][16];
  int i = 0;
  for (int tile = s.first_tile; tile < s.tiles; tile += s.stride) {
    clear(sums);
    for (int step = s.begin; step < s.end; step++, i++) multiply(sums, a, pipe, i, step == s.begin);
    wgmma_wait<0>();
#pragma unroll
    for (int mb = 0; mb < MB; mb++) {
#if FOLD
      fold(sums, mb);
#else
      pin(sums.acc[mb]);
#endif
    }
#if SPLIT > 1
    finish_together(sums.acc, pipe, p, buffer, tile / s.token_tiles, tile % s.token_tiles * BN);
#else
    release(pipe.empty + (i - 1) % STAGES);
    finish_all(sums.acc, p, buffer, tile / s.token_tiles, tile % s.token_tiles * BN);
#endif
  }
}
#endif

#if SPLIT > 1 && HOPPER
#define CLUSTER __cluster_dims__(SPLIT, 1, 1)
#else
#define CLUSTER
#endif
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, 1)
    gemm(const __grid_constant__ TensorMap x, const __grid_constant__ Weights w, const __grid_constant__ Product p, int feature_tiles) {
#if HOPPER
  extern __shared__ __align__(1024) u8 shared[];  // as the swizzle needs; rounding up here would lose the address space
  float* const buffer = (float*)(shared + STAGES * STAGE_BYTES);
  u64* const bars = (u64*)((u8*)buffer + EPILOGUE_BYTES);
  const Pipeline pipe = {shared, bars, bars + STAGES};
  pdl_launch();
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) mbar_init(pipe.full + i, 1);
    for (int i = 0; i <= STAGES; i++) mbar_init(pipe.empty + i, CONSUMERS / 32);
    mbar_init_fence();
  }
  __syncthreads();
  const Schedule s(p, feature_tiles);
  if (threadIdx.x >= CONSUMERS) {
    if (WIDE) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == CONSUMERS) produce(pipe, s, w, &x, p);
  } else {
    if (WIDE) asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume(pipe, s, p, buffer);
  }
#endif
}
