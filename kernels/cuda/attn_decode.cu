// One decode step's attention of one layer: rotates q and k, writes the new token into the paged cache, attends over
// positions 0..position, merges the splits (flash-decoding, Dao et al. 2023). Grid (kv_heads * head groups, batch, most
// splits); clusters, if any, along the splits of one row. Macros: those of attn_decode.cuh; CTAS resident on an SM.
#include "attn_decode.cuh"

#ifndef CTAS
#define CTAS 4
#endif

struct Arguments {
  const T* qkv;           // [batch, (heads + 2 kv_heads) * HEAD_DIM]
  T* out;                 // [batch, heads * HEAD_DIM]
  u8* cache;              // [blocks, kv_heads, RECORD_BYTES]
  const int *rows, *positions, *tables;
  const float *cos, *sin;  // [batch, rope_dim / 2]
  const float* gain;       // [heads + kv_heads, HEAD_DIM] or null
  const float *slopes, *sinks;
  float* partial;   // [batch, gridDim.x, gridDim.z / CLUSTER, GROUP, HEAD_DIM]
  float2* weights;  // the same without HEAD_DIM: (maximum, sum)
  int* tickets;     // [batch, gridDim.x], zero between launches
  int table_stride, kv_heads, group, rope_dim, window, least_split;
  float scale, softcap, eps;
};

// Rotated q into s.q, its sums into s.q_sum; in the CTA that has the new token also K and V, into s.row and the cache.
INLINE void prepare(Shared& s, const Arguments& a, const Context& c, int kv_head, int first_head, int heads, bool owner,
                    int warp, int lane) {
  const int b = blockIdx.y, total = a.kv_heads * a.group, half_dim = a.rope_dim / 2;
  const T* row = a.qkv + (i64)b * (total + 2 * a.kv_heads) * HEAD_DIM;
  const float *cos = a.cos + b * half_dim, *sin = a.sin + b * half_dim;
  const bool writes = first_head == kv_head * a.group;  // one of the CTAs that share a key-value head
#pragma unroll 1
  for (int i = warp; i < heads + (owner ? 2 : 0); i += WARPS) {
    const int which = i - heads;  // 0 K, 1 V
    const int source = which < 0 ? first_head + i : total + which * a.kv_heads + kv_head;
    const float* gain = a.gain && which < 1 ? a.gain + (i64)source * HEAD_DIM : nullptr;
    float x[PER_LANE];
    load_head(x, row + (i64)source * HEAD_DIM, gain, a.eps, cos, sin, which < 1 ? a.rope_dim : 0, lane);
    if (which < 0) {
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < PER_LANE; j++) {
#if KV_BITS == 16
        const M q = from_float(x[j]);
#else
        const M q = __float2half_rn(fminf(fmaxf(x[j], -65504.f), 65504.f));
        sum += __half2float(q);
#endif
        if (holds_head(lane)) ((M*)s.q)[q_place(i, lane * PER_LANE + j)] = q;
      }
      if (QUANTISED) {
        sum = warp_sum(sum);
        if (lane == 0) s.q_sum[i] = sum;
      }
      continue;
    }
    const int at = c.position % BLOCK_SIZE;
    u8* record = kv_record(a.cache, c.table[c.position / BLOCK_SIZE], a.kv_heads, kv_head);
    u8* stored = record + which * V_OFFSET + at * ROW_BYTES;
    if constexpr (QUANTISED) {
      u32 codes[PER_LANE];
      const half2 params = quantise_head(codes, x, lane);
      store_codes(s.row[which], codes, lane);
      if (writes) store_codes(stored, codes, lane);
      if (lane == 0) s.params[which] = params;
      if (lane == 0 && writes) *(half2*)(record + (which ? V_PARAMS_OFFSET : K_PARAMS_OFFSET) + at * 4) = params;
    } else {
      store_row(s.row[which], x, lane);
      if (writes) store_row(stored, x, lane);
    }
  }
}

// What a part of the softmax gives: `x` and `sum` are relative to 2^top.
struct Part {
  float4 x;
  float top, sum;
};
INLINE void add_part(Part& p, float4 x, float top, float sum) {
  const float most = fmaxf(p.top, top), old = exp2_fast(p.top - most), now = exp2_fast(top - most);
  p.top = most, p.sum = p.sum * old + sum * now;
  p.x.x = p.x.x * old + x.x * now, p.x.y = p.x.y * old + x.y * now;
  p.x.z = p.x.z * old + x.z * now, p.x.w = p.x.w * old + x.w * now;
}
INLINE Part no_part() { return {make_float4(0.f, 0.f, 0.f, 0.f), NO_SCORE, 0.f}; }

// The warp's sums into shared memory.
INLINE void publish(Shared& s, Sums& sums, int warp, int lane) {
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        sums.sum[n][h] += __shfl_xor_sync(~0u, sums.sum[n][h], step);
        if (!QUANTISED) continue;
        sums.p_sum[n][h] += __shfl_xor_sync(~0u, sums.p_sum[n][h], step);
        sums.centre[n][h] += __shfl_xor_sync(~0u, sums.centre[n][h], step);
      }
      const int column = 8 * n + 2 * lane + h;
      if (lane < 4) s.top[warp][column] = sums.top[n][h], s.sum[warp][column] = sums.sum[n][h];
    }
