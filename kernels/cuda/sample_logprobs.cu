// Log-probabilities of the rows that ask for them, under the logits as the model gave them: of the token drawn,
// and the 20 most likely. Run after `sample_pick`, in steps where some row asks.
//  logprob_scan  maximum, and a depth within which the 20 best lie
//  logprob_rank  mass of the row; the tokens within that depth, sorted by the last block
#include "sample_select.cuh"

constexpr u32 TOP = 20;

// Whether row i has log-probabilities to give.
INLINE bool asked(const Block& b) {
  return b.s.params[b.s.rows[b.i]].flags & LOGPROBS && b.s.results[4 * b.i + 1];
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) logprob_scan(const Step s) {
  __shared__ Bins bins;
  pdl_wait();
  pdl_launch();
  const Block b{s};
  if (!asked(b)) return;
  float best = -INFINITY32;
  int best_id = -1;
  for_each(b.raw(), b.wide, b.begin, b.end, [&](float value, int id) {
    if (value > best) best = value, best_id = id;
  });
  b.leave(best_id < 0 ? 0 : rank_of(best, best_id));
  if (!b.last(3)) return;
  const float top = value_of(b.best_of_all());
  constexpr float SCALE = BINS / DEEP;
  bins.clear();
  b.for_each_rank([&](u64 rank) {
    if (rank) atomicAdd(&bins.count[bin_of(top - value_of(rank), SCALE)], 1u);
  });
  __syncthreads();
  const int bin = bin_of_rank(bins.count, TOP);
  if (threadIdx.x) return;
  State& state = b.state();
  state.raw_top = top;
  state.raw_limit = bin < 0 || bin == BINS - 1 ? INFINITY32 : (bin + 1.01f) / SCALE;
  state.raw_total = 0;
  state.raw_listed = 0;
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) logprob_rank(const Step s) {
  __shared__ union {
    Bins bins;
    u64 list[LIST];
  } shared;
  __shared__ u32 found;
  pdl_wait();
  pdl_launch();
  const Block b{s};
  if (!asked(b)) return;
  State& state = b.state();
  const float top = state.raw_top, limit = state.raw_limit;
  u64 mass = 0, total;
  for_each(b.raw(), b.wide, b.begin, b.end, [&](float value, int id) {
    const float depth = top - value;
    mass += mass_of(depth);
    if (depth > limit) return;
    const u32 place = atomicAdd(&state.raw_listed, 1u);
    if (place < LIST) b.list()[place] = key_of(depth, id);
  });
  block_before(mass, total);
  if (threadIdx.x == 0 && total) atomicAdd(&state.raw_total, total);
  if (!b.last(4)) return;

  u32 listed = __ldcg(&state.raw_listed);
  if (listed <= LIST) {
    for (int j = threadIdx.x; j < listed; j += THREADS) shared.list[j] = __ldcg(b.list() + j);
  } else {
    const View view{b.raw(), s.vocab, top, 1.f};
    u64 through = 0;
    const u64 last = view.find(0, key_of(INFINITY32, NEVER32), TOP, NEVER, through, shared.bins);
    __syncthreads();
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    view.between(0, last, [&](u64 key) { shared.list[atomicAdd(&found, 1u)] = key; });
    __syncthreads();
    listed = found;
  }
  sort_list(shared.list, listed);
  const float whole = logf((float)((double)__ldcg(&state.raw_total) * 0x1p-40));
  int* ids = s.results + 4 * s.capacity + 2 * TOP * b.i;
  float* values = (float*)(ids + TOP);
  if (threadIdx.x < TOP) {
    const bool there = threadIdx.x < listed;
    const u64 key = there ? shared.list[threadIdx.x] : 0;
    ids[threadIdx.x] = there ? (int)(u32)key : -1;
    values[threadIdx.x] = there ? -depth_of(key) - whole : -INFINITY32;
  }
  if (threadIdx.x == TOP) ((float*)s.results)[4 * b.i + 2] = b.raw()[s.results[4 * b.i]] - top - whole;
}
