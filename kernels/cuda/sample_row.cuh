// Drawing a token from a row of logits: what its kernels share. The meaning is kernels/sampling.py; each step of
// arithmetic here rounds as there, so that both name the same token.
#pragma once
#include "common.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int BINS = 512;     // of a histogram over depth
constexpr int LIST = 2048;    // tokens around a cut that are sorted; more are narrowed down first
constexpr float DEEP = 28.f;  // a token this far below the best has no mass in units of 2^-40, and cannot win:
                              // exp(-28) / 2^-32 (least exponential) < 1 / 16.7 (largest), for the best token
constexpr u32 NEVER32 = ~0u;
constexpr u64 NEVER = ~0ull;
#define INFINITY32 __int_as_float(0x7f800000)

enum Flags : u32 { PAD = 1, GREEDY = 2, FILTERED = 4, EDITED = 8, PENALISED = 16, LOGPROBS = 32 };

// What a row asks for; written by the host (sample.py: RECORD).
struct __align__(16) Params {
  u32 flags;
  float temperature;
  u32 top_k;    // 0: off
  float least;  // log of min-p, -inf: off
  double top_p;  // 2: off
  u64 stream;
  float repetition, presence, frequency;
  int free_from;        // first position at which an ending id may be drawn
  int biases, endings;  // lengths of the lists
  const int* lists;     // biases token ids (ascending), biases float32 values, endings token ids
};

// LISTED: a depth is known that surely holds the top-k, and few others.
enum Mode : int { DONE, PLAIN, LISTED, CUT };

// What the kernels of one step tell each other of a row. Depth: how far a score lies below the best, >= 0.
struct __align__(16) Found {
  int mode;
  float top;    // largest edited logit
  float limit;  // depth beyond which no token can matter
  float reach;  // tokens up to this depth are listed by `weigh`; -1: none
};
struct __align__(16) State {
  Found found;         // one load: it stands between a kernel's start and its work
  float near, beyond;  // cuts lie at depths in [near, beyond)
  u32 quota, listed;   // of these tokens, how many top-k leaves (NEVER32: all); how many were listed
  u64 before;          // mass above near
  u64 needed;          // mass that top-p wants; 0: known once top-k is cut; NEVER: no top-p
  u64 total;           // mass of the row
  float raw_top, raw_limit;  // for log-probabilities: the same of the logits as the model gave them
  u64 raw_total;
  u32 raw_listed;
};

static_assert(sizeof(Params) == 64 && sizeof(State) == 80, "sample.py allocates them");

struct Step {
  const float* logits;  // [B, vocab], rows `stride` apart
  const int* rows;
  const int* positions;
  const Params* params;
  float* edited;        // [capacity, round up 4 (vocab)], or null: no row is edited
  u16* tallies;         // [max_rows, vocab]: bit 15 seen, below it times in the output; or null
  State* states;        // [capacity], as all below
  u64* partials;        // [B, chunks, WARPS]
  u64* bin_mass;        // [capacity, BINS]
  u32* bin_count;
  u64* list;            // [capacity, LIST]
  u32* tickets;         // [5, capacity], zero between kernels
  i64* last_token;      // [max_rows + 1]
  int* results;         // [capacity, 4] token, finite, log-probability, 0; then [capacity, 40] ids, values
  int stride, vocab, chunk, ahead, capacity;
  int wide;  // every row of logits can be read 16 bytes at a time
};

// --- order and masses ---------------------------------------------------------------------------------------

