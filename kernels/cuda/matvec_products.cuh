// What a product warp of matvec.cu does: stage its columns of x, stream its chunks of W, multiply. Included where the
// macros, Args and Layout are known.
#pragma once

// --- x ------------------------------------------------------------------------------------------------------------------
// A product warp brings the columns of its chunks to shared memory: times gain' where a norm is asked for, with the sum of
// squares; W4 with the sum of every group. No other warp reads them.
#define LANES (CH / 8)       // lanes per row of a chunk
#define TOGETHER (32 / LANES)  // tokens at a time

INLINE void stage_gain(const Args& p, const Layout& at, u8* sm, int w, int lane) {
  if (!p.gain) return;
  for (int c = w; c < at.count; c += WARPS) {
    const int k = (at.first + c) * CH + lane * 4;
    if (lane < CH / 4) cp_async16(sm + at.gain + (c * CH + lane * 4) * 4, p.gain + (k < p.K ? k : 0), k < p.K);
  }
}

INLINE void apply_gain(const Args& p, const Layout& at, u8* sm, int w, int lane) {
  constexpr int PARTS = (TOKENS + TOGETHER - 1) / TOGETHER;
  const int sub = lane / LANES, column = lane % LANES * 8;
  float squares[PARTS] = {};
  for (int c = w; c < at.count; c += WARPS) {
    const float4* gain = (const float4*)(sm + at.gain + (c * CH + column) * 4);
    const float4 g0 = gain[0], g1 = gain[1];
    const float g[8] = {g0.x, g0.y, g0.z, g0.w, g1.x, g1.y, g1.z, g1.w};
#pragma unroll
    for (int u = 0; u < PARTS; u++) {
      const int t = u * TOGETHER + sub;
      if (t < p.n) {
        uint4* place = (uint4*)(sm + at.x + t * at.pitch + (c * CH + column) * 2);
        uint4 v = *place;
        T2* pair = (T2*)&v;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float2 f = to_float2(pair[i]);
          squares[u] += f.x * f.x + f.y * f.y;
          pair[i] = from_float2(f.x * g[2 * i], f.y * g[2 * i + 1]);
        }
        *place = v;
      }
    }
  }
#pragma unroll
  for (int u = 0; u < PARTS; u++) {
    if (u * TOGETHER >= p.n) break;
    for (int d = LANES / 2; d; d /= 2) squares[u] += __shfl_xor_sync(0xffffffff, squares[u], d);
    if (lane % LANES == 0) ((float*)(sm + at.squares))[w * TOKENS + u * TOGETHER + sub] = squares[u];
  }
  __syncwarp();
}

// This lane's B address of the warp's first chunk, and how far it is to its next.
struct Fragments {
  u32 x[NT], advance[NT];
  INLINE Fragments(const Args& p, const Layout& at, const u8* sm, int w, int lane) {
    // W4 by ldmatrix: lane l gives row l % 8 of matrix l / 8; dense: token l / 4, 8 columns from 8 (l % 4)
    const int token = W4 ? lane & 7 : lane >> 2, part = W4 ? lane >> 3 : lane & 3;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
      const bool there = nt * 8 + token < p.n;
      const int place = at.x + (nt * 8 + token) * at.pitch + w * CH * 2 + part * 16;
      x[nt] = smem_address(sm) + (there ? place : at.zeros + (place & 127));  // the same banks: no conflicts
      advance[nt] = there ? WARPS * CH * 2 : 0;
    }
  }
};

INLINE void ldmatrix4_at(u32* r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
INLINE uint4 lds16(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}

#if W4
// The sums of x over every group, as the product of a matrix of ones with it.
INLINE void sum_groups(const Args& p, const Layout& at, u8* sm, int w, int lane) {
  const u32 one = DTYPE_BF16 ? 0x3f803f80 : 0x3c003c00, ones[4] = {one, one, one, one};
  Fragments x(p, at, sm, w, lane);
  for (int c = w; c < at.count; c += WARPS) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
      float sum[4] = {};
#pragma unroll
      for (int k = 0; k < CH; k += 32) {
        u32 b[4];
        ldmatrix4_at(b, x.x[nt] + k * 2);
        mma(sum, ones, b);
        mma(sum, ones, b + 2);
        if ((k + 32) % GROUP == 0) {
          if (lane < 4) *(float2*)(sm + at.sums + ((c * GROUPS + k / GROUP) * TOKENS + nt * 8 + lane * 2) * 4) = make_float2(sum[0], sum[1]);
          sum[0] = sum[1] = 0.f;
        }
      }
      x.x[nt] += x.advance[nt];
    }
  }
  __syncwarp();
}
#endif

