// What a product warp of chain.cu does: bring its columns of x to shared memory, multiply its part of every stage.
#pragma once
#include "chain.cuh"
#if ARCH >= 900

// --- x --------------------------------------------------------------------------------------------------------------------------
// A warp brings the columns that it multiplies to shared memory: times gain' where a norm is asked for, with the sum of
// squares; packed with the sum of every group. No other warp reads them. A lane holds pieces of 8 columns.
constexpr int TOGETHER = 32 / PIECES;  // stages that 32 lanes bring at once

// The first column of a piece in its stage. Dense: two warps share a box of 64, one the even pieces, one the odd.
INLINE int column_of(int w, int piece) { return PACKED ? w * PART + piece * 8 : w / 2 * 64 + piece * 16 + (w & 1) * 8; }

INLINE void fetch_gain(const Phase& p, const Layout& at, u8* sm, int w, int lane) {
  const int first = lane / PIECES;
  if (p.gain)
#pragma unroll 1
    for (int stage = first; stage < stage_count(p); stage += TOGETHER) {
      const int k = stage * STEP + column_of(w, lane % PIECES);
      if (k < p.K) cp_async16(sm + at.gain + k * 4, p.gain + k), cp_async16(sm + at.gain + k * 4 + 16, p.gain + k + 4);
    }
}

#if PACKED
// Packed weights are multiplied as integers, exactly. The 128 columns of x become 16-bit integers times a scale of their own: two
// bytes, high and low, which are two columns of the product's B operand. A token's 256 bytes: [64 columns][high, low][t][16 bytes],
// where lane t of four finds, of each 16 columns, the bytes of 2 t, 2 t + 8, 2 t + 1, 2 t + 9: the order of codes in a word.
constexpr float LARGEST = 32512.f;  // whose high byte does not overflow
INLINE void store_integers(u8* to, uint2* sums, const float* x, bool there, int lane) {
  const int piece = lane % PIECES;
  u32 top = 0;  // the largest, as bits: a NaN is larger than all
#pragma unroll
  for (int e = 0; e < 8; e++) top = max(top, __float_as_uint(x[e]) & 0x7fffffffu);
#pragma unroll
  for (int d = 1; d < PIECES; d *= 2) top = max(top, __shfl_xor_sync(~0u, top, d));
  const float most = __uint_as_float(top), inverse = most < 1e-30f ? 0.f : __fdividef(LARGEST, most), scale = most * (1.f / LARGEST);
  u32 low[4], high[4];  // of the columns 2 t and 2 t + 1, in bits 0 and 16
  int sum = 0;
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const int a = __float2int_rn(x[2 * e] * inverse), b = __float2int_rn(x[2 * e + 1] * inverse);
    sum += a + b;
    low[e] = __byte_perm(a, b, 0x0400);  // bits 8..15 and 24..31 are of no account
    high[e] = __byte_perm(a + 128, b + 128, 0x0501);
  }
  // The even lane of two has the first 8 of 16 columns; it writes t = 0, 1, the odd one 2, 3.
  const bool odd = lane & 1;
#pragma unroll
  for (int e = 0; e < 2; e++) {
    const u32 theirs_low = __shfl_xor_sync(~0u, odd ? low[e] : low[2 + e], 1), theirs_high = __shfl_xor_sync(~0u, odd ? high[e] : high[2 + e], 1);
    const u32 my_low = odd ? low[2 + e] : low[e], my_high = odd ? high[2 + e] : high[e];
    u8* place = to + piece / 8 * 128 + (odd * 2 + e) * 16 + piece / 2 % 4 * 4;
    if (there) *(u32*)place = odd ? __byte_perm(theirs_high, my_high, 0x6240) : __byte_perm(my_high, theirs_high, 0x6240);
    if (there) *(u32*)(place + 64) = odd ? __byte_perm(theirs_low, my_low, 0x6240) : __byte_perm(my_low, theirs_low, 0x6240);
  }
#pragma unroll
  for (int d = 1; d < GROUP / 8; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
  if (there && lane % (GROUP / 8) == 0) sums[piece * 8 / GROUP * TOKENS] = make_uint2(sum, __float_as_uint(scale));
}
#endif

