// What the host sends for a step, applied on the device. Formats: stage.py.
#include "common.cuh"

// Cells (row * width + column) of the block tables and what goes there.
INLINE void put(const int* cells, const int* blocks, int count, int* tables, int begin, int step) {
  for (int j = begin; j < count; j += step) tables[cells[j]] = blocks[j];
}

// One block. `staged`: count of cells, count of rows, 2 x 0; rows, positions, prompt lengths [capacity] each;
// cells, blocks [room] each. Lanes from the count of rows to `bucket` become padding: row `spare`, position 0.
extern "C" __global__ void stage_apply(const int* staged, int capacity, int room, int bucket, int spare,
                                       const i64* last_token, int* tables, int* rows, int* positions,
                                       int* prompt_lens, i64* tokens) {
  pdl_wait();
  pdl_launch();
  const int cells = staged[0], used = staged[1];
  const int* parts = staged + 4;
  for (int i = threadIdx.x; i < bucket; i += blockDim.x) {
    const bool real = i < used;
    const int staged_row = parts[i], position = parts[capacity + i], prompt_len = parts[2 * capacity + i];
    const int row = real ? staged_row : spare;  // all loads are under way before the count is known
    rows[i] = row;
    positions[i] = real ? position : 0;
    prompt_lens[i] = real ? prompt_len : 1;
    tokens[i] = last_token[row];
  }
  put(parts + 3 * capacity, parts + 3 * capacity + room, cells, tables, threadIdx.x, blockDim.x);
}

// More cells than a step's buffer has room for.
extern "C" __global__ void stage_put(const int* cells, const int* blocks, int count, int* tables) {
  pdl_wait();
  pdl_launch();
  put(cells, blocks, count, tables, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
}
