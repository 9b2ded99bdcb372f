// Rotary tables: the cosines and sines of a step's positions.
#include "common.cuh"

// cos and sin [rows, pairs] float32 of position * frequency, times `attention_factor`.
// lengths: prompt length per row; a row's length is max(lengths, position + 1). Beyond `original` it chooses
// `long_frequencies` (longrope; null: none) or, with stretch > 0, the base grows (dynamic NTK):
//   base' = base * (stretch * length / original - stretch + 1) ^ (dim / (dim - 2)), dim = 2 * pairs.
// The angle is rounded to float32 as everywhere, but reduced in double: exact at any position, and no slow path.
extern "C" __global__ void __launch_bounds__(128)
    rotary(const int* positions, const int* lengths, const float* frequencies, const float* long_frequencies,
           float* cos, float* sin, int rows, int pairs, int original, float stretch, float attention_factor) {
  // In this order, unlike elsewhere: no later kernel of a step may start, and read what the staging kernel before
  // this one writes, until that is finished.
  pdl_wait();
  pdl_launch();
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= rows * pairs) return;
  const int row = at / pairs, pair = at - row * pairs;
  const int position = positions[row];
  float frequency = frequencies[pair];
  if (long_frequencies || stretch > 0.f) {
    const int length = max(lengths[row], position + 1);
    if (length > original) {
      if (long_frequencies) {
        frequency = long_frequencies[pair];
      } else {
        const double grown = (double)stretch * length / original - ((double)stretch - 1.0);
        frequency = (float)(frequency * exp2(-2.0 * pair / (2 * pairs - 2) * log2(grown)));
      }
    }
  }
  const float angle = (float)position * frequency;
  const double turns = angle * 0.31830988618379067;  // in half turns
  const float rest = (float)(turns - 2.0 * rint(turns * 0.5));
  cos[at] = cospif(rest) * attention_factor;
  sin[at] = sinpif(rest) * attention_factor;
}