// --- products ----------------------------------------------------------------------------------------------------------
#if W4
// Eight codes as 16-bit floating-point numbers. bfloat16: 128 + q. half: q * 2^-24 in rows r and q * 2^-20 in rows r + 8:
// the code is the mantissa of a subnormal number, exact in the product, with no base to take off again.
INLINE void decode(u32* a, u32 q) {
#if DTYPE_BF16
  a[0] = and_or(q, 0x000f000f, 0x43004300);
  a[1] = and_or(q >> 4, 0x000f000f, 0x43004300);
  a[2] = and_or(q >> 8, 0x000f000f, 0x43004300);
  a[3] = and_or(q >> 12, 0x000f000f, 0x43004300);
#else
  const u32 high = q >> 8;
  a[0] = q & 0x000f000f;
  a[1] = q & 0x00f000f0;
  a[2] = high & 0x000f000f;
  a[3] = high & 0x00f000f0;
#endif
}

// acc += scale * (part - zero * sum of x), per row and token. A zero's bits are, as a half, zero * 2^-24.
INLINE void fold(float (*acc)[4], float (*part)[NT][4], uint2 pair, const float* sums) {
  const float2 low = __half22float2(*(half2*)&pair.x), high = __half22float2(*(half2*)&pair.y);
#if DTYPE_BF16
  const float z0 = fmaf(low.y, 16777216.f, 128.f), z1 = fmaf(high.y, 16777216.f, 128.f);
#else
  const float z0 = low.y, z1 = high.y * 16.f;
#endif
#pragma unroll
  for (int nt = 0; nt < NT; nt++) {
    const float2 sum = *(const float2*)(sums + nt * 8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float all = part[0][nt][i] + part[1][nt][i];
      if (CHAINS == 4) all += part[CHAINS - 2][nt][i] + part[CHAINS - 1][nt][i];
      acc[nt][i] += (i < 2 ? low.x : high.x) * (all - (i < 2 ? z0 : z1) * (i & 1 ? sum.y : sum.x));
    }
  }
}
#endif

// The copying of a warp's chunks, in order and across tiles, to its ring of DEPTH slots in shared memory. A lane copies what
// it will read itself, so that a chunk needs no barrier.
struct Stream {
  const Args& p;
  const Layout& at;
  const u8 *word, *other;  // W4: of words, pairs; dense: of rows l / 4, l / 4 + 8
  i64 jump;                // W4: bytes of words from behind the last chunk in a tile to the first in the next
  u32 ring, pair, slot;    // this lane's 16 bytes of slot 0, its 8 of pairs; bytes from there to the slot next to fill
  int tile, tiles, step, w, lane, left, mine, k;

