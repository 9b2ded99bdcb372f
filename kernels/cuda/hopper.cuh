// What all kernels for Hopper's warpgroups share: transaction barriers, and the order of their matrix products.
#pragma once
#include "common.cuh"

// --- transaction barriers -----------------------------------------------------------------------------------------
INLINE void mbar_init(u64* bar, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0],%1;" ::"r"(smem_address(bar)), "r"(count) : "memory");
}
INLINE void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
INLINE void mbar_arrive(u64* bar) {
  asm volatile("mbarrier.arrive.shared.b64 _,[%0];" ::"r"(smem_address(bar)) : "memory");
}
INLINE void mbar_expect(u64* bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _,[%0],%1;" ::"r"(smem_address(bar)), "r"(bytes) : "memory");
}
INLINE void mbar_wait(u64* bar, u32 parity) {
  asm volatile(
      "{.reg .pred done; again: mbarrier.try_wait.parity.shared.b64 done,[%0],%1; @!done bra again;}" ::"r"(smem_address(bar)),
      "r"(parity) : "memory");
}

// --- warpgroup products --------------------------------------------------------------------------------------------
INLINE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> INLINE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving reads of accumulators above a wait, or writes of A fragments below a fence.
template <int COUNT> INLINE void pin(u32 (&a)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+r"(a[i])::"memory");
}
template <int COUNT> INLINE void pin(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
