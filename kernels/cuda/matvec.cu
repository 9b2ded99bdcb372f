// y = W x for 1..16 tokens, bound by the reading of W: out = epilogue(W . norm(x)), W dense 16-bit row-major [N, K] or
// packed 4-bit (w4.py). Weights are the A operand of m16n8k16, tokens its columns.
//
// A persistent CTA takes tiles of 16 rows in turn. Its columns are dealt in chunks of CH to WARPS warps. A warp copies its
// chunks, DEPTH ahead and across tiles, to a ring of its own (registers would do, but the six scoreboards of a warp make
// older loads wait for younger ones), and leaves its sums in shared memory; more warps add those up and finish the tile.
// The rings fill before pdl_wait. CLUSTER CTAs may share a tile, each a part of K; their sums meet in distributed shared
// memory. Measured on an H200 and of no use: asking L2 for W before pdl_wait, deeper rings, more CTAs per SM.
//
// How K is cut does not depend on the number of tokens, and every sum has a fixed order: a token's result is the same bits
// alone and among others, every time.
//
// Macros: W4 (0 dense, 1 packed), GROUP, NT (tokens / 8), WARPS, DEPTH, CLUSTER, BLOCKS (CTAs that must fit an SM), DTYPE_BF16.
#include "matvec_async.cuh"

#ifndef W4
#define W4 0
#endif
#ifndef GROUP
#define GROUP 128
#endif
#ifndef NT
#define NT 1
#endif
#ifndef WARPS
#define WARPS 8
#endif
#ifndef DEPTH
#define DEPTH 4
#endif
#ifndef CLUSTER
#define CLUSTER 1
#endif
#ifndef BLOCKS
#define BLOCKS 2
#endif
#define CH (W4 ? 128 : 64)  // columns of a chunk
#define SLOT (W4 ? 1024 + GROUPS * 256 : 32 * CH)  // bytes of a chunk in a ring
#define TOKENS (8 * NT)
#define GROUPS (128 / GROUP)  // of a W4 chunk
#ifndef CHAINS
#define CHAINS (GROUP > 32 && WARPS <= 12 ? 4 : 2)  // products in flight that do not wait for one another
#endif
#define XPAD (W4 ? 16 : 64)   // keeps the B fragments' rows on different banks
#define FINISHERS (CLUSTER > 1 ? 1 : 2)  // warps that take tiles in turn; in a cluster order keeps buffers apart
#define COL 20                // floats from token to token of a tile's sums: conflict-free fragment stores; [16]: squares

struct Args {
  const u8* w;         // dense T [N, K] or words
  const u8* pairs;     // W4 only
  const T* x;          // [n, xstride]
  const float* gain;   // norm: gain' [K], or null
  const T* bias;       // [N] or null
  const T* residual;   // [n, ldy] or null
  void* y;             // T or float [n, ldy]
  float eps, scale;    // norm: y = scale * rsqrt(mean x^2 + eps) * W (gain' x)
  int n, N, K, ldy, xstride;
  int silu, out_float;
};

// --- what is where --------------------------------------------------------------------------------------------------
struct Layout {
  int first, count;  // this CTA's chunks of K
  int active;        // warps that have any
  int zeros, ring, squares, red, peers, gain, sums, x, pitch;  // bytes; barriers are at 0
  INLINE Layout(const Args& p, int rank) {
    const int all = W4 ? (p.K + 127) / 128 : (p.K + CH - 1) / CH;
    const int most = (all + CLUSTER - 1) / CLUSTER;
    first = all * rank / CLUSTER;
    count = all * (rank + 1) / CLUSTER - first;
    active = min(WARPS, count);
    pitch = most * CH * 2 + XPAD;
    zeros = 128;                                // 384 bytes: the B rows of absent tokens
    ring = zeros + 384;                         // [WARPS][DEPTH] chunks of W
    squares = ring + WARPS * DEPTH * SLOT;      // [WARPS][TOKENS] floats
    red = squares + WARPS * TOKENS * 4;         // [2][WARPS][n][COL] floats
    peers = red + 2 * WARPS * p.n * COL * 4;    // [2][CLUSTER][n][COL] floats
    gain = peers + (CLUSTER > 1 ? 2 * CLUSTER * p.n * COL * 4 : 0);
    sums = gain + (p.gain ? most * CH * 4 : 0);  // W4: [groups][TOKENS] floats: sums of x
    x = sums + (W4 ? most * GROUPS * TOKENS * 4 : 0);
  }
};

