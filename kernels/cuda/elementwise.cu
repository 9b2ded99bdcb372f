// Row-wise kernels around the matrix products: gather, RMS norm, SiLU-mul.
#include "common.cuh"

union Vector {  // eight numbers
  uint4 bits;
  T2 pairs[4];
};

// Rows of table [.., width] at index [rows]: one CTA a row. WIDE: 16-byte vectors, `width` counts them; else numbers.
template <typename Index, typename Item>
INLINE void gather(const Item* table, const Index* index, Item* out, int width) {
  pdl_launch();
  pdl_wait();
  const Item* from = table + (i64)index[blockIdx.x] * width;
  Item* to = out + (i64)blockIdx.x * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}
extern "C" __global__ void gather_i32(const uint4* table, const int* index, uint4* out, int vectors) {
  gather(table, index, out, vectors);
}
extern "C" __global__ void gather_i64(const uint4* table, const i64* index, uint4* out, int vectors) {
  gather(table, index, out, vectors);
}
extern "C" __global__ void gather_odd_i32(const u16* table, const int* index, u16* out, int width) {
  gather(table, index, out, width);
}
extern "C" __global__ void gather_odd_i64(const u16* table, const i64* index, u16* out, int width) {
  gather(table, index, out, width);
}

// Sum over the CTA, the same in every thread; `warps` has room for one number a warp.
INLINE float block_sum(float x, float* warps) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  const int lane = threadIdx.x & 31, count = blockDim.x >> 5;
  if (count == 1) return x;
  if (lane == 0) warps[threadIdx.x >> 5] = x;
  __syncthreads();
  x = lane < count ? warps[lane] : 0.f;
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// x [rows, 8 * vectors], gain float32 -> out; one CTA a row, each thread keeps VECTORS 16-byte vectors of it.
template <int VECTORS> INLINE void norm(const uint4* x, const float4* gain, uint4* out, int vectors, float eps) {
  __shared__ float warps[16];
  pdl_launch();
  pdl_wait();
  const uint4* from = x + (i64)blockIdx.x * vectors;
  uint4* to = out + (i64)blockIdx.x * vectors;
  Vector row[VECTORS];
  float sum = 0.f;
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const int i = threadIdx.x + v * blockDim.x;
    row[v].bits = i < vectors ? from[i] : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int v = 0; v < VECTORS; v++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 p = to_float2(row[v].pairs[j]);
      sum += p.x * p.x + p.y * p.y;
    }
  const float scale = rsqrtf(block_sum(sum, warps) / (8 * vectors) + eps);
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const int i = threadIdx.x + v * blockDim.x;
    if (i >= vectors) continue;
    const float4 low = gain[2 * i], high = gain[2 * i + 1];
    const float factors[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    Vector y;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 p = to_float2(row[v].pairs[j]);
      y.pairs[j] = from_float2(p.x * scale * factors[2 * j], p.y * scale * factors[2 * j + 1]);
    }
    to[i] = y.bits;
  }
}

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_2(const uint4* x, const float4* gain, uint4* out, int vectors, float eps) {
  norm<2>(x, gain, out, vectors, eps);
}
extern "C" __global__ void __launch_bounds__(512)
    rms_norm_4(const uint4* x, const float4* gain, uint4* out, int vectors, float eps) {
  norm<4>(x, gain, out, vectors, eps);
}

// Rows that are no multiple of eight numbers or longer than 16,384: read twice.
extern "C" __global__ void __launch_bounds__(512)
    rms_norm_odd(const T* x, const float* gain, T* out, int width, float eps) {
  __shared__ float warps[16];
  pdl_launch();
  pdl_wait();
  const T* from = x + (i64)blockIdx.x * width;
  T* to = out + (i64)blockIdx.x * width;
  float sum = 0.f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const float v = to_float(from[i]);
    sum += v * v;
  }
  const float scale = rsqrtf(block_sum(sum, warps) / width + eps);
  for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = from_float(to_float(from[i]) * scale * gain[i]);
}

INLINE float silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }

// gate_up [rows, 2 * width] = gate | up -> silu(gate) * up [rows, width], width = 8 * vectors; grid (x, rows).
extern "C" __global__ void __launch_bounds__(256) silu_mul(const uint4* gate_up, uint4* out, int vectors) {
  pdl_launch();
  pdl_wait();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= vectors) return;
  const uint4* row = gate_up + (i64)blockIdx.y * 2 * vectors;
  Vector gate, up, y;
  gate.bits = ld_stream(row + i);
  up.bits = ld_stream(row + vectors + i);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 g = to_float2(gate.pairs[j]), u = to_float2(up.pairs[j]);
    y.pairs[j] = from_float2(silu(g.x) * u.x, silu(g.y) * u.y);
  }
  out[(i64)blockIdx.y * vectors + i] = y.bits;
}
extern "C" __global__ void __launch_bounds__(256) silu_mul_odd(const T* gate_up, T* out, int width) {
  pdl_launch();
  pdl_wait();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= width) return;
  const T* row = gate_up + (i64)blockIdx.y * 2 * width;
  out[(i64)blockIdx.y * width + i] = from_float(silu(to_float(row[i])) * to_float(row[width + i]));
}