// Larger value first, then lower id: the larger number. 0 is none.
INLINE u64 rank_of(float value, int id) {
  const u32 bits = __float_as_uint(__fadd_rn(value, 0.f));  // -0 becomes 0: they are equals
  return (u64)(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | ~(u32)id;
}
INLINE float value_of(u64 rank) {
  const u32 bits = (u32)(rank >> 32);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
INLINE int id_of(u64 rank) { return (int)~(u32)rank; }

// Smaller depth first, then lower id: the smaller number.
INLINE u64 key_of(float depth, u32 id) { return (u64)__float_as_uint(depth) << 32 | id; }
INLINE float depth_of(u64 key) { return __uint_as_float((u32)(key >> 32)); }

INLINE float depth_of(float value, float top, float temperature) {
  return fabsf(__fdiv_rn(__fsub_rn(value, top), temperature));
}
INLINE u64 mass_of(float depth) { return (u64)(expf(-depth) * 1099511627776.f); }
INLINE u64 share_of(u64 mass, double top_p) {
  const u64 share = (u64)ceil((double)(i64)mass * top_p);
  return share ? share : 1;
}

// --- the race -----------------------------------------------------------------------------------------------

INLINE u64 row_key(u64 stream, int position) {
  u64 z = stream + (u64)(i64)position * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}
INLINE u32 mixed(u32 x, u32 key) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du + key;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

// The best of the tokens that one thread has seen, in ascending order of ids.
struct Race {
  u64 key;
  float best = -1.f;
  float bar = 0.f;  // the best of the warp, as far as it was shared
  int id = 0;

  INLINE explicit Race(u64 row_key) : key(row_key) {}
  // The uniform number v of a token; its exponential one is -log(1 - v) >= v.
  INLINE float uniform(int token) const {
    const u32 h = mixed(mixed(token, 0) ^ (u32)key, (u32)(key >> 32)) & 0x7fffffffu;
    return fminf(__fmul_rn(__fadd_rn((float)h, 0.5f), 0x1p-31f), 1.f - 0x1p-24f);
  }
  INLINE void enter(float depth, int token, float v) {
    const float speed = __fdiv_rn(expf(-depth), -log1pf(-v));
    if (speed > best) best = speed, id = token;
  }
  INLINE void enter(float depth, int token) { enter(depth, token, uniform(token)); }
  // All lanes of a warp together.
  INLINE void share() {
#if ARCH >= 800
    bar = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(fmaxf(best, 0.f))));
#else
    bar = fmaxf(best, 0.f);
#endif
  }
  INLINE u64 rank() const { return best < 0.f ? 0 : rank_of(best, id); }
};

// --- a row, a block -------------------------------------------------------------------------------------------

constexpr int AHEAD = 4;  // 16-byte loads under way per thread

// A thread's first loads of a part of a row, to be issued before it is known what the row wants. Past L1, which
// may hold the logits of the step before.
struct Early {
  float4 v[AHEAD];
  bool there = false;

  INLINE Early() {}
  INLINE Early(const float* x, bool wanted, int begin, int end) : there(wanted) {
    if (!wanted) return;
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      const int at = begin + 4 * (threadIdx.x + u * THREADS);
      if (at < end) v[u] = __ldcg((const float4*)(x + at));
    }
  }
};

// f(value, id) for tokens [begin, end) of a row, each thread's in ascending order; after() now and then, all
// threads of a warp together. `wide`: 16-byte loads.
template <class F, class G>
INLINE void for_each(const float* x, bool wide, int begin, int end, F&& f, G&& after, const Early& early) {
  if (!wide) {
    for (int base = begin; base < end; base += THREADS) {
      const int id = base + threadIdx.x;
      if (id < end) f(x[id], id);
      after();
    }
    return;
  }
  for (int base = begin; base < end; base += 4 * THREADS * AHEAD) {
    float4 v[AHEAD];
#pragma unroll
    for (int u = 0; u < AHEAD; ++u) {
      const int id = base + 4 * (threadIdx.x + u * THREADS);
      if (early.there && base == begin) v[u] = early.v[u];
      else if (id < end) v[u] = *(const float4*)(x + id);
    }
    // Rolled up, moving the numbers on: a kernel that runs for microseconds waits for every instruction it fetches.
#pragma unroll 1
    for (int u = 0; u < AHEAD; ++u) {
      if (base + 4 * u * THREADS >= end) break;
      const int id = base + 4 * (threadIdx.x + u * THREADS);
      if (id < end) f(v[0].x, id), f(v[0].y, id + 1), f(v[0].z, id + 2), f(v[0].w, id + 3);
      after();
#pragma unroll
      for (int w = 1; w < AHEAD; ++w) v[w - 1] = v[w];
    }
  }
}
template <class F>
INLINE void for_each(const float* x, bool wide, int begin, int end, F&& f, const Early& early = Early()) {
  for_each(x, wide, begin, end, f, [] {}, early);
}

