// One warp's share of decode attention: tiles of 16 tokens from the paged cache through the tensor cores.
// S^T = K Q^T and O^T = V^T P^T, so that the query heads of a group share every load as the 8 columns of m16n8k16.
//
// K and V go from memory straight into fragments: a lane's bytes of a K row *are* its columns of the product under an
// order of the head's numbers that q follows; V needs two tokens in one register, which is one byte permutation, in an
// order of rows that the output undoes. Quantised codes stay codes (see CODE_UNIT): the scale and minimum of K act on
// the score, those of V on P.
//
// Macros: those of kv.cuh; GROUP query heads of one key-value head that a CTA takes (1..16); WARPS a CTA; DEPTH tiles a
// warp holds; CLUSTER CTAs
// that merge through distributed shared memory (sm_90+, else 1); SOFTCAP, ALIBI, SINKS 0 or 1.
#pragma once
#include "kv.cuh"

#ifndef GROUP
#define GROUP 4
#endif
#ifndef WARPS
#define WARPS 4
#endif
#ifndef DEPTH
#define DEPTH 1
#endif
#ifndef CLUSTER
#define CLUSTER 1
#endif
#ifndef SOFTCAP
#define SOFTCAP 0
#endif
#ifndef ALIBI
#define ALIBI 0
#endif
#ifndef SINKS
#define SINKS 0
#endif

constexpr float LOG2E = 1.4426950408889634f;
constexpr int THREADS = 32 * WARPS, STEP = 16 * WARPS;
constexpr int NT = (GROUP + 7) / 8, COLUMNS = 8 * NT;
// The running maximum moves only when a score passes it by this (powers of two): P stays below 2^4.
constexpr float SLACK = 4.f;
constexpr float NO_SCORE = -1e30f;
// P * (scale of V) in half: keeps an int8 scale of small values out of the subnormals; 2^4 * 514 * 4 is finite.
constexpr float P_UNIT = KV_BITS == 8 ? 4.f : 1.f;

// Bytes a lane loads at once when LANES lanes share a row: the width that pads the row least, wide ones first.
constexpr int padded_row(int lanes, int bytes) {
  return (ROW_BYTES + lanes * bytes - 1) / (lanes * bytes) * (lanes * bytes);
}
constexpr int vector_bytes(int lanes, int least) {
  int best = 0;
  for (int bytes = 16; bytes >= least; bytes /= 2)
    if (ROW_BYTES % bytes == 0 && (!best || padded_row(lanes, bytes) < padded_row(lanes, best))) best = bytes;
  return best;
}
constexpr int K_VEC = vector_bytes(4, QUANTISED ? 4 : 8), K_WORDS = padded_row(4, K_VEC) / 16;
constexpr int V_VEC = vector_bytes(8, 4), V_WORDS = padded_row(8, V_VEC) / 32;
constexpr int K_MMAS = K_WORDS * 8 / KV_BITS;
constexpr int V_MMAS = V_WORDS * 16 / KV_BITS;
constexpr int K_PAIRS = (K_MMAS + 1) / 2;
// The middle of V's codes, subtracted from them so that the rounding of P does not weigh on a large minimum.
constexpr float V_CENTRE = QUANTISED ? 1 << (KV_BITS - 1) : 0;

#if KV_BITS == 16
typedef T M;  // the products' type
INLINE void product(float* c, const u32* a, const u32* b) { mma(c, a, b); }
INLINE u32 pack(float a, float b) { T2 v = from_float2(a, b); return *(u32*)&v; }
#else
typedef half M;
INLINE void product(float* c, const u32* a, const u32* b) { mma_f16(c, a, b); }
INLINE u32 pack(float a, float b) { half2 v = __floats2half2_rn(a, b); return *(u32*)&v; }
#endif

constexpr int ITEMS = GROUP * HEAD_DIM / 4, SHARE = (ITEMS + CLUSTER - 1) / CLUSTER;  // of four numbers

struct Shared {
  uint4 q[NT][K_PAIRS][32];  // B fragments of products 2 i and 2 i + 1, by lane
  float q_sum[COLUMNS];
  alignas(16) u8 row[2][(ROW_BYTES + 15) / 16 * 16];  // the new token's K and V, as stored
  half2 params[2];
  float top[WARPS][COLUMNS], sum[WARPS][COLUMNS];
  alignas(16) float out[WARPS][GROUP][HEAD_DIM];
  bool last;
#if CLUSTER > 1
  float2 weights[CLUSTER][GROUP];  // (maximum, sum) and this CTA's share of the output, from all CTAs of the cluster
  alignas(16) float4 shares[CLUSTER][SHARE];
#endif
};
static_assert(sizeof(Shared) <= 48 << 10, "too many warps for so wide a group");