// The pieces of all tokens are asked for at once, and again from the first one that was not there yet; each is turned into what
// the products want in its place.
INLINE void stage_x(const Chain& c, const Phase& p, int phase, u32 box, const Layout& at, u8* sm, int pitch, int w, int lane) {
  const bool mail = p.mail_in >= 0;
  const int stages = stage_count(p), stride = mail ? p.K : p.xstride;
  const T* const from = mail ? (const T*)(c.mail + box * c.mail_room + p.mail_in) : p.x;
  const int first = lane / PIECES, piece = lane % PIECES, column = column_of(w, piece);
  const int place = at.x + (PACKED ? w * PART + piece * 8 : column) * 2;
  float* const squares = (float*)(sm + at.squares) + (phase * WARPS + w) * TOKENS;
  if (lane < TOKENS) squares[lane] = 0.f;
  bool asked = false;
#pragma unroll 1
  for (int t = 0, begin = 0; t < c.n;) {
    const int stage = begin + first, k = stage * STEP + column;
    const bool there = stage < stages;
    uint4* const raw = (uint4*)(sm + place + t * pitch + stage * STEP * 2);
    uint4 v = make_uint4(0, 0, 0, 0);
    while (true) {
      if (asked) {
        if (there) v = *raw;
        if (!mail || __all_sync(~0u, arrived(v))) break;
      }
#pragma unroll 1
      for (int u = t, next = stage; u < c.n; u++, next = first)
#pragma unroll 1
        for (; next < stages; next += TOGETHER) {
          const int column_next = next * STEP + column;
          cp_async16(sm + place + u * pitch + next * STEP * 2, from + (size_t)u * stride + (column_next < p.K ? column_next : 0), column_next < p.K);
        }
      cp_async_commit();
      cp_async_wait<0>();
      __syncwarp();
      asked = true;
    }
    __syncwarp();  // what others of the warp read here is about to be overwritten
    if (PACKED || p.gain) {
      float x[8];
      const T2* pair = (const T2*)&v;
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float2 f = to_float2(pair[e]);
        x[2 * e] = f.x, x[2 * e + 1] = f.y;
      }
      if (p.gain) {
        float sum = 0.f;
#pragma unroll
        for (int e = 0; e < 8; e++) sum += x[e] * x[e];
#pragma unroll
        for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (lane == 0) squares[t] += sum;
        if (there && k < p.K) {
          const float4* gain = (const float4*)(sm + at.gain + k * 4);
          const float4 g0 = gain[0], g1 = gain[1];
          x[0] *= g0.x, x[1] *= g0.y, x[2] *= g0.z, x[3] *= g0.w, x[4] *= g1.x, x[5] *= g1.y, x[6] *= g1.z, x[7] *= g1.w;
        }
      }
#if PACKED
      store_integers(sm + at.x + t * pitch + (stage * STEP + w * PART) * 2,
                     (uint2*)(sm + at.sums) + (w * c.most_stages + stage) * GROUPS * TOKENS + t, x, there, lane);
#else
      const T2 scaled[4] = {from_float2(x[0], x[1]), from_float2(x[2], x[3]), from_float2(x[4], x[5]), from_float2(x[6], x[7])};
      v = *(const uint4*)scaled;
#endif
    }
    if (!PACKED && there) *raw = v;
    if ((begin += TOGETHER) >= stages) begin = 0, t++;
  }
  __syncwarp();
}

