// Up to four products in one launch, y1 = W1 x, y2 = W2 y1, ...: what lies between the attention of one layer and that of
// the next, for a token or two. One persistent CTA an SM, which takes tiles of 16 rows in turn.
//
// Weights do not wait for activations. A warp copies them, stage after stage and on into the next products, to a ring in
// shared memory: a chain of kernels loses 2.6 us (H200) at every boundary, here bytes keep coming meanwhile. A stage is 16
// rows by STEP columns; each of WARPS warps multiplies its columns of every stage, weights as the A operand of the tensor
// cores and tokens as columns of B; FINISHERS more add the warps' sums up and write the rows. What one product gives the next
// one travels as mail (see `arrived`); there is no barrier between them.
//
// Packed weights are multiplied as integers (see `store_integers`). Every sum has a fixed order, and none depends on how many
// tokens there are. All CTAs must be on the card at once: one an SM, launched after nothing that waits for them.
//
// Macros: PACKED (0 dense, 1 four-bit words of w4.py), GROUP, DTYPE_BF16.
#include "chain_products.cuh"
#if ARCH >= 900

// --- the producer ------------------------------------------------------------------------------------------------------------
INLINE void tensor_load3(u32 to, const TensorMap* map, int a, int b, int c, u32 bar) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0],[%1,{%2,%3,%4}],[%5];" ::"r"(to), "l"(map),
               "r"(a), "r"(b), "r"(c), "r"(bar)
               : "memory");
}

// At most `window` stages are under way: more would not come faster, and everything else that this SM asks for (x above all)
// would wait behind them.
INLINE void produce(const Chain& c, const Maps& maps, const Layout& at, u32 base) {
  int slot = 0, behind = 0;
  u32 parity = 1, arrived = 0;
  int ahead = 0;
  for (int i = 0; i < c.count; i++) {
    const Phase& p = c.phases[i];
    const int tiles = tile_count(p), stages = stage_count(p);
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x)
#pragma unroll 1
      for (int stage = 0; stage < stages; stage++) {
        if (ahead == c.window) {
          barrier_wait(ring_full(base, behind), arrived);
          if (++behind == c.stages) behind = 0, arrived ^= 1;
        } else {
          ahead++;
        }
        barrier_wait(ring_empty(base, slot), parity);
        const u32 bar = ring_full(base, slot), to = base + at.ring + slot * STAGE_BYTES;
#if PACKED
        const int wide = (p.K + 127) / 128 * 128, columns = min(STEP, wide - stage * STEP);
        barrier_expect(bar, columns * 8 + columns / GROUP * 64);
        bulk_load(to, p.words + ((size_t)tile * wide + stage * STEP) * 8, columns * 8, bar);
        bulk_load(to + WEIGHT_BYTES, p.pairs + ((size_t)tile * wide + stage * STEP) / GROUP * 64, columns / GROUP * 64, bar);
#else
        barrier_expect(bar, WEIGHT_BYTES);
        tensor_load3(to, &maps.of[i], 0, p.silu ? tile * 8 : tile * 16, stage * 8, bar);
        tensor_load3(to + 8192, &maps.of[i], 0, p.silu ? tile * 8 + p.N / 2 : tile * 16 + 8, stage * 8, bar);
#endif
        if (++slot == c.stages) slot = 0, parity ^= 1;
      }
  }
}

