"""CUDA sources that tests compile."""

# 128 live values a thread where launch bounds leave 32 registers
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) many(float* x, int n) {
  float v[128];
#pragma unroll
  for (int i = 0; i < 128; i++) v[i] = x[i * 1024 + threadIdx.x];
  for (int k = 0; k < n; k++)
#pragma unroll
    for (int i = 0; i < 128; i++) v[i] = v[i] * v[(i + 1) % 128] + v[(i + 7) % 128];
#pragma unroll
  for (int i = 0; i < 128; i++) x[i * 1024 + threadIdx.x] = v[i];
}
"""