#pragma unroll
  for (int m = 0; m < V_MMAS; m++) {
    const int number = v_number(m, lane);
    if (number >= HEAD_DIM) continue;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int column = 8 * n + 2 * (lane % 4) + h;
        if (column >= GROUP) continue;
        float even = sums.out[n][m][h], odd = sums.out[n][m][2 + h];
        if (QUANTISED) {
          constexpr float UNIT = CODE_UNIT / P_UNIT;
          const float middle = sums.centre[n][h] - sums.p_sum[n][h] * (V_CENTRE / P_UNIT);
          even = even * UNIT + middle;
          odd = odd * (KV_BITS == 4 ? UNIT / 16.f : UNIT) + middle;
        }
        *(float2*)&s.out[warp][column][number] = make_float2(even, odd);
      }
  }
}
// Item i (four numbers of a head) of what the CTA's warps published.
INLINE Part sum_warps(const Shared& s, int i) {
  const int h = i / (HEAD_DIM / 4), number = i % (HEAD_DIM / 4) * 4;
  Part p = no_part();
#pragma unroll
  for (int w = 0; w < WARPS; w++) p.top = fmaxf(p.top, s.top[w][h]);
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    const float4 y = *(const float4*)&s.out[w][h][number];
    const float factor = exp2_fast(s.top[w][h] - p.top);
    p.sum += s.sum[w][h] * factor;
    p.x.x += y.x * factor, p.x.y += y.y * factor, p.x.z += y.z * factor, p.x.w += y.w * factor;
  }
  return p;
}

// out = x / sum, where the sum of the softmax has one more term if there are sinks.
INLINE void finish(const Arguments& a, int first_head, int i, const Part& p) {
  const int head = first_head + i / (HEAD_DIM / 4), number = i % (HEAD_DIM / 4) * 4;
  float factor = 1.f, sum = p.sum;
  if (SINKS) {
    const float sink = a.sinks[head] * LOG2E, most = fmaxf(p.top, sink);
    factor = exp2_fast(p.top - most);
    sum = sum * factor + exp2_fast(sink - most);
  }
  factor = __fdividef(factor, sum);
  T2* to = (T2*)(a.out + ((i64)blockIdx.y * a.kv_heads * a.group + head) * HEAD_DIM + number);
  to[0] = from_float2(p.x.x * factor, p.x.y * factor);
  to[1] = from_float2(p.x.z * factor, p.x.w * factor);
}

// Release what this CTA wrote, acquire what those before it did.
INLINE int take_ticket(int* ticket) {
  int old;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0,[%1],1;" : "=r"(old) : "l"(ticket) : "memory");
  return old;
}

// Item i, merged by cluster `at` of `count`: the answer if there is no other, else one of what combine adds up.
INLINE void deliver(const Arguments& a, int first_head, int count, int at, const Part& p, int i) {
  if (count == 1) return finish(a, first_head, i, p);
  const i64 slot = ((i64)blockIdx.y * gridDim.x + blockIdx.x) * (gridDim.z / CLUSTER) + at;
  __stcg((float4*)a.partial + slot * ITEMS + i, p.x);
  if (i % (HEAD_DIM / 4) == 0) __stcg(a.weights + slot * GROUP + i / (HEAD_DIM / 4), make_float2(p.top, p.sum));
}
// By the CTA that comes last, in the order of the splits.
INLINE void combine(Shared& s, const Arguments& a, int first_head, int items, int count) {
  const i64 place = (i64)blockIdx.y * gridDim.x + blockIdx.x, slot = place * (gridDim.z / CLUSTER);
  __syncthreads();
  if (threadIdx.x == 0) s.last = take_ticket(a.tickets + place) == count * CLUSTER - 1;
  __syncthreads();
  if (!s.last) return;
  for (int i = threadIdx.x; i < items; i += THREADS) {
    Part p = no_part();
#pragma unroll 8
    for (int k = 0; k < count; k++) {
      const float2 w = __ldcg(a.weights + (slot + k) * GROUP + i / (HEAD_DIM / 4));
      add_part(p, __ldcg((const float4*)a.partial + (slot + k) * ITEMS + i), w.x, w.y);
    }
    finish(a, first_head, i, p);
  }
  if (threadIdx.x == 0) a.tickets[place] = 0;
}

