// Prefill attention on Hopper, heads of 64, 80, 96, 128, 256: the scheme of FlashAttention-3 (Shah et al. 2024). One warpgroup
// brings queries, keys and values into shared memory, dequantised; two others take 64 rows each, and while one of them
// computes a softmax the other has the tensor cores; within a warpgroup, the next tile's scores are computed together
// with this tile's output. CTAs are persistent, so that loads run across the borders of row tiles. See attn_prefill.cuh.
#include "attn_hopper_load.cuh"

// What cp.async brought becomes visible to wgmma; the loaders of quantised tiles have seen to it themselves.
INLINE void arrived_fence() {
  if constexpr (!QUANTISED) proxy_fence();
}

// --- computing ------------------------------------------------------------------------------------------------------
struct Rows {  // of this thread: l/4 and l/4 + 8 of its warp's 16
  int position[2];
  float slope[2], top[2], sum[2], keep[2];
};

// Scores to weights, in place; `keep`: what earlier weights are worth now. MASKED: not all keys are visible to all rows.
template <bool MASKED> INLINE void softmax(float (&s)[KEYS / 2], Rows& rows, const Scoring& how, int at) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if constexpr (SPECIAL) {
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& x = s[n * 4 + h * 2 + e];
          x = logit(x, how, rows.slope[h], at + n * 8 + lane % 4 * 2 + e);
        }
    }
    if constexpr (MASKED) {
      const int newest = rows.position[h] - at - lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          if (n * 8 + e > newest || (WINDOW && n * 8 + e <= newest - how.window)) s[n * 4 + h * 2 + e] = -INF;
    }
    constexpr int LANES = 4;  // independent chains: one warp alone has to fill its scheduler
    float best[LANES], total[LANES] = {};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
      const float pair = fmaxf(s[n * 4 + h * 2], s[n * 4 + h * 2 + 1]);
      best[n % LANES] = n < LANES ? pair : fmaxf(best[n % LANES], pair);
    }
    float most = fmaxf(fmaxf(best[0], best[1]), fmaxf(best[2], best[3]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    const float factor = SPECIAL ? 1.f : how.scale;
    const float top = fmaxf(rows.top[h], most * factor);
    const float shift = top == -INF ? 0.f : top;  // a row that sees nothing yet
    rows.keep[h] = exp2_fast(rows.top[h] - shift);
    rows.top[h] = top;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float& x = s[n * 4 + h * 2 + e];
        x = exp2_fast(fmaf(x, factor, -shift));
        total[n % 2 * 2 + e] += x;
      }
    rows.sum[h] = rows.sum[h] * rows.keep[h] + ((total[0] + total[1]) + (total[2] + total[3]));
  }
}

// Two copies of the whole, not of the masking alone: their own basic blocks keep the exponentials before the wait for
// the tensor cores that follows, which the assembler else moves ahead of half of them.
INLINE void softmax(float (&s)[KEYS / 2], Rows& rows, const Scoring& how, int at, int low, int high) {
  if (at + KEYS - 1 > low || (WINDOW && at <= high - how.window)) softmax<true>(s, rows, how, at);
  else softmax<false>(s, rows, how, at);
}

// Accumulators as the A operand of the next product.
INLINE void to_weights(u32 (&p)[KEYS / 4], const float (&s)[KEYS / 2]) {
#pragma unroll
  for (int i = 0; i < KEYS / 4; i++) p[i] = pack(s[2 * i], s[2 * i + 1]);
}

INLINE void scores(float (&s)[KEYS / 2], u32 q, u32 k) {
  const u32 a = descriptor(q), b = descriptor(k);
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; step++) {
    const int slab = step / 4, within = step % 4 * 32;
    wgmma_ss(s, advance(a, slab * Q_SLAB + within), advance(b, slab * KV_SLAB + within), step == 0);
  }
}
INLINE void outputs(float (&o)[HEAD_DIM / 2], const u32 (&p)[KEYS / 4], u32 v) {
  const u32 b = descriptor(v, KV_SLAB);
#pragma unroll
  for (int step = 0; step < KEYS / 16; step++) wgmma_rs(o, p + 4 * step, advance(b, step * 2048));
}

