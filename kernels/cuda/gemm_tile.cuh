// What the matrix-product kernels share: which part of the work is whose, how partial sums meet, and what becomes of
// them. out[token, feature] = sum_k x[token, k] * w[feature, k]; features are the M of the tensor cores, tokens the N.
//
// A tile is BM = 128 * MB features by BN tokens, worked on by two groups of four warps; block mb of group g holds 64
// features, warp w of it 16. acc[mb][4j .. 4j+3] of a lane are (row r, tokens t, t+1) and (row r + 8, same), with
// r = lane / 4, t = 8j + 2 * (lane % 4): the accumulator layout of both mma.m16n8 and wgmma.m64.
#pragma once
#include "common.cuh"

constexpr int BM = 128 * MB;
constexpr int CONSUMERS = 256;
constexpr int QUADS = BN / 8;        // float4 of accumulators per block of 64 features and thread
constexpr int EPILOGUE_TOKENS = 16;  // tokens turned at a time
constexpr int EPILOGUE_STRIDE = 68;  // 64 features + 4: neither the writes nor the reads collide in a bank
constexpr int EPILOGUE_BYTES = 2 * EPILOGUE_TOKENS * EPILOGUE_STRIDE * 4;

struct Product {
  const T* bias;         // [rows] or null
  const T* residual;     // [n, features] or null
  void* out;             // [n, features] T, or float
  int n, rows, steps;    // tokens, rows of the weight, steps of 128 along K
  int silu, wide_out;    // flags: silu(gate) * up of paired rows; out is float
};

constexpr int ALL = 7;  // the named barrier of all consumers; groups have 1 + group
INLINE void barrier(int id, int threads) { asm volatile("bar.sync %0,%1;" ::"r"(id), "r"(threads) : "memory"); }

