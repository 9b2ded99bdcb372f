// Three kernels draw a token for each row of a batch; meaning in kernels/sampling.py. Rows of all kinds share the
// launches: what a row needs is read from its parameters.
//  scan   edits the logits (bias, ending ids, penalties) of rows that ask for it; maximum; ends greedy rows
//  weigh  plain rows: the race, the end. Rows with top-k or top-p: lists the tokens that are likely to hold the
//         cuts; the last block sorts them and ends the row. If they do not hold them, a histogram of count and
//         mass over depth tells where the cuts lie
//  pick   for those rows: races what lies above, lists and sorts what lies around the cuts, races what they leave
// Grid (chunks, B); the last block of a row to arrive does what needs the whole row. Nothing depends on the
// number of chunks: maxima, counts and integer masses are exact in any order.
#include "sample_select.cuh"

INLINE void finish(const Block& b, const Params& p, int row, int token, bool finite) {
  if (threadIdx.x) return;
  const Step& s = b.s;
  *(int4*)(s.results + 4 * b.i) = make_int4(token, finite, 0, 0);
  b.state().found.mode = DONE;
  s.last_token[row] = token;
  if (s.tallies && p.flags & PENALISED) {
    u16& tally = s.tallies[(size_t)row * s.vocab + token];
    const u16 times = tally & 0x7fff;
    tally = 0x8000 | (times == 0x7fff ? times : times + 1);
  }
}

INLINE float penalised(float value, u16 tally, const Params& p) {
  if (!tally) return value;
  const float times = (float)(tally & 0x7fff);
  value = value > 0.f ? __fdiv_rn(value, p.repetition) : __fmul_rn(value, p.repetition);
  value = __fsub_rn(value, __fmul_rn(p.frequency, times));
  return __fsub_rn(value, times > 0.f ? p.presence : 0.f);
}

// This block's part of the row, edited, into a copy; `bad` if the model's own logits hold NaN or +inf.
INLINE void edit(const Block& b, const Params& p, int row, int position, bool& bad) {
  const float* x = b.raw();
  float* y = b.edited();
  const u16* tallies = b.s.tallies + (size_t)row * b.s.vocab;
  const bool punish = p.flags & PENALISED;
  for_each(x, b.wide, b.begin, b.end, [&](float value, int id) {
    bad |= !(value < INFINITY32);
    y[id] = punish ? penalised(value, tallies[id], p) : value;
  });
  __syncthreads();
  const int* tokens = p.lists;
  const float* values = (const float*)(p.lists + p.biases);
  for (int j = threadIdx.x; j < p.biases; j += THREADS) {
    const int token = tokens[j];
    if (token < b.begin || token >= b.end || (j && tokens[j - 1] == token)) continue;
    float value = x[token];
    for (int k = j; k < p.biases && tokens[k] == token; ++k) value += values[k];
    y[token] = punish ? penalised(value, tallies[token], p) : value;
  }
  __syncthreads();
  const int* endings = p.lists + 2 * p.biases;
  if (position < p.free_from)
    for (int j = threadIdx.x; j < p.endings; j += THREADS)
      if (endings[j] >= b.begin && endings[j] < b.end) y[endings[j]] = -INFINITY32;
  __syncthreads();
}

// A depth within which at least `count` tokens lie surely, and not many more, from the warps' maxima; DEEP if they
// do not tell.
INLINE float depth_of_rank(const Block& b, u32 count, float top, float temperature) {
  constexpr float SCALE = BINS / DEEP;
  __shared__ u32 counts[BINS];
  for (int j = threadIdx.x; j < BINS; j += THREADS) counts[j] = 0;
  __syncthreads();
  b.for_each_rank([&](u64 rank) {
    if (rank) atomicAdd(&counts[bin_of((top - value_of(rank)) / temperature, SCALE)], 1u);
  });
  __syncthreads();
  const int bin = bin_of_rank(counts, count);
  return bin < 0 || bin == BINS - 1 ? DEEP : fminf(DEEP, (bin + 1.01f) / SCALE);
}