  INLINE Stream(const Args& p, const Layout& at, u32 ring, int w, int lane, int tile, int tiles, int step)
      : p(p), at(at), ring(ring + w * (DEPTH * SLOT) + lane * 16), pair(ring + w * (DEPTH * SLOT) + 1024 + lane * 8), slot(0), tile(tile), tiles(tiles), step(step), w(w), lane(lane),
        mine((at.count - w + WARPS - 1) / WARPS) {
    seek();
  }
  INLINE void seek() {
    left = mine;
    const size_t chunk = at.first + w;
#if W4
    const size_t chunks = (p.K + 127) / 128;
    word = p.w + (tile * chunks + chunk) * 1024 + lane * 16;
    other = p.pairs + (tile * chunks + chunk) * (GROUPS * 64) + (lane >> 2) * 8;
    jump = (step * (int)chunks - mine * WARPS) * (i64)1024;
#else
    const int high = min(matrix_row(p, tile, (lane >> 2) + 8), p.N - 1), low = min(matrix_row(p, tile, lane >> 2), p.N - 1);
    k = chunk * CH + (lane & 3) * 8;
    word = p.w + ((size_t)low * p.K + k) * 2;
    other = p.w + ((size_t)high * p.K + k) * 2;
#endif
  }
  INLINE void load() {
    if (tile < tiles) {
      const u32 to = ring + slot;
#if W4
      copy16(to, word);
      copy16(to + 512, word + 512);
#pragma unroll
      for (int g = 0; g < GROUPS; g++) copy8(pair + slot + g * 256, other + g * 64);
      word += WARPS * 1024;
      other += WARPS * GROUPS * 64;
#else
#pragma unroll
      for (int i = 0; i < CH / 32; i++) {
        const bool inside = k + i * 32 < p.K;
        copy16(to + i * 1024, inside ? word + i * 64 : p.w, inside);
        copy16(to + i * 1024 + 512, inside ? other + i * 64 : p.w, inside);
      }
      word += WARPS * CH * 2;
      other += WARPS * CH * 2;
      k += WARPS * CH;
#endif
      if (--left == 0) {
        tile += step;
#if W4
        left = mine;
        word += jump;
        other += jump / (16 / GROUPS);
#else
        seek();
#endif
      }
    }
    cp_async_commit();
    slot = slot == (DEPTH - 1) * SLOT ? 0 : slot + SLOT;
  }
  static INLINE void copy8(u32 to, const u8* from) {
#if ARCH >= 800
    asm volatile("cp.async.ca.shared.global [%0],[%1],8;" ::"r"(to), "l"(from) : "memory");
#else
    const uint2 v = __ldg((const uint2*)from);
    asm volatile("st.shared.v2.u32 [%0],{%1,%2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
#endif
  }
  static INLINE void copy16(u32 to, const u8* from, bool valid = true) {
#if ARCH >= 800
    asm volatile("cp.async.cg.shared.global.L2::256B [%0],[%1],16,%2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
#else
    const uint4 v = valid ? ld_stream(from) : make_uint4(0, 0, 0, 0);
    asm volatile("st.shared.v4.u32 [%0],{%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
  }
};

// acc += the chunk of weights at `q` (this lane's 16 bytes) times the columns of x at `x`.
#if W4
INLINE void multiply(float (*acc)[4], u32 q, u32 pairs, const u32* x, const float* sums) {
  const uint4 words[2] = {lds16(q), lds16(q + 512)};
  u32 b[NT][CH / 32][4];
#pragma unroll
  for (int nt = 0; nt < NT; nt++)
#pragma unroll
    for (int k = 0; k < CH / 32; k++) ldmatrix4_at(b[nt][k], x[nt] + k * 64);
  float part[CHAINS][NT][4] = {};
#pragma unroll
  for (int k = 0; k < CH / 32; k++) {  // two slabs of 16 columns
#pragma unroll
    for (int h = 0; h < 2; h++) {
      u32 a[4];
      decode(a, k % 2 ? (h ? words[k / 2].w : words[k / 2].z) : (h ? words[k / 2].y : words[k / 2].x));
#pragma unroll
      for (int nt = 0; nt < NT; nt++) mma(part[(2 * k + h) % CHAINS][nt], a, b[nt][k] + 2 * h);
    }
    if ((k + 1) * 32 % GROUP == 0) {
      const int group = k * 32 / GROUP;
      uint2 pair;
      asm volatile("ld.shared.v2.u32 {%0,%1},[%2];" : "=r"(pair.x), "=r"(pair.y) : "r"(pairs + group * 256) : "memory");
      fold(acc, part, pair, sums + group * TOKENS);
#pragma unroll
      for (int i = 0; i < CHAINS * NT * 4; i++) ((float*)part)[i] = 0.f;
    }
  }
}
#else
// Lane t of four holds the columns 8t .. 8t + 7 of 32: two slabs of 16, in an order that x shares.
INLINE void multiply(float (*acc)[4], u32 q, u32, const u32* x, const float*) {
#pragma unroll
  for (int i = 0; i < CH / 32; i++) {
    const uint4 low = lds16(q + i * 1024), high = lds16(q + i * 1024 + 512);
    const u32 a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
      const uint4 v = lds16(x[nt] + i * 64);
      const u32 b0[2] = {v.x, v.y}, b1[2] = {v.z, v.w};
      mma(acc[nt], a0, b0);
      mma(acc[nt], a1, b1);
    }
  }
}
#endif