// --- the end of a tile --------------------------------------------------------------------------------------------
INLINE float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// 8 features of one token: add the residual, round once, store.
INLINE void store8(const Product& p, int features, int token, int feature, const float* v) {
  const size_t at = (size_t)token * features + feature;
  float sum[8];
#pragma unroll
  for (int i = 0; i < 8; i++) sum[i] = v[i];
  if (features % 8 || feature + 8 > features) {
    for (int i = 0; i < 8 && feature + i < features; i++) {
      if (p.residual) sum[i] += to_float(p.residual[at + i]);
      if (p.wide_out) ((float*)p.out)[at + i] = sum[i];
      else ((T*)p.out)[at + i] = from_float(sum[i]);
    }
    return;
  }
  if (p.residual) {
    uint4 r = *(const uint4*)(p.residual + at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 f = to_float2(((T2*)&r)[i]);
      sum[2 * i] += f.x, sum[2 * i + 1] += f.y;
    }
  }
  if (p.wide_out) {
    float4* to = (float4*)((float*)p.out + at);
    to[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    to[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    return;
  }
  uint4 packed;
#pragma unroll
  for (int i = 0; i < 4; i++) ((T2*)&packed)[i] = from_float2(sum[2 * i], sum[2 * i + 1]);
  *(uint4*)((T*)p.out + at) = packed;
}

// Features of the 16 tokens from token0 on, turned through shared memory so that stores are 16 bytes. value(q, i): the
// lane's number 4q + i (i < 4 without, i < 2 with joined gate and up rows) of the 8 tokens q.
template <bool JOINED, class Value>
INLINE void turn_and_store(const Product& p, float* buffer, int features, int feature0, int token0, Value value) {
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, warp = thread / 32, lane = thread % 32;
  constexpr int COUNT = JOINED ? 32 : 64, VECTORS = COUNT / 8;
  float* stage = buffer + group * (EPILOGUE_TOKENS * EPILOGUE_STRIDE);
  const int row = warp * (JOINED ? 8 : 16) + lane / 4, column = 2 * (lane % 4);
  if (token0 >= p.n) return;
#pragma unroll
  for (int q = 0; q < 2; q++)
#pragma unroll
    for (int i = 0; i < (JOINED ? 2 : 4); i++)
      stage[(8 * q + column + i % 2) * EPILOGUE_STRIDE + row + i / 2 * 8] = value(q, i);
  barrier(1 + group, 128);
  const int token = token0 + thread / VECTORS, feature = feature0 + thread % VECTORS * 8;
  if (thread < EPILOGUE_TOKENS * VECTORS && token < p.n && feature < features)
    store8(p, features, token, feature, stage + thread / VECTORS * EPILOGUE_STRIDE + thread % VECTORS * 8);
  barrier(1 + group, 128);
}

INLINE float bias_of(const Product& p, int row) { return p.bias && row < p.rows ? to_float(p.bias[row]) : 0.0f; }

// silu(gate) * up of the 16 tokens from token0 on, where the first four warps have 64 gate rows and the others the same
// up rows.
INLINE void join_and_store(const float (&sum)[8], const Product& p, float* buffer, int feature0, int token0) {
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, lane = thread % 32, width = p.rows / 2;
  const int row = thread / 32 * 16 + lane / 4, column = 2 * (lane % 4), weight_row = group * width + feature0 + row;
  constexpr int GROUP_STAGE = EPILOGUE_TOKENS * EPILOGUE_STRIDE;
  if (token0 >= p.n) return;
  const float b[2] = {bias_of(p, weight_row), bias_of(p, weight_row + 8)};
#pragma unroll
  for (int i = 0; i < 8; i++)
    buffer[group * GROUP_STAGE + (i / 4 * 8 + column + i % 2) * EPILOGUE_STRIDE + row + i / 2 % 2 * 8] = sum[i] + b[i / 2 % 2];
  barrier(ALL, CONSUMERS);
  const int token = token0 + thread / 8, feature = feature0 + thread % 8 * 8;
  if (group == 0 && token < p.n && feature < width) {
    const float* gate = buffer + thread / 8 * EPILOGUE_STRIDE + thread % 8 * 8;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = silu(gate[i]) * gate[GROUP_STAGE + i];
    store8(p, width, token, feature, v);
  }
  barrier(ALL, CONSUMERS);
}

// Bias, SiLU, residual, store of 16 tokens: sum[mb] holds their 8 numbers of block mb. With silu the 16 rows of a warp
// are 8 of gate and 8 of up when the weight is packed (W4); when it is plain, MB is 1 and group 0 is gate, 1 up.
INLINE void finish(const float (&sum)[MB][8], const Product& p, float* buffer, int tile_m, int token0) {
  const int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, r = threadIdx.x % 32 / 4;
  if (!W4 && p.silu) {
    join_and_store(sum[0], p, buffer, tile_m * 64, token0);
    return;
  }
#pragma unroll
  for (int mb = 0; mb < MB; mb++) {
    const int block0 = tile_m * BM + (group * MB + mb) * 64;
    if (W4 && p.silu) {
      const int width = p.rows / 2, row = block0 / 2 + warp * 8 + r;
      const float g = bias_of(p, row), u = bias_of(p, row + width);
      turn_and_store<true>(p, buffer, width, block0 / 2, token0, [&](int q, int i) {
        return silu(sum[mb][4 * q + i] + g) * (sum[mb][4 * q + 2 + i] + u);
      });
      continue;
    }
    const int row = block0 + warp * 16 + r;
    const float b[2] = {bias_of(p, row), bias_of(p, row + 8)};
    turn_and_store<false>(p, buffer, p.rows, block0, token0, [&](int q, int i) { return sum[mb][4 * q + i] + b[i / 2]; });
  }
}

INLINE void finish_all(const float (&acc)[MB][BN / 2], const Product& p, float* buffer, int tile_m, int token0) {
#pragma unroll
  for (int c = 0; c < BN / EPILOGUE_TOKENS; c++) {
    float sum[MB][8];
#pragma unroll
    for (int mb = 0; mb < MB; mb++)
#pragma unroll
      for (int i = 0; i < 8; i++) sum[mb][i] = acc[mb][8 * c + i];
    finish(sum, p, buffer, tile_m, token0 + c * EPILOGUE_TOKENS);
  }
}