// --- fragments -------------------------------------------------------------------------------------------------------
template <int BYTES> INLINE void load_words(u32* r, const u8* p) {
  if constexpr (BYTES == 16)
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(p));
  else if constexpr (BYTES == 8)
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1},[%2];" : "=r"(r[0]), "=r"(r[1]) : "l"(p));
  else
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0,[%1];" : "=r"(r[0]) : "l"(p));
}
// This lane's words of a row that LANES lanes share; it is the `part`-th of them.
template <int LANES, int VEC, bool SHARED> INLINE void load_row(u32* words, const u8* row, int part) {
#pragma unroll
  for (int at = 0; at < padded_row(LANES, VEC); at += LANES * VEC) {
    u32* to = words + at / LANES / 4;
    const int offset = at + part * VEC;
    if (at + LANES * VEC > ROW_BYTES && offset >= ROW_BYTES) continue;
    if constexpr (SHARED) {
#pragma unroll
      for (int i = 0; i < VEC / 4; i++) to[i] = ((const u32*)(row + offset))[i];
    } else {
      load_words<VEC>(to, row + offset);
    }
  }
}

struct Tile {  // 16 tokens in registers
  u32 k[2][K_WORDS], v[4][V_WORDS];
  half2 k_params[2], v_params[2];  // of tokens k_row
};
// The tokens of a tile in a lane: of its K rows l / 4 and l / 4 + 8, of its V rows 2 (l % 4), + 1, + 8, + 9. Token
// a + 4 e of a tile is row 2 a + e % 2 + 8 (e / 2) of the products, so that one load of V takes neighbouring tokens.
INLINE int k_row(int lane, int i) { return lane / 8 + 4 * (lane / 4 % 2) + 8 * i; }
INLINE int v_row(int lane, int i) { return lane % 4 + 4 * i; }
INLINE half2 load_params(const u8* p) { u32 v; load_words<4>(&v, p); return *(half2*)&v; }

// `first`: rows before it (before the window) are loaded as it, so that no foreign number enters a product.
INLINE void load_k(Tile& t, const u8* record, int token, int first, int lane) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int at = max(token + k_row(lane, i), first) % BLOCK_SIZE;
    load_row<4, K_VEC, false>(t.k[i], record + at * ROW_BYTES, lane % 4);
    if (QUANTISED) t.k_params[i] = load_params(record + K_PARAMS_OFFSET + at * 4);
  }
}
INLINE void load_v(Tile& t, const u8* record, int token, int first, int lane) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int at = max(token + v_row(lane, i), first) % BLOCK_SIZE;
    load_row<8, V_VEC, false>(t.v[i], record + V_OFFSET + at * ROW_BYTES, lane / 4);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int at = max(token + k_row(lane, i), first) % BLOCK_SIZE;
    if (QUANTISED) t.v_params[i] = load_params(record + V_PARAMS_OFFSET + at * 4);
  }
}
// The new token, and what lies behind it (and before, in a window of one), from shared memory. `rest`: the first row.
INLINE void patch(Tile& t, const Shared& s, int rest, int lane) {
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (k_row(lane, i) >= rest) {
      load_row<4, K_VEC, true>(t.k[i], s.row[0], lane % 4);
      t.k_params[i] = s.params[0], t.v_params[i] = s.params[1];
    }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (v_row(lane, i) >= rest) load_row<8, V_VEC, true>(t.v[i], s.row[1], lane / 4);
}

