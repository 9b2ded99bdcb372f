// Cutting a row at a rank or at a mass without sorting it. Masses are integers: sums are exact in any order.
#pragma once
#include "sample_row.cuh"

struct Bins {
  u32 low[BINS], high[BINS];  // halves of the mass: shared memory adds 32 bits at once, 64 only by trying
  u32 count[BINS];

  INLINE void clear() {
    for (int b = threadIdx.x; b < BINS; b += THREADS) low[b] = high[b] = count[b] = 0;
    __syncthreads();
  }
  INLINE void add(int bin, u64 m) {
    atomicAdd(&count[bin], 1u);
    const u32 part = (u32)m;
    if (!m) return;
    const u32 carry = atomicAdd(&low[bin], part) + part < part;
    if ((u32)(m >> 32) + carry) atomicAdd(&high[bin], (u32)(m >> 32) + carry);
  }
  INLINE u64 mass(int bin) const { return (u64)high[bin] << 32 | low[bin]; }
};

// The bin of this count histogram in which the running count reaches `wanted`; -1: none.
INLINE int bin_of_rank(const u32* count, u32 wanted) {
  __shared__ int found;
  constexpr int RUN = BINS / THREADS;
  u64 own = 0, all;
  for (int j = 0; j < RUN; ++j) own += count[threadIdx.x * RUN + j];
  if (threadIdx.x == 0) found = -1;
  u32 before = (u32)block_before(own, all);
  for (int j = 0; j < RUN; ++j) {
    const u32 after = before + count[threadIdx.x * RUN + j];
    if (before < wanted && after >= wanted) found = threadIdx.x * RUN + j;
    before = after;
  }
  __syncthreads();
  return found;
}

// A bin, and what lies before it. bin -1: not reached.
struct Place {
  int bin;
  u32 count, own;
  u64 mass;
};

// Running sums over the bins in shared memory, a run of bins per thread.
struct Prefix {
  static constexpr int RUN = BINS / THREADS;
  const Bins& bins;
  u32 count;
  u64 mass;
  u64 all_mass;

  INLINE explicit Prefix(const Bins& shared) : bins(shared) {
    u64 own_count = 0, own_mass = 0, all;
    for (int j = 0; j < RUN; ++j) {
      own_count += bins.count[threadIdx.x * RUN + j];
      own_mass += bins.mass(threadIdx.x * RUN + j);
    }
    count = (u32)block_before(own_count, all);
    mass = block_before(own_mass, all_mass);
  }
  // The bin in which the running count reaches `want_count` or the running mass `want_mass`.
  INLINE Place reach(u32 want_count, u64 want_mass) const {
    __shared__ Place found;
    __syncthreads();
    if (threadIdx.x == 0) found.bin = -1;
    __syncthreads();
    u32 c = count;
    u64 m = mass;
    for (int j = 0; j < RUN; ++j) {
      const int b = threadIdx.x * RUN + j;
      const u32 own = bins.count[b];
      const bool before = c < want_count && m < want_mass;
      if (before && (c + own >= want_count || m + bins.mass(b) >= want_mass)) found = {b, c, own, m};
      c += own, m += bins.mass(b);
    }
    __syncthreads();
    return found;
  }
};

INLINE int bin_of(float depth, float scale) { return min(BINS - 1, (int)(depth * scale)); }

// The least depth in bin `bin` > 0 or a later one; bin / scale is next to it.
INLINE float edge_of(int bin, float scale) {
  u32 bits = __float_as_uint(bin / scale);
  while (bin_of(__uint_as_float(bits), scale) < bin) ++bits;
  while (bin_of(__uint_as_float(bits - 1), scale) >= bin) --bits;
  return __uint_as_float(bits);
}
INLINE float after(float depth) { return __uint_as_float(__float_as_uint(depth) + 1); }

// Sort list[0..n) in shared memory, ascending, all keys different: each thread counts what goes before its key, or
// bitonic; the list has room for the next power of two.
INLINE void sort_list(u64* list, int n) {
  __syncthreads();
  if (n <= THREADS) {
    const u64 key = threadIdx.x < n ? list[threadIdx.x] : 0;
    int place = 0;
#pragma unroll 4
    for (int j = 0; j < n && threadIdx.x / 32 * 32 < n; ++j) place += list[j] < key;
    __syncthreads();
    if (threadIdx.x < n) list[place] = key;
    __syncthreads();
    return;
  }
  int size = 2;
  while (size < n) size <<= 1;
  for (int j = n + threadIdx.x; j < size; j += THREADS) list[j] = NEVER;
  __syncthreads();
  for (int run = 2; run <= size; run <<= 1)
    for (int stride = run / 2; stride; stride >>= 1) {
      for (int t = threadIdx.x; t < size / 2; t += THREADS) {
        const int low = 2 * t - (t & (stride - 1)), high = low + stride;
        const u64 a = list[low], b = list[high];
        if ((a > b) == !(low & run)) list[low] = b, list[high] = a;
      }
      // Pairs at most 32 apart were made, and are taken next, by the same warp.
      if (stride > 32 || (stride == 1 && run >= 64)) __syncthreads();
      else __syncwarp();
    }
  __syncthreads();
}

// Tokens that the blocks of a row put together. A block gathers its own in shared memory first.
struct Gathering {
  u64* keys;  // [LIST], shared
  u32& count;  // shared; 0 before

  INLINE void add(float depth, int id) const {
    const u32 place = atomicAdd(&count, 1u);
    if (place < LIST) keys[place] = key_of(depth, id);
  }
  // Append to the row's list; what is more than LIST is counted only.
  INLINE void publish(u64* list, u32* listed) const {
    __shared__ u32 base;
    __syncthreads();
    if (count == 0) return;
    if (threadIdx.x == 0) base = atomicAdd(listed, count);
    __syncthreads();
    const u32 room = base < LIST ? min(count, LIST - base) : 0;
    for (u32 j = threadIdx.x; j < room; j += THREADS) list[base + j] = keys[j];
  }
};

// A row as one block walks it: rare, so short code and few registers.
struct View {
  const float* x;
  int vocab;
  float top, temperature;

  // f(key) for the tokens with keys in [low, high].
  template <class F> INLINE void between(u64 low, u64 high, F&& f) const {
    for_each(x, false, 0, vocab, [&](float value, int id) {
      const u64 key = key_of(depth_of(value, top, temperature), id);
      if (low <= key && key <= high) f(key);
    });
  }
  // The key of the token, in order from `low`, that reaches `want_count` tokens or, counting `before`,
  // `want_mass`; `before` becomes the mass through it. `high` if none does.
  INLINE u64 find(u64 low, u64 high, u32 want_count, u64 want_mass, u64& before, Bins& bins) const {
    while (low < high) {
      const int shift = max(0, 64 - __clzll(high - low) - 9);  // 2^9 = BINS
      bins.clear();
      between(low, high, [&](u64 key) { bins.add((int)((key - low) >> shift), mass_of(depth_of(key))); });
      __syncthreads();
      const Place place = Prefix(bins).reach(want_count, want_mass > before ? want_mass - before : 1);
      if (place.bin < 0) return high;
      low += (u64)place.bin << shift;
      const u64 last = low + ((1ull << shift) - 1);
      high = last < high ? last : high;
      before += place.mass;
      if (want_count != NEVER32) want_count -= place.count;
      __syncthreads();
    }
    before += mass_of(depth_of(low));
    return low;
  }
};