#if CLUSTER > 1
INLINE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
INLINE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
INLINE u32 remote(const void* p, int rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(there) : "r"(smem_address(p)), "r"(rank));
  return there;
}
// Each CTA of the cluster gets its share of the items from all.
INLINE void exchange(Shared& s, int items, int rank) {
  for (int i = threadIdx.x; i < items; i += THREADS) {
    const Part p = sum_warps(s, i);
    asm volatile("st.shared::cluster.v4.f32 [%0],{%1,%2,%3,%4};" ::"r"(remote(&s.shares[rank][i % SHARE], i / SHARE)),
                 "f"(p.x.x), "f"(p.x.y), "f"(p.x.z), "f"(p.x.w) : "memory");
    if (i % (HEAD_DIM / 4) == 0) {
#pragma unroll
      for (int r = 0; r < CLUSTER; r++)
        asm volatile("st.shared::cluster.v2.f32 [%0],{%1,%2};" ::"r"(remote(&s.weights[rank][i / (HEAD_DIM / 4)], r)),
                     "f"(p.top), "f"(p.sum) : "memory");
    }
  }
  cluster_arrive();
  cluster_wait();
}
INLINE Part sum_cluster(const Shared& s, int i) {
  Part p = no_part();
#pragma unroll
  for (int k = 0; k < CLUSTER; k++) {
    const float2 w = s.weights[k][i / (HEAD_DIM / 4)];
    add_part(p, s.shares[k][i % SHARE], w.x, w.y);
  }
  return p;
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
#if CLUSTER > 1
__cluster_dims__(1, 1, CLUSTER)
#endif
attn_decode(const __grid_constant__ Arguments a) {
  __shared__ Shared s;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, b = blockIdx.y, split = blockIdx.z;
  pdl_launch();
  Context c;
  c.scale = SOFTCAP ? a.scale : a.scale * LOG2E, c.softcap = a.softcap;
  c.position = a.positions[b], c.table = a.tables + (i64)a.rows[b] * a.table_stride;
  const int parts = gridDim.x / a.kv_heads;  // CTAs that share a key-value head
  const int kv_head = blockIdx.x / parts;
  c.records = kv_record(a.cache, 0, a.kv_heads, kv_head), c.stride = a.kv_heads * RECORD_BYTES;
  const int offset = blockIdx.x % parts * GROUP, first_head = kv_head * a.group + offset;
  const int heads = min(GROUP, a.group - offset), items = heads * (HEAD_DIM / 4);
  c.first = a.window > 0 ? max(0, c.position + 1 - a.window) : 0;

  const int base = c.first & ~15, length = c.position + 1 - base;
  const int most = gridDim.z / CLUSTER, wanted = max(1, min(most, length / a.least_split)) * CLUSTER;
  const int size = (length + wanted * STEP - 1) / (wanted * STEP) * STEP;  // tokens of a split
  const int count = (length + size * CLUSTER - 1) / (size * CLUSTER);     // of clusters
  if (split / CLUSTER >= count) return;
#if CLUSTER > 1
  cluster_arrive();  // that all run, before anything is sent
#endif
  const int token = base + split * size + warp * 16;
  c.end = min(c.position + 1, base + (split + 1) * size);

  // What older steps left in the cache, before the wait: nothing in this step writes it.
  Tile tiles[DEPTH] = {};
  int blocks[DEPTH];
#pragma unroll
  for (int d = 0; d < DEPTH; d++) {
    const int at = token + d * STEP;
    if (at < c.end) {
      const u8* record = record_of(c, find_block(c, at));
      load_k(tiles[d], record, at, c.first, lane);
      load_v(tiles[d], record, at, c.first, lane);
    }
    blocks[d] = find_block(c, at + DEPTH * STEP);
  }
  for (int i = threadIdx.x; i < NT * K_PAIRS * 32; i += THREADS) ((uint4*)s.q)[i] = make_uint4(0, 0, 0, 0);
  if (QUANTISED && threadIdx.x < COLUMNS) s.q_sum[threadIdx.x] = 0.f;
  __syncthreads();
  pdl_wait();
  const bool owner = c.position < base + (split + 1) * size;
  if (base + split * size < c.end) prepare(s, a, c, kv_head, first_head, heads, owner, warp, lane);
  __syncthreads();
  Sums sums;
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      sums.top[n][h] = NO_SCORE, sums.sum[n][h] = sums.p_sum[n][h] = sums.centre[n][h] = 0.f;
      const int column = 8 * n + 2 * (lane % 4) + h;
      c.slope[n][h] = ALIBI && column < heads ? a.slopes[first_head + column] * LOG2E : 0.f;
#pragma unroll
      for (int m = 0; m < V_MMAS; m++) sums.out[n][m][h] = sums.out[n][m][2 + h] = 0.f;
    }
  attend(sums, tiles, blocks, c, s, token, lane);
  publish(s, sums, warp, lane);
  __syncthreads();
#if CLUSTER > 1
  cluster_wait();
  const int rank = split % CLUSTER;
  exchange(s, items, rank);
  for (int i = rank * SHARE + threadIdx.x; i < min(items, (rank + 1) * SHARE); i += THREADS)
    deliver(a, first_head, count, split / CLUSTER, sum_cluster(s, i), i);
#else
  for (int i = threadIdx.x; i < items; i += THREADS) deliver(a, first_head, count, split, sum_warps(s, i), i);
#endif
  if (count > 1) combine(s, a, first_head, items, count);
}