// Number e of column `column` of q goes where k_fragment puts number e of K: into which half of Shared::q.
INLINE int q_place(int column, int e) {
  constexpr int W = K_VEC / 4, PER_WORD = 32 / KV_BITS;
  const int word = e / PER_WORD, chunk = word / (4 * W), part = word % (4 * W) / W, own = chunk * W + word % W;
  const int r = e % PER_WORD;  // codes of a word come in bit-reversed order
  const int place = KV_BITS == 16 ? r : KV_BITS == 8 ? r % 2 * 2 + r / 2 : r % 2 * 4 + r / 2 % 2 * 2 + r / 4;
  const int half = own * PER_WORD + place;  // four to a product
  return ((column / 8 * K_PAIRS + half / 8) * 32 + column % 8 * 4 + part) * 8 + half % 8;
}
INLINE void k_fragment(u32* a, const Tile& t, int m) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if constexpr (KV_BITS == 16) {
      a[i] = t.k[i][2 * m], a[2 + i] = t.k[i][2 * m + 1];
    } else if constexpr (KV_BITS == 8) {
      a[i] = t.k[i][m] & 0x00ff00ff, a[2 + i] = t.k[i][m] >> 8 & 0x00ff00ff;
    } else {  // odd numbers are 16 times too large
      const u32 mask = m % 2 ? 0x00f000f0 : 0x000f000f;
      a[i] = t.k[i][m / 2] & mask, a[2 + i] = t.k[i][m / 2] >> 8 & mask;
    }
  }
}
// V^T for product m: rows l / 4 are number v_number(m), rows + 8 the one after it (int4: 16 times too large).
INLINE void v_fragment(u32* a, const Tile& t, int m) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {  // tokens 2 (l % 4), + 1; then + 8
    if constexpr (KV_BITS == 16) {
      a[i] = __byte_perm(t.v[i][m], t.v[i + 1][m], 0x5410);
      a[i + 1] = __byte_perm(t.v[i][m], t.v[i + 1][m], 0x7632);
    } else if constexpr (KV_BITS == 8) {
      const u32 even = __byte_perm(t.v[i][m / 2], t.v[i + 1][m / 2], 0x6420);
      const u32 odd = __byte_perm(t.v[i][m / 2], t.v[i + 1][m / 2], 0x7531);
      a[i] = m % 2 ? __byte_perm(even, 0, 0x4341) : even & 0x00ff00ff;
      a[i + 1] = m % 2 ? __byte_perm(odd, 0, 0x4341) : odd & 0x00ff00ff;
    } else {
      const u32 four = __byte_perm(t.v[i][m / 4], t.v[i + 1][m / 4], m % 4 < 2 ? 0x5410 : 0x7632) >> m % 2 * 8;
      a[i] = four & 0x000f000f, a[i + 1] = four & 0x00f000f0;
    }
  }
}
INLINE int v_number(int m, int lane) {
  constexpr int W = V_VEC / 4, PER_WORD = 16 / KV_BITS;
  const int word = m / PER_WORD;
  return (word / W * 8 * V_VEC + lane / 4 * V_VEC + word % W * 4) * 8 / KV_BITS + m % PER_WORD * 2;
}
INLINE u32 transposed(u32 x) {
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0,%0;" : "+r"(x));
  return x;
}

// --- one warp's share -----------------------------------------------------------------------------------------------
struct Sums {  // of the columns 2 (l % 4), + 1 of each n-tile; but `top` and `out` of this lane's tokens only
  float top[NT][2], sum[NT][2], out[NT][V_MMAS][4];
  float p_sum[NT][2], centre[NT][2];  // of P as it enters the product, and of V's middles
};
struct Context {
  const u8* records;  // of this key-value head in block 0
  const int* table;
  int stride;   // of a block, bytes
  int first, position, end;  // tokens first .. end - 1 of this CTA's split
  float scale, softcap, slope[NT][2];
};

INLINE const u8* record_of(const Context& c, int block) { return c.records + (i64)block * c.stride; }

// Score (base 2) of a token and a column of q from the sum of products.
INLINE float score(const Context& c, float product, half2 params, float q_sum, float slope, int token) {
  if (QUANTISED) product = product * (__low2float(params) * CODE_UNIT) + __high2float(params) * q_sum;
  float x = product * c.scale;
  if (SOFTCAP) {  // tanh(y) = 1 - 2 / (e^2y + 1)
    const float e = exp2_fast(x * (2.f * LOG2E / c.softcap));
    x = c.softcap * LOG2E * (1.f - __fdividef(2.f, e + 1.f));
  }
  if (ALIBI) x += slope * token;
  return x;
}

INLINE void score_tile(float (*x)[4], const Tile& t, const Context& c, const Shared& s, int token, int lane) {
  float odd[NT][4];
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) x[n][i] = odd[n][i] = 0.f;
#pragma unroll
  for (int pair = 0; pair < K_PAIRS; pair++) {
    u32 b[NT][4];
#pragma unroll
    for (int n = 0; n < NT; n++)  // volatile: there are no registers to keep q in
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(b[n][0]), "=r"(b[n][1]), "=r"(b[n][2]), "=r"(b[n][3])
                   : "r"(smem_address(&s.q[n][pair][lane])));