INLINE int tile_count(const Args& p) { return p.silu ? (p.N / 2 + 7) / 8 : (p.N + 15) / 16; }
// The row of the matrix that is row r of a tile (gate and up rows alternate by 8 for silu).
INLINE int matrix_row(const Args& p, int tile, int r) { return p.silu ? tile * 8 + (r & 7) + (r & 8 ? p.N / 2 : 0) : tile * 16 + r; }

// --- two buffers of sums between the product warps and the finishing warp ----------------------------------------------
// `i` counts the tiles of a CTA.
#if ARCH >= 900
#define FULL(i) (8 * ((i) & 1))
#define EMPTY(i) (16 + 8 * ((i) & 1))
#define PEERS(i) (32 + 8 * ((i) & 1))
INLINE void wait_full(u32 bars, int i, int) { barrier_wait(bars + FULL(i), i >> 1 & 1); }
INLINE void wait_empty(u32 bars, int i, int) { barrier_wait(bars + EMPTY(i), (i >> 1 & 1) ^ 1); }
INLINE void arrive_full(u32 bars, int i, int) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0) barrier_arrive(bars + FULL(i));
}
INLINE void arrive_empty(u32 bars, int i, int) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0) barrier_arrive(bars + EMPTY(i));
}
#else
INLINE void named_sync(int id, int warps) { asm volatile("bar.sync %0,%1;" ::"r"(id), "r"(warps * 32) : "memory"); }
INLINE void named_arrive(int id, int warps) { asm volatile("bar.arrive %0,%1;" ::"r"(id), "r"(warps * 32) : "memory"); }
INLINE void wait_full(u32, int i, int active) { named_sync(1 + (i & 1), active + 1); }
INLINE void wait_empty(u32, int i, int active) {
  if (i > 1) named_sync(3 + (i & 1), active + 1);
}
INLINE void arrive_full(u32, int i, int active) { named_arrive(1 + (i & 1), active + 1); }
INLINE void arrive_empty(u32, int i, int active) { named_arrive(3 + (i & 1), active + 1); }
#endif

#include "matvec_products.cuh"

// Sums of a product warp to its buffer [token][row].
INLINE void store_sums(const Args& p, float* red, const float (*acc)[4], int lane) {
#pragma unroll
  for (int nt = 0; nt < NT; nt++) {
    const int token = nt * 8 + (lane & 3) * 2;
    float* to = red + token * COL + (lane >> 2);
    const float low = W4 && !DTYPE_BF16 ? 16777216.f : 1.f, high = W4 && !DTYPE_BF16 ? 1048576.f : 1.f;  // undoes `decode`
    if (token < p.n) to[0] = acc[nt][0] * low, to[8] = acc[nt][2] * high;
    if (token + 1 < p.n) to[COL] = acc[nt][1] * low, to[COL + 8] = acc[nt][3] * high;
  }
}

INLINE void multiply_tiles(const Args& p, const Layout& at, u8* sm, u32 bars, int w, int lane, int tile, int tiles, int step) {
  stage_gain(p, at, sm, w, lane);
  Stream stream(p, at, smem_address(sm) + at.ring, w, lane, tile, tiles, step);
#pragma unroll 1
  for (int d = 0; d < DEPTH; d++) stream.load();
  pdl_wait();
  for (int c = w; c < at.count; c += WARPS)
    for (int t = lane / LANES; t < p.n; t += TOGETHER) {
      const int column = c * CH + lane % LANES * 8, k = at.first * CH + column;
      cp_async16(sm + at.x + t * at.pitch + column * 2, p.x + (size_t)t * p.xstride + (k < p.K ? k : 0), k < p.K);
    }
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  if (p.gain) apply_gain(p, at, sm, w, lane);
#if W4
  sum_groups(p, at, sm, w, lane);
#endif
  const Fragments fragments(p, at, sm, w, lane);
  const float* sums0 = (const float*)(sm + at.sums) + w * GROUPS * TOKENS + (lane & 3) * 2;
  const float* sums = sums0;
  float* red = (float*)(sm + at.red) + w * p.n * COL;
  u32 x[NT];
  float acc[NT][4] = {};
#pragma unroll
  for (int nt = 0; nt < NT; nt++) x[nt] = fragments.x[nt];
  const int swap = WARPS * p.n * COL;
  for (int left = stream.mine, i = 0;;) {
    cp_async_wait<DEPTH - 1>();
    multiply(acc, stream.ring + stream.slot, stream.pair + stream.slot, x, sums);
    stream.load();
    sums += WARPS * GROUPS * TOKENS;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) x[nt] += fragments.advance[nt];
    if (--left == 0) {
      wait_empty(bars, i, at.active);
      store_sums(p, i & 1 ? red + swap : red, acc, lane);
      arrive_full(bars, i, at.active);
      left = stream.mine, sums = sums0, i++, tile += step;
      if (tile >= tiles) return;
#pragma unroll
      for (int nt = 0; nt < NT; nt++) {
        x[nt] = fragments.x[nt];
        acc[nt][0] = acc[nt][1] = acc[nt][2] = acc[nt][3] = 0.f;
      }
    }
  }
}