// Write this warp's rows. The four lanes of a row exchange so that each has 16 bytes in a piece.
INLINE void store(const float (&o)[HEAD_DIM / 2], const Rows& rows, const Problem& p, const Work& work, int warp_row) {
  const int lane = threadIdx.x % 32, mine = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float total = rows.sum[h];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int row = warp_row + h * 8 + lane / 4;
    const int token = row / p.group, head = work.kv_head * p.group + row - token * p.group;
    const i64 at = (i64)token * p.heads + head;
    if (p.splits > 1) {
      if (row >= p.rows) continue;
      const i64 all = (i64)p.tokens * p.heads, part = work.split * all + at;
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++)
        *(float2*)(p.parts + part * HEAD_DIM + n * 8 + mine * 2) = make_float2(o[n * 4 + h * 2], o[n * 4 + h * 2 + 1]);
      if (mine == 0) *(float2*)(p.parts + p.splits * all * HEAD_DIM + part * 2) = make_float2(rows.top[h], total);
      continue;
    }
    const float norm = 1.f / total;
    T* to = p.out + at * HEAD_DIM;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n += 4) {
      u32 have[4] = {}, piece[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        if (n + j >= CHUNKS) continue;
        const T2 x = from_float2(o[(n + j) * 4 + h * 2] * norm, o[(n + j) * 4 + h * 2 + 1] * norm);
        have[j] = *(const u32*)&x;
      }
#pragma unroll
      for (int turn = 0; turn < 4; turn++) {  // to lane mine ^ turn goes what it owns: chunk n + (mine ^ turn)
        const int other = mine ^ turn;
        const u32 give = other == 0 ? have[0] : other == 1 ? have[1] : other == 2 ? have[2] : have[3];
        const u32 got = __shfl_xor_sync(~0u, give, turn);
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (other == j) piece[j] = got;
      }
      if (row < p.rows && n + mine < CHUNKS) *(uint4*)(to + (n + mine) * 8) = make_uint4(piece[0], piece[1], piece[2], piece[3]);
    }
  }
}

INLINE void compute(Shared& s, const Problem& p, const Scoring& how, int group, const float* slopes, const float* sinks) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const u32 q = smem_address(s.q) + group * 64 * 128;
  const int turn = 1 + group, other = 2 - group;  // named barriers: whose turn it is to use the tensor cores
  int stage = 0, tile = 0;
  u32 parity = 0;
  if (group == 1) named_arrive(other, 256);
  Work work;
  for (int round = 0; work.next(p, round); round++) {
    if (work.begin >= work.end) continue;
    const int warp_row = work.row0 + group * 64 + warp * 16;
    Rows rows;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = min(warp_row + h * 8 + lane / 4, p.rows - 1);
      const int head = work.kv_head * p.group + row % p.group;
      rows.position[h] = p.start + row / p.group;
      rows.slope[h] = SLOPES ? slopes[head] : 0.f;
      rows.top[h] = SINKS && work.split == 0 ? sinks[head] * LOG2E : -INF;
      rows.sum[h] = SINKS && work.split == 0 && lane % 4 == 0 ? 1.f : 0.f;
    }
    const int low = p.start + min(warp_row, p.rows - 1) / p.group;  // positions of the warp's first and last row
    const int high = p.start + min(warp_row + 15, p.rows - 1) / p.group;
    float weights[KEYS / 2], o[HEAD_DIM / 2];
    u32 a[KEYS / 4];

    mbar_wait(&s.q_full, tile++ & 1);
    mbar_wait(&s.k_full[stage], parity);
    arrived_fence();
    named_sync(turn, 256);
    wgmma_fence();
    scores(weights, q, smem_address(s.k[stage]));
    wgmma_commit();
    named_arrive(other, 256);
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) o[i] = 0.f;
    wgmma_wait<0>();
    pin(weights);
    if (lane == 0) mbar_arrive(&s.k_empty[stage]);
    softmax(weights, rows, how, work.begin, low, high);
    to_weights(a, weights);

    for (int at = work.begin + KEYS; at < work.end; at += KEYS) {
      const int before = stage;
      const u32 before_parity = parity;
      if (++stage == STAGES) stage = 0, parity ^= 1;
      mbar_wait(&s.k_full[stage], parity);
      arrived_fence();
      named_sync(turn, 256);
      pin(a);
      pin(o);
      wgmma_fence();
      scores(weights, q, smem_address(s.k[stage]));
      wgmma_commit();
      mbar_wait(&s.v_full[before], before_parity);
      arrived_fence();
      wgmma_fence();
      outputs(o, a, smem_address(s.v[before]));
      wgmma_commit();
      named_arrive(other, 256);
      wgmma_wait<1>();
      pin(weights);
      if (lane == 0) mbar_arrive(&s.k_empty[stage]);
      softmax(weights, rows, how, at, low, high);
      wgmma_wait<0>();
      pin(o);
      if (lane == 0) mbar_arrive(&s.v_empty[before]);
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[n * 4 + e] *= rows.keep[e / 2];
      to_weights(a, weights);
    }
    if (lane == 0) mbar_arrive(&s.q_empty);
    mbar_wait(&s.v_full[stage], parity);
    arrived_fence();
    pin(a);
    pin(o);
    wgmma_fence();
    outputs(o, a, smem_address(s.v[stage]));
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    if (lane == 0) mbar_arrive(&s.v_empty[stage]);
    if (++stage == STAGES) stage = 0, parity ^= 1;
    store(o, rows, p, work, warp_row);
  }
  if (group == 0) named_sync(turn, 256);  // the arrival that is left
}

