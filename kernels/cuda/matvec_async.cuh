// Asynchronous machinery of sm_90+: mbarriers, bulk copies, thread block clusters (PTX ISA, "mbarrier",
// "cp.async.bulk", "mapa"). All addresses are 32-bit shared-memory addresses.
#pragma once
#include "common.cuh"
#if ARCH >= 900

INLINE void barrier_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0],%1;" ::"r"(bar), "r"(count) : "memory"); }
// Makes initialised barriers visible to bulk copies and to the other CTAs of the cluster.
INLINE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
INLINE void barrier_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(bar) : "memory"); }
INLINE void barrier_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(bar), "r"(bytes) : "memory");
}
// One lane of a converged warp, in the form by which the compiler knows that it is one.
INLINE bool elect() {
  u32 one;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p,0xffffffff;\nselp.u32 %0,1,0,p;\n}" : "=r"(one));
  return one;
}
INLINE void barrier_wait(u32 bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p,[%0],%1;\n@p bra done;\nbra again;\ndone:\n}" ::"r"(bar), "r"(parity)
      : "memory");
}
// `bytes` (a multiple of 16) from global to shared memory; `bar` counts their arrival.
INLINE void bulk_load(u32 to, const void* from, u32 bytes, u32 bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(bar)
               : "memory");
}
INLINE u32 cluster_rank() {
  u32 r;
  asm volatile("mov.u32 %0,%%cluster_ctarank;" : "=r"(r));
  return r;
}
INLINE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// The address that `at` has in the CTA `rank` of the cluster.
INLINE u32 peer(u32 at, u32 rank) {
  u32 r;
  asm volatile("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(r) : "r"(at), "r"(rank));
  return r;
}
// Stores into a CTA of the cluster; the barrier `bar` of that CTA counts the 4 bytes when they have arrived.
INLINE void store_peer(u32 at, float v, u32 bar) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0],%1,[%2];" ::"r"(at), "f"(v), "r"(bar) : "memory");
}

#endif