// --- the finishing warps: lane l has the rows 4 (l % 4) .. + 3 of token l / 4. No branch here depends on the lane. ----------
INLINE void finish(const Args& p, int tile, int token, int quad, float* v, float inv, const float* res) {
  const int r0 = p.silu ? tile * 8 + 4 * (quad & 1) : tile * 16 + 4 * quad, rows = p.silu ? p.N / 2 : p.N;
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] *= inv;
  if (p.bias)
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += to_float(p.bias[min(r0 + i, rows - 1) + (p.silu && quad > 1 ? rows : 0)]);
  if (p.silu)
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = __fdividef(v[i], 1.f + __expf(-v[i])) * __shfl_down_sync(0xffffffff, v[i], 2, 4);
  const int last = token < p.n && !(p.silu && quad > 1) ? rows - r0 : 0;
  const size_t at = (size_t)token * p.ldy + r0;
  if (p.out_float) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < last) ((float*)p.y)[at + i] = v[i] + res[i];
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < last) ((T*)p.y)[at + i] = from_float(v[i] + res[i]);
  }
}

INLINE void load_residual(const Args& p, int tile, int token, int quad, float* res) {
  const int r0 = p.silu ? tile * 8 + 4 * (quad & 1) : tile * 16 + 4 * quad;
  const T* from = p.residual + (size_t)min(token, p.n - 1) * p.ldy;
#pragma unroll
  for (int i = 0; i < 4; i++) res[i] = p.residual ? to_float(from[min(r0 + i, p.ldy - 1)]) : 0.f;
}

INLINE float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