// As attn_prefill of attn_prefill.cu, but persistent: any grid, each CTA takes every gridDim.x-th tile of 128 rows. With
// splits > 1 the keys of each tile are cut into as many parts, which attn_combine puts together.
extern "C" __global__ void __launch_bounds__(384, 1)
    attn_hopper(const T* q, const u8* cache, const int* table, T* out, float* parts, int splits, int tokens, int start, int heads, int kv_heads,
                int q_stride, float scale, int window, float softcap, const float* slopes, const float* sinks) {
  extern __shared__ __align__(1024) u8 dynamic[];
  Shared& s = *(Shared*)dynamic;
  const int group = heads / kv_heads, rows = tokens * group;
  const Problem p = {q,        cache,  table, out,  parts,                               tokens, start, heads, kv_heads,
                     q_stride, window, group, rows, (rows + ROWS - 1) / ROWS * kv_heads, splits};
  if (threadIdx.x == 0) {
    mbar_init(&s.q_full, 2 * LOADERS);
    mbar_init(&s.q_empty, 8);
    for (int i = 0; i < STAGES; i++) {
      mbar_init(&s.k_full[i], LOADERS);
      mbar_init(&s.v_full[i], LOADERS);
      mbar_init(&s.k_empty[i], 8);
      mbar_init(&s.v_empty[i], 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  pdl_launch();
  pdl_wait();
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);  // so that the compiler knows it to be uniform
  if (warpgroup == 0) {
    fewer_registers<QUANTISED ? 88 : 72>();
    load(s, p);
  } else {
    more_registers<QUANTISED ? 208 : 216>();
    compute(s, p, {scale * LOG2E, window, softcap}, warpgroup - 1, slopes, sinks);
  }
}

// out [tokens, heads * HEAD_DIM] of the parts that attn_hopper left; a warp has a row.
extern "C" __global__ void __launch_bounds__(128)
    attn_combine(const float* parts, T* out, int splits, int tokens, int start, int heads, int kv_heads, int window) {
  pdl_launch();
  pdl_wait();
  const int at = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, all = tokens * heads;
  if (at >= all) return;
  const int group = heads / kv_heads;
  const int row0 = (at / heads * group + at % heads % group) / ROWS * ROWS;
  const int end = start + (min(row0 + ROWS, tokens * group) - 1) / group + 1;
  const int first = WINDOW ? max(0, start + row0 / group - window + 1) : 0;
  const float2* sums = (const float2*)(parts + (i64)splits * all * HEAD_DIM);
  float top = -INF, total = 0.f;
  int count = 0;
  for (; count < splits; count++) {  // parts that exist
    int begin = first / KEYS * KEYS, stop = end;
    take_part(begin, stop, count, splits);
    if (begin >= stop) break;
    top = fmaxf(top, sums[count * all + at].x);
  }
  constexpr int EACH = (HEAD_DIM + 31) / 32;
  float o[EACH] = {};
  for (int s = 0; s < count; s++) {
    const float2 sum = sums[s * all + at];
    const float worth = exp2_fast(sum.x - top);
    total += sum.y * worth;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (lane + 32 * i < HEAD_DIM) o[i] += worth * parts[((i64)s * all + at) * HEAD_DIM + lane + 32 * i];
  }
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (lane + 32 * i < HEAD_DIM) out[(i64)at * HEAD_DIM + lane + 32 * i] = from_float(o[i] / total);
}