INLINE u64 warp_max(u64 x) {
#pragma unroll
  for (int lane = 16; lane; lane >>= 1) {
    const u64 other = __shfl_xor_sync(~0u, x, lane);
    x = other > x ? other : x;
  }
  return x;
}
INLINE u64 block_max(u64 x) {
  __shared__ u64 warps[WARPS];
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  return warp_max(warps[threadIdx.x % WARPS]);
}
// Sum of the threads before this one; `total` of all.
INLINE u64 block_before(u64 x, u64& total) {
  __shared__ u64 warps[WARPS];
  u64 sum = x;
#pragma unroll
  for (int lane = 1; lane < 32; lane <<= 1) {
    const u64 other = __shfl_up_sync(~0u, sum, lane);
    if (threadIdx.x % 32 >= lane) sum += other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 31) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  total = 0;
  u64 before = sum - x;
#pragma unroll 2
  for (int w = 0; w < WARPS; ++w) {
    if (w < threadIdx.x / 32) before += warps[w];
    total += warps[w];
  }
  return before;
}

// True in the block of a row that comes here last: it sees what the others wrote.
INLINE bool last_block(u32* ticket) {
  __shared__ u32 place;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    place = atomicInc(ticket, gridDim.x - 1);
    __threadfence();
  }
  __syncthreads();
  return place == gridDim.x - 1;
}

// Block (chunk, i) of a kernel over all rows of a step.
struct Block {
  const Step& s;
  const int i = blockIdx.y;
  const int begin = blockIdx.x * s.chunk;
  const int end = min(s.vocab, begin + s.chunk);
  const bool wide = s.wide;

  INLINE State& state() const { return s.states[i]; }
  INLINE Found found() const {
    const float4 v = __ldcg((const float4*)&s.states[i].found);
    return {__float_as_int(v.x), v.y, v.z, v.w};
  }
  INLINE const float* raw() const { return s.logits + (size_t)i * s.stride; }
  INLINE float* edited() const { return s.edited + (size_t)i * ((s.vocab + 3) & ~3); }
  INLINE const float* logits(u32 flags) const { return s.edited && flags & EDITED ? edited() : raw(); }
  INLINE u64* partials() const { return s.partials + (size_t)i * gridDim.x * WARPS; }
  INLINE u64* list() const { return s.list + (size_t)i * LIST; }
  // Logits read before pdl_wait: they were there before the first kernel of the step let the others start. Worth it
  // where blocks are few, and latency is all.
  INLINE Early early() const { return Early(raw(), wide && gridDim.y <= 8, begin, end); }
  INLINE bool last(int kernel) const { return last_block(s.tickets + kernel * s.capacity + i); }

  INLINE void leave(u64 rank) const {
    rank = warp_max(rank);
    if (threadIdx.x % 32 == 0) partials()[blockIdx.x * WARPS + threadIdx.x / 32] = rank;
  }
  // f(rank) for all that the row's warps left.
  template <class F> INLINE void for_each_rank(F&& f) const {
    const int count = gridDim.x * WARPS;
#pragma unroll 1
    for (int base = threadIdx.x; base < count; base += AHEAD * THREADS) {
      u64 ranks[AHEAD];
#pragma unroll
      for (int u = 0; u < AHEAD; ++u) ranks[u] = base + u * THREADS < count ? __ldcg(partials() + base + u * THREADS) : 0;
#pragma unroll
      for (int u = 0; u < AHEAD; ++u) f(ranks[u]);
    }
  }
  INLINE u64 best_of_all() const {
    u64 best = 0;
    for_each_rank([&](u64 rank) { best = rank > best ? rank : best; });
    return block_max(best);
  }
};
