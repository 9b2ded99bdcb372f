// The loading side of attn_hopper.cu: what lies in shared memory, who works on what, and the warpgroup that brings it.
#pragma once
#include "attn_hopper.cuh"

constexpr int ROWS = 128;
constexpr int KEYS = HEAD_DIM > 128 ? 64 : 128;  // of a tile
constexpr int STAGES = 2;
constexpr int SLABS = (HEAD_DIM + 63) / 64;
constexpr int Q_SLAB = ROWS * 128, KV_SLAB = KEYS * 128;  // bytes of 64 columns
constexpr int LOADERS = 64;  // threads that bring keys; as many bring values
constexpr int PARTS = ROW_BYTES / 16;  // 16-byte parts of a cached row, one for each loading thread
constexpr int LANES = PARTS <= 2 ? 2 : PARTS <= 4 ? 4 : PARTS <= 8 ? 8 : PARTS <= 16 ? 16 : 32;  // threads of a row
constexpr int PASS = LOADERS / LANES;  // rows that are loaded at a time
constexpr int RUN = BLOCK_SIZE < KEYS ? BLOCK_SIZE : KEYS;  // keys of a tile that lie in one block
constexpr int STEP = RUN < PASS ? PASS : RUN;  // rows of one thread within STEP are in one block
constexpr int COUNT = KEYS / PASS;             // parts of a tile that one thread loads
static_assert(HEAD_DIM % 16 == 0 && ROW_BYTES % 16 == 0 && (!QUANTISED || HEAD_DIM <= 128), "see attn_prefill.cu");

#if KV_BITS < 16
// A quantised tile as it is, each part for the thread that brought it and will make halves of it.
struct Raw {
  uint4 parts[COUNT][LOADERS];
  half2 params[COUNT][LOADERS];
};
#endif

struct Shared {
  u8 q[SLABS * Q_SLAB];
  u8 k[STAGES][SLABS * KV_SLAB];
  u8 v[STAGES][SLABS * KV_SLAB];
  u64 q_full, q_empty, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
#if KV_BITS < 16
  Raw raw[2];  // keys, values
#endif
};

// Where 16-byte chunk `chunk` of row `row` is in a matrix of SLABS slabs.
INLINE int place(int row, int chunk, int slab) {
  return chunk / 8 * slab + row * 128 + ((chunk ^ row) & 7) * 16;
}

struct Problem {
  const T* q;
  const u8* cache;
  const int* table;
  T* out;
  float* parts;  // [splits][tokens * heads][HEAD_DIM] and then [splits][tokens * heads] (top, sum), where splits > 1
  int tokens, start, heads, kv_heads, q_stride, window, group, rows, tiles, splits;
};

// Keys from `begin` to `end` in the tiles of one of `splits` parts; empty where there are fewer tiles than parts.
INLINE void take_part(int& begin, int& end, int split, int splits) {
  const int each = ((end - begin + KEYS - 1) / KEYS + splits - 1) / splits * KEYS;
  begin += split * each;
  end = min(end, begin + each);
}

// The rows of one tile and the keys they see (of one split): longest contexts first, dealt to the CTAs to and fro, so
// that all get about as many keys.
struct Work {
  int kv_head, row0, begin, end, first, split;

  INLINE bool next(const Problem& p, int round) {
    const int index = round * gridDim.x + (round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (index >= p.tiles * p.splits) return false;  // the last round may be short
    const int tile = index / p.splits;
    split = index - tile * p.splits;
    kv_head = tile % p.kv_heads;
    row0 = (p.tiles / p.kv_heads - 1 - tile / p.kv_heads) * ROWS;
    end = p.start + (min(row0 + ROWS, p.rows) - 1) / p.group + 1;
    first = WINDOW ? max(0, p.start + row0 / p.group - p.window + 1) : 0;
    begin = first / KEYS * KEYS;
    take_part(begin, end, split, p.splits);
    return true;
  }
};

// --- loading ------------------------------------------------------------------------------------------------------
struct Loader {
  const u8* base;  // the key-value head's record of block 0
  const int* table;
  i64 block_bytes;
  int thread, row0, part;  // this thread loads 16-byte part `part` of rows row0 + n * PASS
  int first, end;   // positions outside become zeros: they may be NaN

  INLINE int block_of(int position) const { return table[min(position, end - 1) / BLOCK_SIZE]; }

