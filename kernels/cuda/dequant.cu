// Packed 4-bit weights (w4.py) back to plain 16-bit rows in their original order, [rows, columns].
// A warp writes 16 rows by 128 columns: lane q of a quad takes column slab q of both halves, so that a row's stores are
// 128 contiguous bytes. Macros: GROUP, DTYPE_BF16.
#include "common.cuh"
#include "gemm_w4.cuh"

extern "C" __global__ void __launch_bounds__(256)
    dequant(const u32* words, const uint2* pairs, T* out, int rows, int columns, int steps, int gate_up) {
  pdl_launch();
  const int lane = threadIdx.x % 32, quad = lane / 4, slab = lane % 4;
  const int tile = blockIdx.y, step = blockIdx.x * 8 + threadIdx.x / 32;
  if (step >= steps) {
    pdl_wait();
    return;
  }
  const size_t at = (size_t)tile * steps + step;
  u32 word[2][4];
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int c = 0; c < 4; c++) word[half][c] = __ldg(words + at * 256 + half * 128 + (quad * 4 + c) * 4 + slab);
  int row[2] = {tile * 16 + quad, tile * 16 + quad + 8};
  bool there[2] = {row[0] < rows, row[1] < rows};
  if (gate_up) {
    row[0] = tile * 8 + quad, row[1] = row[0] + rows / 2;
    there[0] = there[1] = row[0] < rows / 2;
  }
  Scales s[2];
#pragma unroll
  for (int half = 0; half < 2; half++)
    s[half] = scales_of(__ldg(pairs + (at * GROUPS_PER_STEP + (half * 64 + slab * 16) / GROUP) * 8 + quad));
  pdl_wait();  // `out` may still be read by the kernel before
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint4 eight[2][2];  // [row, columns 0..7 or 8..15 of the slab]
#pragma unroll
    for (int c = 0; c < 4; c++) {
      u32 a[4];
      dequantise(word[half][c], s[half], a);
#pragma unroll
      for (int i = 0; i < 4; i++) ((u32*)&eight[i % 2][i / 2])[c] = a[i];
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int part = 0; part < 2; part++) {
        const int column = step * 128 + half * 64 + slab * 16 + part * 8;
        T* to = out + (size_t)row[r] * columns + column;
        if (!there[r]) continue;
        if (columns % 8 == 0) {
          if (column < columns) *(uint4*)to = eight[r][part];
        } else {
          for (int i = 0; i < 8 && column + i < columns; i++) to[i] = ((const T*)&eight[r][part])[i];
        }
      }
  }
}