#pragma unroll
    for (int m = 2 * pair; m < min(2 * pair + 2, K_MMAS); m++) {
      u32 a[4];
      k_fragment(a, t, m);
#pragma unroll
      for (int n = 0; n < NT; n++) product(QUANTISED && m % 2 ? odd[n] : x[n], a, b[n] + m % 2 * 2);
    }
  }
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int column = 8 * n + 2 * (lane % 4) + i % 2, at = token + k_row(lane, i / 2);
      const float raw = KV_BITS == 4 ? x[n][i] + odd[n][i] * 0.0625f : x[n][i] + odd[n][i];
      x[n][i] = score(c, raw, t.k_params[i / 2], QUANTISED ? s.q_sum[column] : 0.f, c.slope[n][i % 2], at);
    }
  if (token < c.first || token + 16 > c.end) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int at = token + k_row(lane, i / 2);
#pragma unroll
      for (int n = 0; n < NT; n++)
        if (at < c.first || at >= c.end) x[n][i] = -INF;
    }
  }
}

// Raise the maxima to those of the scores x, and scale what was summed under the old ones.
INLINE void raise(Sums& sums, const float (*x)[4]) {
#pragma unroll
  for (int n = 0; n < NT; n++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float top = fmaxf(sums.top[n][h], fmaxf(x[n][h], x[n][2 + h]));
#pragma unroll
      for (int step = 4; step < 32; step *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
      const float factor = exp2_fast(sums.top[n][h] - top);
      sums.top[n][h] = top, sums.sum[n][h] *= factor, sums.p_sum[n][h] *= factor, sums.centre[n][h] *= factor;
#pragma unroll
      for (int m = 0; m < V_MMAS; m++) sums.out[n][m][h] *= factor, sums.out[n][m][2 + h] *= factor;
    }
}

INLINE void add_tile(Sums& sums, const float (*x)[4], const Tile& t) {
  u32 b[NT][2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float scale = __low2float(t.v_params[i]), centre = __high2float(t.v_params[i]) + V_CENTRE * scale;
#pragma unroll
    for (int n = 0; n < NT; n++) {
      float p[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        p[h] = exp2_fast(x[n][2 * i + h] - sums.top[n][h]);
        sums.sum[n][h] += p[h];
        if (QUANTISED) sums.centre[n][h] += p[h] * centre, p[h] *= scale * P_UNIT;
      }
      const u32 pair = pack(p[0], p[1]);
      if (QUANTISED) sums.p_sum[n][0] += __low2float(*(half2*)&pair), sums.p_sum[n][1] += __high2float(*(half2*)&pair);
      b[n][i] = transposed(pair);
    }
  }
#pragma unroll
  for (int m = 0; m < V_MMAS; m++) {
    u32 a[4];
    v_fragment(a, t, m);
#pragma unroll
    for (int n = 0; n < NT; n++) product(sums.out[n][m], a, b[n]);
  }
}

INLINE int find_block(const Context& c, int token) {
  return token < c.end ? __ldg(c.table + token / BLOCK_SIZE) : 0;
}

// Tokens `token` .. + 15, then every WARPS-th tile up to c.end. The first DEPTH tiles are loaded; `blocks` are those of
// the next DEPTH.
INLINE void attend(Sums& sums, Tile* tiles, int* blocks, const Context& c, const Shared& s, int token, int lane) {
#pragma unroll 1
  while (token < c.end) {
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      if (d && token >= c.end) continue;
      Tile& t = tiles[d];
      const int next = token + DEPTH * STEP, rest = c.position - token;
      if (rest >= 0 && rest < 16) patch(t, s, c.first == c.position ? 0 : rest, lane);
      float x[NT][4];
      score_tile(x, t, c, s, token, lane);
      bool rises = false;
#pragma unroll
      for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) rises |= x[n][i] > sums.top[n][i % 2] + SLACK;
      if (next < c.end) load_k(t, record_of(c, blocks[d]), next, c.first, lane);
      if (__any_sync(~0u, rises)) raise(sums, x);
      add_tile(sums, x, t);
      if (next < c.end) load_v(t, record_of(c, blocks[d]), next, c.first, lane);
      blocks[d] = find_block(c, next + DEPTH * STEP);
      token += STEP;
    }
  }
}