// --- products ---------------------------------------------------------------------------------------------------------------------
#if PACKED
// m16n8k32 of unsigned by signed bytes (PTX ISA). A word has rows r and r + 8 of four columns in its low and its high half bytes.
INLINE void mma_bytes(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// acc (rows r, r + 8 of token l % 4) += this warp's part of the stage at `stage` times the columns of x at `x`, whose sums and
// scale are at `sums`; the stage is given back as soon as it is in registers. `columns`: so many exist, or more.
INLINE void multiply(float* acc, u32 full, u32 parity, u32 stage, u32 x, u32 sums, int columns, int w, int lane) {
  constexpr u32 LOW = 0x0f0f0f0f;
  uint4 b = lds16(x);  // of 64 columns
  barrier_wait(full, parity);
  const u32 from = stage + w * 1024 + lane * 16;
  const uint4 words[2] = {lds16(from), lds16(from + 512)};
  const u32 pairs = stage + WEIGHT_BYTES + w * (GROUPS * 64) + (lane >> 2) * 8;
  uint2 pair = lds8(pairs);
  if (GROUPS == 1) release(full + 8);
  int part[4] = {};
#pragma unroll
  for (int k = 0; k < 4; k++) {  // 32 columns
    const uint4 word = words[k / 2], v = b;
    if (k == 1) b = lds16(x + 128);
    const u32 first = k % 2 ? word.z : word.x, second = k % 2 ? word.w : word.y;
    mma_bytes(part, first & LOW, first >> 4 & LOW, second & LOW, second >> 4 & LOW, k % 2 ? v.z : v.x, k % 2 ? v.w : v.y);
    if ((k + 1) * 32 % GROUP == 0) {
      const int g = k * 32 / GROUP;
      if (g > 0) pair = lds8(pairs + g * 64);
      if (GROUPS > 1 && g == GROUPS - 1) release(full + 8);
      const uint2 sum = lds8(sums + g * TOKENS * 8);
      if (GROUPS == 1 || g * GROUP < columns) {  // beyond, there are no scales
        const float scale = __uint_as_float(sum.y);
        acc[0] += (float)(part[0] * 256 + part[1] - (int)(pair.x >> 16) * (int)sum.x) * (scale * __half2float(*(half*)&pair.x));
        acc[1] += (float)(part[2] * 256 + part[3] - (int)(pair.y >> 16) * (int)sum.x) * (scale * __half2float(*(half*)&pair.y));
      }
      part[0] = part[1] = part[2] = part[3] = 0;
    }
  }
}
// Sums of a product warp to its buffer [token][row].
INLINE void store_sums(u32 red, const float* acc, int n, int lane) {
  const u32 to = red + ((lane & 3) * COL + (lane >> 2)) * 4;
  if ((lane & 3) < n) sts4(to, acc[0]), sts4(to + 32, acc[1]);
}
#else
// Pieces of 8 columns of rows r and r + 8. A box of 64 columns is 8 rows of 128 bytes, whose pieces are exchanged (piece ^ row);
// lane t of four takes the piece 2 t + w % 2, so that no two rows meet on a bank.
INLINE void multiply(float* acc, u32 full, u32 parity, u32 stage, u32 x, u32, int, int w, int lane) {
  const uint4 v = lds16(x);
  const int row = lane >> 2, piece = (lane & 3) * 2 + (w & 1);
  barrier_wait(full, parity);
  const u32 from = stage + w / 2 * 1024 + row * 128 + (piece ^ row) * 16;
  const uint4 low = lds16(from), high = lds16(from + 8192);
  release(full + 8);
  const u32 a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
  const u32 b0[2] = {v.x, v.y}, b1[2] = {v.z, v.w};
  mma(acc, a0, b0);
  mma(acc, a1, b1);
}
// Sums of a product warp to its buffer [token][row].
INLINE void store_sums(u32 red, const float* acc, int n, int lane) {
  const int token = (lane & 3) * 2;
  const u32 to = red + (token * COL + (lane >> 2)) * 4;
  if (token < n) sts4(to, acc[0]), sts4(to + 32, acc[2]);
  if (token + 1 < n) sts4(to + COL * 4, acc[1]), sts4(to + COL * 4 + 32, acc[3]);
}
#endif

INLINE void multiply_tiles(const Chain& c, const Layout& at, u8* sm, u32 base, int w, int lane) {
  u32 slot = 0, turns = 0;  // bit 0: of the ring; above: tiles
  // the same in every phase: no warp then needs the shared memory of another, which may still be at the one before
  const int pitch = c.most_stages * STEP * 2 + XPAD;
  pdl_wait();
  u32* const box = (u32*)(sm + BOXES) + w;  // the warp's own copy: its registers are few
  if (lane == 0) *box = state(c, 0) & 1;
  __syncwarp();
#pragma unroll 1
  for (int phase = 0; phase < c.count; phase++) {
    const Phase& p = c.phases[phase];
    const int stages = pinned(stage_count(p)), tiles = pinned(tile_count(p)), n = pinned(c.n);
    if (blockIdx.x >= tiles) continue;
    // what there is of this warp's columns in the last stage, and in those before it
    const int last = pinned(p.K) - (stages - 1) * STEP - (PACKED ? w * PART : w / 2 * 64);
    fetch_gain(p, at, sm, w, lane);
    stage_x(c, p, phase, *box, at, sm, pitch, w, lane);
    // lane l has column l / 4 of the B operand: packed a byte of token l / 8, dense a token
    const int token = PACKED ? lane >> 3 : lane >> 2;
    const int of_token = at.x + token * pitch + (PACKED ? w * 256 + (lane & 7) * 16 : (w / 2 * 64 + (lane & 3) * 16 + (w & 1) * 8) * 2);
    const u32 x0 = base + (token < n ? of_token : at.zeros + (of_token & 127));  // other banks
    const u32 advance = token < n ? STEP * 2 : 0;
    const u32 sums0 = base + at.sums + w * c.most_stages * SUM_BYTES + (lane & 3) * 8;
    const u32 red = base + at.red + w * n * COL * 4;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turns += 2) {
      float acc[4] = {};
      u32 x = x0, sums = sums0;
#pragma unroll 1
      for (int left = stages; left; left--) {
        const u32 full = ring_full(base, slot);
        if (left > 1 || last > 0) multiply(acc, full, turns & 1, base + at.ring + slot * STAGE_BYTES, x, sums, left > 1 ? PART : last, w, lane);
        else barrier_wait(full, turns & 1), release(full + 8);
        x += advance, sums += SUM_BYTES;
        if (++slot == c.stages) slot = 0, turns ^= 1;
      }
      const u32 buffer = turns >> 1 & 1;
      barrier_wait(base + EMPTY + 8 * buffer, (turns >> 2 & 1) ^ 1);
      store_sums(red + buffer * (WARPS * COL * 4) * n, acc, n, lane);
      release(base + FULL + 8 * buffer);
    }
  }
}
#endif