// A depth beyond which top-p cannot cut: were all the vocabulary there, it had less than 1 - p of the best
// token's mass alone.
INLINE float depth_of_tail(double top_p, int vocab) {
  const float rest = (float)(1.0 - top_p);
  return rest < 1e-8f ? DEEP : fminf(DEEP, logf(vocab / rest) + 0.1f);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) sample_scan(const Step s) {
  pdl_wait();
  pdl_launch();
  const Block b{s};
  const Early early(b.raw(), b.wide, b.begin, b.end);
  const int row = s.rows[b.i];
  const Params p = s.params[row];
  if (p.flags & PAD) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      b.state().found.mode = DONE;
      *(int4*)(s.results + 4 * b.i) = make_int4(0, 1, 0, 0);
    }
    return;
  }
  bool bad = false;
  float best = -INFINITY32;
  int best_id = -1;
  const auto look = [&](float value, int id) {
    bad |= !(value < INFINITY32);
    if (value > best) best = value, best_id = id;
  };
  if (s.edited && p.flags & EDITED) {
    edit(b, p, row, s.positions[b.i] + s.ahead, bad);
    for_each(b.edited(), b.wide, b.begin, b.end, look);
  } else {
    for_each(b.raw(), b.wide, b.begin, b.end, look, early);
  }
  b.leave(bad ? NEVER : best_id < 0 ? 0 : rank_of(best, best_id));
  if (!b.last(0)) return;

  const u64 rank = b.best_of_all();
  const bool finite = rank != 0 && rank != NEVER;
  if (!finite || p.flags & GREEDY) return finish(b, p, row, finite ? id_of(rank) : 0, finite);
  const float top = value_of(rank);
  int mode = PLAIN;
  float limit = DEEP, reach = -1.f;
  if (p.flags & FILTERED) {
    mode = CUT;
    if (p.top_k) {
      limit = depth_of_rank(b, p.top_k, top, p.temperature);
      if (limit < DEEP && p.top_k <= LIST / 4) mode = LISTED, reach = limit;
    } else {
      limit = depth_of_tail(p.top_p, s.vocab);
      reach = fminf(limit, 5.f - logf((float)(1.0 - p.top_p)));
    }
    for (int j = threadIdx.x; j < BINS; j += THREADS) {
      s.bin_mass[b.i * BINS + j] = 0;
      s.bin_count[b.i * BINS + j] = 0;
    }
  }
  if (threadIdx.x == 0) {
    State& state = b.state();
    state.found = {mode, top, limit, reach};
    state.listed = 0;
    state.total = 0;
  }
}

// The tokens that hold the cuts, how many of them top-k leaves, the mass above them, the mass that top-p wants.
// quota, needed: as in State.
struct Cuts {
  u32 quota;
  u64 before, needed;
};

// Sort the listed tokens and race those that the cuts leave. False if top-p wants more than they are.
INLINE bool settle(const Block& b, const Params& p, Cuts cuts, u32 listed, u64* list, Race& race) {
  __shared__ u64 kept_mass;
  u64 mass = 0, total;
  for (int j = threadIdx.x; j < listed; j += THREADS) {
    list[j] = __ldcg(b.list() + j);
    mass += mass_of(depth_of(list[j]));
  }
  if (cuts.needed != 0 && cuts.needed != NEVER) {
    block_before(mass, total);
    if (cuts.before + total < cuts.needed) return false;
  }
  sort_list(list, listed);
  const u32 run = (listed + THREADS - 1) / THREADS, begin = threadIdx.x * run;
  const u32 end = min(listed, begin + run), quota = min(listed, cuts.quota);
  u64 own = 0;
  for (u32 j = begin; j < end; ++j) own += mass_of(depth_of(list[j]));
  const u64 before = cuts.before + block_before(own, total);
  if (cuts.needed == 0) {
    mass = before;
    for (u32 j = begin; j < end && j < quota; ++j) {
      mass += mass_of(depth_of(list[j]));
      if (j == quota - 1) kept_mass = mass;
    }
    __syncthreads();
    cuts.needed = share_of(kept_mass, p.top_p);
  }
  mass = before;
  for (u32 j = begin; j < end && j < quota && mass < cuts.needed; ++j) {
    const float depth = depth_of(list[j]);
    if (-depth >= p.least) race.enter(depth, (int)(u32)list[j]);
    mass += mass_of(depth);
  }
  return true;
}