// --- the finishing warps take tiles in turn: lane l has the rows 4 (l % 4) .. + 3 of token l / 4 ---------------------------------
// Residuals of four rows from `p`; `left` of them exist. `whole`: rows end at a multiple of four, as all mail does.
INLINE void load_residual(float* res, const T* p, int left, bool whole, bool mailed) {
  if (whole) {
    uint2 v;
    do asm volatile("ld.relaxed.gpu.global.v2.u32 {%0,%1},[%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    while (mailed && !arrived(make_uint4(v.x, v.y, 0, 0)));
    const float2 low = to_float2(*(T2*)&v.x), high = to_float2(*(T2*)&v.y);
    res[0] = low.x, res[1] = low.y, res[2] = high.x, res[3] = high.y;
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (e < left) res[e] = load_number(p + e);
  }
}

// What a phase asks of the finishing warps; as bits, which take one register.
constexpr u32 SILU = 1, WIDE = 2, POST = 4, BIAS = 8, ADD = 16, ADD_MAIL = 32, WHOLE = 64;

INLINE void finish_tiles(const Chain& c, const Layout& at, u8* sm, u32 base, int finisher, int lane) {
  const int token = lane >> 2, quad = lane & 3, n = c.n;
  pdl_wait();
  const u32 launches = state(c, 0), dirty = state(c, 1);
  u8 *const mail = c.mail + (launches & 1) * c.mail_room, *const other = c.mail + (launches + 1 & 1) * c.mail_room;
  for (u32 byte = ((blockIdx.x * FINISHERS + finisher) * 32 + lane) * 16; byte < dirty; byte += gridDim.x * (FINISHERS * 512))
    *(uint4*)(other + byte) = make_uint4(EMPTY_MAIL, EMPTY_MAIL, EMPTY_MAIL, EMPTY_MAIL);
  const float4* const red0 = (const float4*)((const float*)(sm + at.red) + min(token, n - 1) * COL + quad * 4);
  const int next = pinned(n * (COL / 4));
  u32 i = 0;
#pragma unroll 1
  for (int phase = 0; phase < c.count; phase++) {
    const Phase& p = c.phases[phase];
    const int tiles = pinned(tile_count(p)), rows = pinned(p.silu ? p.N / 2 : p.N);
    const u32 does = pinned(u32(p.silu ? SILU : 0) | (p.out_float ? WIDE : 0) | (p.mail_out >= 0 ? POST : 0) | (p.bias ? BIAS : 0) |
                            (p.residual ? ADD : 0) | (p.mail_added >= 0 ? ADD_MAIL : 0) | (rows % 4 ? 0 : WHOLE));
    const bool silu = does & SILU;
    const int height = silu ? 8 : 16, offset = silu ? 4 * (quad & 1) : 4 * quad;
    const bool writes = token < n && !(silu && quad > 1);
    const size_t row = (size_t)min(token, n - 1) * p.ldy;
    float inv = 1.f;
    bool first = true;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, i++) {
      if ((i & 1) != finisher) continue;
      const int r0 = tile * height + offset, left = writes ? rows - r0 : 0;
      float res[4] = {}, v[4];
      if (does & ADD && left > 0) load_residual(res, (does & ADD_MAIL ? (const T*)(mail + p.mail_added) : p.residual) + row + r0, left, does & WHOLE, does & ADD_MAIL);
      barrier_wait(base + FULL + 8 * (i & 1), i >> 1 & 1);
      const float4* red = red0 + (i & 1) * WARPS * next;
      float4 sum = *red, half = red[WARPS / 2 * next];
#pragma unroll
      for (int u = 1; u < WARPS / 2; u++) {
        const float4 a = red[u * next], b = red[(WARPS / 2 + u) * next];
        sum.x += a.x, sum.y += a.y, sum.z += a.z, sum.w += a.w;
        half.x += b.x, half.y += b.y, half.z += b.z, half.w += b.w;
      }
      release(base + EMPTY + 8 * (i & 1));
      if (first && p.gain) {
        float squares = 0.f;
#pragma unroll
        for (int u = 0; u < WARPS; u++) squares += ((const float*)(sm + at.squares))[(phase * WARPS + u) * TOKENS + token % TOKENS];
        inv = rsqrtf(squares / p.K + p.eps) * p.scale;
        first = false;
      }
      v[0] = (sum.x + half.x) * inv, v[1] = (sum.y + half.y) * inv, v[2] = (sum.z + half.z) * inv, v[3] = (sum.w + half.w) * inv;
      if (does & BIAS)
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] += to_float(p.bias[min(r0 + e, rows - 1) + (silu && quad > 1 ? rows : 0)]);
      if (silu)
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] = __fdividef(v[e], 1.f + __expf(-v[e])) * __shfl_down_sync(0xffffffff, v[e], 2, 4);
#pragma unroll
      for (int e = 0; e < 4; e++) v[e] += res[e];
      if (does & WIDE) {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (e < left) ((float*)p.y)[row + r0 + e] = v[e];
      } else if (does & WHOLE) {
        const T2 pair[2] = {from_float2(v[0], v[1]), from_float2(v[2], v[3])};
        const uint2 both = *(const uint2*)pair;
        if (left > 0 && does & POST) send(mail + p.mail_out + (row + r0) * 2, both);
        if (left > 0) *(uint2*)((T*)p.y + row + r0) = both;
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (e < left) ((T*)p.y)[row + r0 + e] = from_float(v[e]);
      }
    }
  }
  asm volatile("bar.sync 1,64;" ::: "memory");  // both finishing warps have read the state
  if (finisher == 0 && lane == 0) *(uint2*)(c.state + 2 * blockIdx.x) = make_uint2(launches + 1, c.mail_used);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) chain(const __grid_constant__ Chain c, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) u8 sm[];
  pdl_launch();
  const int w = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const Layout at(c);
  const u32 base = smem_address(sm);
  if (threadIdx.x < 144) ((u32*)(sm + at.zeros))[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) barrier_init(base + FULL + 8 * i, WARPS), barrier_init(base + EMPTY + 8 * i, 1);
    for (int i = 0; i < c.stages; i++) barrier_init(ring_full(base, i), 1), barrier_init(ring_empty(base, i), WARPS);
    barrier_init_fence();
  }
  __syncthreads();
  if (w < WARPS) {
    multiply_tiles(c, at, sm, base, w, lane);
  } else if (w < WARPS + FINISHERS) {
    finish_tiles(c, at, sm, base, w - WARPS, lane);
  } else if (elect()) {
    produce(c, maps, at, base);
  }
}
#endif