  INLINE bool has_part() const { return LANES == PARTS || part < PARTS; }
  INLINE bool visible(int position) const { return (u32)(position - first) < (u32)(end - first); }

#if KV_BITS == 16
  // KEYS rows of K (offset 0) or V (V_OFFSET) from position `at`, straight to their places.
  INLINE void fetch(u8* to, int offset, int at, u64* empty, u32 parity, u64* full) const {
    const u32 target = smem_address(to);
    int position = at + row0, block = block_of(position);
    mbar_wait(empty, parity);
#pragma unroll 1
    for (int r = 0; r < KEYS && has_part(); r += STEP) {
      const u8* from = base + block * block_bytes + offset + position % BLOCK_SIZE * ROW_BYTES + part * 16;
      block = block_of(position + STEP);
#pragma unroll 8
      for (int n = 0; n < STEP; n += PASS)
        copy_async(target + place(row0 + r + n, part, KV_SLAB), from + n * ROW_BYTES, visible(position + n) ? 16 : 0);
      position += STEP;
    }
    mbar_arrive_async(full);
  }
#else
  // The same into `to`, for `widen`.
  INLINE void fetch(Raw& to, int offset, int params_offset, int at) const {
    int position = at + row0, block = block_of(position);
#pragma unroll 1
    for (int r = 0; r < COUNT && has_part(); r += STEP / PASS) {
      const int within = position % BLOCK_SIZE;
      const u8* from = base + block * block_bytes + offset + within * ROW_BYTES + part * 16;
      const u8* params = base + block * block_bytes + params_offset + within * 4;
      position += STEP;
      block = block_of(position);
#pragma unroll 8
      for (int n = 0; n < STEP / PASS; n++) {
        copy_async(smem_address(&to.parts[r + n][thread]), from + n * PASS * ROW_BYTES, 16);
        copy_async4(smem_address(&to.params[r + n][thread]), params + n * PASS * 4);
      }
    }
    cp_async_commit();
  }

  // What this thread fetched, as halves in their places; zeros for what nobody may see.
  INLINE void widen(u8* to, const Raw& raw, int at) const {
    constexpr int WORDS = KV_BITS / 4;  // of eight numbers
    const u32 target = smem_address(to);
#pragma unroll 4
    for (int n = 0; n < COUNT && has_part(); n++) {
      const uint4 bits = raw.parts[n][thread];
      const u32 words[4] = {bits.x, bits.y, bits.z, bits.w};
      const half2 params = raw.params[n][thread];
      const bool seen = visible(at + row0 + n * PASS);
#pragma unroll
      for (int c = 0; c < 4 / WORDS; c++) {
        union {
          uint4 bits;
          half2 pairs[4];
        } x;
#pragma unroll
        for (int w = 0; w < WORDS; w++) dequantise_word(x.pairs + w * 4 / WORDS, words[c * WORDS + w], params);
        if (!seen) x.bits = make_uint4(0, 0, 0, 0);
        store_shared(target + place(row0 + n * PASS, part * (4 / WORDS) + c, KV_SLAB), x.bits);
      }
    }
  }
#endif
};

INLINE void load_queries(Shared& s, const Problem& p, const Work& work, int tile) {
  mbar_wait(&s.q_empty, tile & 1 ^ 1);
#pragma unroll 4
  for (int i = threadIdx.x; i < ROWS * CHUNKS; i += 2 * LOADERS) {
    const int r = i / CHUNKS, chunk = i % CHUNKS, row = work.row0 + r;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (row < p.rows) {
      const int token = row / p.group, head = work.kv_head * p.group + row - token * p.group;
      x = query(p.q + (i64)token * p.q_stride + head * HEAD_DIM + chunk * 8);
    }
    *(uint4*)(s.q + place(r, chunk, Q_SLAB)) = x;
  }
  proxy_fence();
  mbar_arrive(&s.q_full);
}

// Half of the threads bring keys, half values: each as soon as its place is free, which it is at different times.
INLINE void load(Shared& s, const Problem& p) {
  const bool values = threadIdx.x >= LOADERS;
  const int offset = values ? V_OFFSET : 0;
  u8* const to = values ? s.v[0] : s.k[0];
  u64* const empty = values ? s.v_empty : s.k_empty;
  u64* const full = values ? s.v_full : s.k_full;
  Loader loader;
  loader.thread = threadIdx.x % LOADERS;
  loader.row0 = loader.thread / LANES;
  loader.part = loader.thread % LANES;
  loader.table = p.table;
  loader.block_bytes = (i64)p.kv_heads * RECORD_BYTES;
  int stage = 0, tile = 0;
  u32 parity = 1;  // all is empty at first
  Work work;
  for (int round = 0; work.next(p, round); round++) {
    if (work.begin >= work.end) continue;
    loader.base = kv_record(p.cache, 0, p.kv_heads, work.kv_head);
    loader.first = work.first;
    loader.end = work.end;
    // The place of the queries is free after that of the first keys and before that of the first values.
    if (values) load_queries(s, p, work, tile);
#if KV_BITS < 16
    Raw& raw = s.raw[values];
    const int params = values ? V_PARAMS_OFFSET : K_PARAMS_OFFSET;
    loader.fetch(raw, offset, params, work.begin);
#endif
    for (int at = work.begin; at < work.end; at += KEYS) {
      u8* place = to + stage * SLABS * KV_SLAB;
#if KV_BITS == 16
      loader.fetch(place, offset, at, empty + stage, parity, full + stage);
#else
      cp_async_wait<0>();
      mbar_wait(empty + stage, parity);
      loader.widen(place, raw, at);
      proxy_fence();
      mbar_arrive(full + stage);
      if (at + KEYS < work.end) loader.fetch(raw, offset, params, at + KEYS);  // not before the fence, which would wait
#endif
      if (!values && at == work.begin) load_queries(s, p, work, tile);
      if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    tile++;
  }
}