// The same for all tokens with keys in [low, last], too many to be listed (nearly equal logits): find the cuts in
// the row itself.
INLINE void settle_many(const Block& b, const Params& p, Cuts cuts, u64 low, u64 last, Bins& bins, Race& race) {
  const View view{b.logits(p.flags), b.s.vocab, b.state().found.top, p.temperature};
  u64 mass = cuts.before;
  if (cuts.quota != NEVER32) last = view.find(low, last, cuts.quota, NEVER, mass, bins);
  if (cuts.needed == 0) cuts.needed = share_of(mass, p.top_p);
  if (cuts.needed != NEVER) {
    mass = cuts.before;
    last = view.find(low, last, NEVER32, cuts.needed, mass, bins);
  }
  view.between(low, last, [&](u64 key) {
    if (-depth_of(key) >= p.least) race.enter(depth_of(key), (int)(u32)key);
  });
}

// From the histogram of a row: where its cuts lie.
INLINE void locate(const Block& b, const Params& p, float limit, Bins& bins) {
  for (int j = threadIdx.x; j < BINS; j += THREADS) {
    const u64 mass = __ldcg(b.s.bin_mass + b.i * BINS + j);
    bins.low[j] = (u32)mass;
    bins.high[j] = (u32)(mass >> 32);
    bins.count[j] = __ldcg(b.s.bin_count + b.i * BINS + j);
  }
  __syncthreads();
  const Prefix prefix(bins);
  State& state = b.state();
  Place last{-1, 0, 0, 0};
  if (p.top_k) last = prefix.reach(p.top_k, NEVER);
  Place first = last;
  u64 needed = NEVER;
  if (p.top_p < 1) {
    const u64 total = p.top_k ? prefix.all_mass : __ldcg(&state.total);
    needed = share_of(last.bin < 0 ? total : last.mass, p.top_p);
    first = prefix.reach(NEVER32, needed);
    if (last.bin >= 0) needed = 0;
  }
  const float scale = BINS / limit;
  const int end = last.bin >= 0 ? last.bin : first.bin;
  if (threadIdx.x == 0) {
    state.near = first.bin < 0 ? after(limit) : first.bin == 0 ? 0.f : edge_of(first.bin, scale);
    state.quota = last.bin < 0 ? NEVER32 : p.top_k - first.count;
    state.before = first.bin < 0 ? 0 : first.mass;
    state.needed = needed;
    state.listed = 0;
  }
  if (threadIdx.x == 32) state.beyond = end < 0 || end == BINS - 1 ? after(limit) : edge_of(end + 1, scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, ARCH >= 1200 ? 2 : 3) sample_weigh(const Step s) {
  __shared__ Bins bins;
  __shared__ u64 list[LIST];
  __shared__ u32 gathered;
  const Block b{s};
  const Early early = b.early();
  const int row = s.rows[b.i];
  const Params p = s.params[row];
  const u64 key = row_key(p.stream, s.positions[b.i] + s.ahead);
  pdl_wait();
  pdl_launch();
  State& state = b.state();
  const Found found = b.found();
  const int mode = found.mode;
  if (mode == DONE) return;
  const bool edited = s.edited && p.flags & EDITED;
  const float top = found.top, limit = found.limit, reach = found.reach;
  Race race(key);
  const auto walk = [&](auto&& f, auto&& after) {
    if (edited) for_each(b.edited(), b.wide, b.begin, b.end, f, after, Early());
    else for_each(b.raw(), b.wide, b.begin, b.end, f, after, early);
  };
  if (mode == PLAIN) {
    const float far = fminf(limit, -p.least) * p.temperature * 1.0001f;
    const float slope = -1.442695f / p.temperature;
    walk([&](float value, int id) {
      const float gap = top - value;
      if (gap > far) return;
      const float v = race.uniform(id);
      if (exp2_fast(gap * slope) * 1.001f < race.bar * v) return;  // its number is >= v: it cannot win
      const float depth = depth_of(value, top, p.temperature);
      if (-depth >= p.least) race.enter(depth, id, v);
    }, [&] { race.share(); });
    b.leave(race.rank());
    if (b.last(1)) finish(b, p, row, id_of(b.best_of_all()), true);
    return;
  }
  const bool weigh_all = !p.top_k;
  const float far = (weigh_all ? DEEP : limit) * p.temperature * 1.0001f, scale = BINS / limit;
  const Gathering gathering{list, gathered};
  if (threadIdx.x == 0) gathered = 0;
  bins.clear();
  u64 mass = 0;
  walk([&](float value, int id) {
    if (top - value > far) return;
    const float depth = depth_of(value, top, p.temperature);
    if (depth <= reach) gathering.add(depth, id);
    if (mode == LISTED) return;
    const u64 own = mass_of(depth);
    mass += own;
    if (depth <= limit) bins.add(bin_of(depth, scale), own);
  }, [] {});
  gathering.publish(b.list(), &state.listed);
  if (mode == CUT) {
    for (int j = threadIdx.x; j < BINS; j += THREADS)
      if (bins.count[j]) {
        atomicAdd(s.bin_count + b.i * BINS + j, bins.count[j]);
        if (bins.mass(j)) atomicAdd(s.bin_mass + b.i * BINS + j, bins.mass(j));
      }
    u64 total;
    block_before(mass, total);
    if (threadIdx.x == 0 && total) atomicAdd(&state.total, total);
  }
  if (!b.last(1)) return;

  const u32 listed = __ldcg(&state.listed);
  Cuts cuts{p.top_k ? p.top_k : NEVER32, 0, 0};
  if (p.top_p >= 1) cuts.needed = NEVER;
  else if (weigh_all) cuts.needed = share_of(__ldcg(&state.total), p.top_p);
  bool settled = reach >= 0 && listed <= LIST && settle(b, p, cuts, listed, list, race);
  if (!settled && mode == LISTED) {
    settle_many(b, p, cuts, 0, key_of(after(limit), 0) - 1, bins, race);
    settled = true;
  }
  __syncthreads();
  if (settled) {
    const u64 best = block_max(race.rank());
    finish(b, p, row, id_of(best), true);
  } else {
    locate(b, p, limit, bins);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) sample_pick(const Step s) {
  __shared__ union {
    Bins bins;
    u64 list[LIST];
  } shared;
  __shared__ u32 gathered;
  pdl_wait();
  pdl_launch();
  const Block b{s};
  State& state = b.state();
  const Found found = b.found();
  if (found.mode == DONE) return;
  const int row = s.rows[b.i];
  const Params p = s.params[row];
  const float top = found.top, near = state.near, beyond = state.beyond;
  const float far = beyond * p.temperature * 1.0001f;
  const u64 key = row_key(p.stream, s.positions[b.i] + s.ahead);
  const Gathering gathering{shared.list, gathered};
  if (threadIdx.x == 0) gathered = 0;
  __syncthreads();
  Race race(key);
  for_each(b.logits(p.flags), b.wide, b.begin, b.end, [&](float value, int id) {
    if (top - value > far) return;
    const float depth = depth_of(value, top, p.temperature);
    if (depth >= near) {
      if (depth < beyond) gathering.add(depth, id);
      return;
    }
    const float v = race.uniform(id);
    if (expf(-depth) * 1.001f < race.bar * v) return;
    if (-depth >= p.least) race.enter(depth, id, v);
  }, [&] { race.share(); }, Early());
  gathering.publish(b.list(), &state.listed);
  b.leave(race.rank());
  if (!b.last(2)) return;
  const u64 above = b.best_of_all();
  const u32 listed = __ldcg(&state.listed);
  const Cuts cuts{state.quota, state.before, state.needed};
  Race around(key);
  if (listed > LIST)
    settle_many(b, p, cuts, key_of(near, 0), key_of(beyond, 0) - 1, shared.bins, around);
  else if (listed) settle(b, p, cuts, listed, shared.list, around);
  const u64 below = block_max(around.rank());
  finish(b, p, row, id_of(above > below ? above : below), true);
}