INLINE void finish_tiles(const Args& p, const Layout& at, u8* sm, u32 bars, int finisher, int lane, int tile, int tiles, int step, int rank) {
  const int token = lane >> 2, quad = lane & 3;
  pdl_wait();
  float inv[NT];
  tile += finisher * step;
  for (int i = finisher; tile < tiles; i += FINISHERS, tile += FINISHERS * step) {
    const bool own = CLUSTER == 1 || i % CLUSTER == rank;
    float res[NT][4], v[NT][4];
#pragma unroll
    for (int nt = 0; nt < NT; nt++) load_residual(p, tile, nt * 8 + token, quad, res[nt]);
    wait_full(bars, i, at.active);
    const float* red = (const float*)(sm + at.red) + (i & 1) * WARPS * p.n * COL + quad * 4;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
      const float4* from = (const float4*)(red + min(nt * 8 + token, p.n - 1) * COL);
      const int next = p.n * (COL / 4);
      float4 sum = *from;
      if (at.active == WARPS) {
#pragma unroll
        for (int u = 1; u < WARPS; u++) sum = add(sum, from[u * next]);
      } else {
        for (int u = 1; u < at.active; u++) sum = add(sum, from[u * next]);
      }
      v[nt][0] = sum.x, v[nt][1] = sum.y, v[nt][2] = sum.z, v[nt][3] = sum.w;
      if (i < FINISHERS || CLUSTER > 1) {
        float squares = 0.f;
        if (p.gain)
          for (int u = 0; u < at.active; u++) squares += ((const float*)(sm + at.squares))[u * TOKENS + nt * 8 + token];
        inv[nt] = CLUSTER > 1 ? squares : p.gain ? rsqrtf(squares / p.K + p.eps) * p.scale : 1.f;
      }
    }
    arrive_empty(bars, i, at.active);
#if CLUSTER > 1 && ARCH >= 900
    const int round = i / CLUSTER;
    const u32 bar = bars + PEERS(round), from = at.peers + ((round & 1) * CLUSTER + rank) * p.n * COL * 4;
    if (!own) {
#pragma unroll
      for (int nt = 0; nt < NT; nt++)
        if (nt * 8 + token < p.n) {
          const u32 to = smem_address(sm) + from + (nt * 8 + token) * COL * 4;
#pragma unroll
          for (int e = 0; e < 4; e++) store_peer(peer(to + (quad * 4 + e) * 4, i % CLUSTER), v[nt][e], peer(bar, i % CLUSTER));
          if (quad == 0) store_peer(peer(to + 64, i % CLUSTER), inv[nt], peer(bar, i % CLUSTER));
        }
      continue;
    }
    if (lane == 0) barrier_expect(bar, (CLUSTER - 1) * p.n * 17 * 4);
    __syncwarp();
    barrier_wait(bar, round >> 1 & 1);
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
      float4 sum = make_float4(0, 0, 0, 0);
      float squares = 0.f;
#pragma unroll
      for (int c = 0; c < CLUSTER; c++) {
        float4 f = make_float4(v[nt][0], v[nt][1], v[nt][2], v[nt][3]);
        float s = inv[nt];
        if (c != rank && nt * 8 + token < p.n) {
          const float* theirs = (const float*)(sm + at.peers) + (((round & 1) * CLUSTER + c) * p.n + nt * 8 + token) * COL;
          f = *(const float4*)(theirs + quad * 4);
          s = theirs[16];
        }
        sum.x += f.x, sum.y += f.y, sum.z += f.z, sum.w += f.w;
        squares += s;
      }
      v[nt][0] = sum.x, v[nt][1] = sum.y, v[nt][2] = sum.z, v[nt][3] = sum.w;
      inv[nt] = p.gain ? rsqrtf(squares / p.K + p.eps) * p.scale : 1.f;
    }
#endif
    if (own)
#pragma unroll
      for (int nt = 0; nt < NT; nt++)
        if (nt * 8 < p.n) finish(p, tile, nt * 8 + token, quad, v[nt], inv[nt], res[nt]);
  }
}

extern "C" __global__ void
#if CLUSTER > 1 && ARCH >= 900
__cluster_dims__(CLUSTER, 1, 1)
#endif
// 640: registers for that many, so that decode attention (two warps of 128 registers a scheduler) fits beside a CTA
__launch_bounds__(ARCH == 900 && !W4 ? 640 : 32 * (WARPS + FINISHERS), ARCH == 900 ? BLOCKS : 1) matvec(const __grid_constant__ Args p) {
  extern __shared__ __align__(128) u8 sm[];
  pdl_launch();
  const int w = threadIdx.x >> 5, lane = threadIdx.x & 31;
#if CLUSTER > 1 && ARCH >= 900
  const int rank = cluster_rank();
#else
  const int rank = 0;
#endif
  const Layout at(p, rank);
  const u32 bars = smem_address(sm);
  if (threadIdx.x < 96) ((u32*)(sm + at.zeros))[threadIdx.x] = 0;
#if ARCH >= 900
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) barrier_init(bars + FULL(i), at.active), barrier_init(bars + EMPTY(i), 1), barrier_init(bars + PEERS(i), 1);
    barrier_init_fence();
  }
#endif
  __syncthreads();
#if CLUSTER > 1 && ARCH >= 900
  cluster_sync();
#endif
  const int tile = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER, tiles = tile_count(p);
  if (w >= WARPS) finish_tiles(p, at, sm, bars, w - WARPS, lane, tile, tiles, step, rank);
  else if (w < at.active && tile < tiles) multiply_tiles(p, at, sm, bars, w, lane, tile, tiles, step);
#if CLUSTER > 1 && ARCH >= 900
  __syncwarp();
  cluster_sync();  // a peer may still write to this CTA's shared memory
#endif
}
