// Hopper's machinery as matrix products need it: tensor copies, clusters, warpgroup products with A in registers.
#pragma once
#include "hopper.cuh"

struct alignas(64) TensorMap {
  u64 opaque[16];
};

// --- copies ---------------------------------------------------------------------------------------------------------
// A box of a matrix into shared memory, reported to a barrier.
INLINE void tensor_load(void* to, const TensorMap* map, int column, int row, u64* bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0],[%1,{%2,%3}],[%4];" ::"r"(
          smem_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(smem_address(bar)) : "memory");
}

// --- clusters -------------------------------------------------------------------------------------------------------
// All running threads of the cluster: what they wrote to shared memory before it is seen after it.
INLINE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// 16 bytes at the place of p, in the shared memory of block `rank` of the cluster.
INLINE float4 ld_cluster(const float4* p, int rank) {
  float4 v;
  asm volatile("{.reg .u32 a; mapa.shared::cluster.u32 a,%4,%5; ld.shared::cluster.v4.f32 {%0,%1,%2,%3},[a];}"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(smem_address(p)), "r"(rank) : "memory");
  return v;
}

// --- warpgroup products: d[64 x BN] += a[64 x 16] * b[16 x BN] ------------------------------------------------------
// Matrix descriptor (PTX ISA, "Matrix descriptor format"): rows of 64 numbers = 128 bytes, 128-byte swizzle, groups of
// 8 rows 1,024 bytes apart. Step j of 16 columns is 2 further.
INLINE u64 descriptor(const void* p) {
  return (u64)(smem_address(p) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#if DTYPE_BF16
#define WGMMA_TYPE "bf16.bf16"
#else
#define WGMMA_TYPE "f16.f16"
#endif
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D64 D16(0), D16(16), D16(32), D16(48)
#define WGMMA(n, add) "{.reg .pred p; setp.ne.b32 p," add ",0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." WGMMA_TYPE " {"
#if BN == 16
#define ACCUMULATORS D4(0), D4(4)
#define NUMBERS "%0,%1,%2,%3,%4,%5,%6,%7"
#define RS "},{%8,%9,%10,%11},%12,p,1,1,0;}"
#define RS_ADD "%13"
#define SS "},%8,%9,p,1,1,0,0;}"
#elif BN == 32
#define ACCUMULATORS D16(0)
#define NUMBERS "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define RS "},{%16,%17,%18,%19},%20,p,1,1,0;}"
#define RS_ADD "%21"
#define SS "},%16,%17,p,1,1,0,0;}"
#elif BN == 64
#define ACCUMULATORS D16(0), D16(16)
#define NUMBERS "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define RS "},{%32,%33,%34,%35},%36,p,1,1,0;}"
#define RS_ADD "%37"
#define SS "},%32,%33,p,1,1,0,0;}"
#elif BN == 128
#define ACCUMULATORS D64
#define NUMBERS "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define RS "},{%64,%65,%66,%67},%68,p,1,1,0;}"
#define RS_ADD "%69"
#define SS "},%64,%65,p,1,1,0,0;}"
#elif BN == 256
#define ACCUMULATORS D64, D16(64), D16(80), D16(96), D16(112)
#define NUMBERS "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define RS "},{%128,%129,%130,%131},%132,p,1,1,0;}"
#define RS_ADD "%133"
#define SS "},%128,%129,p,1,1,0,0;}"
#endif
#define WGMMA_OF(n, add) WGMMA(n, add)
// add: 0 writes d instead of adding to it.
INLINE void wgmma_rs(float (&d)[BN / 2], const u32* a, u64 b, int add) {
  asm volatile(WGMMA_OF(BN, RS_ADD) NUMBERS RS : ACCUMULATORS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
INLINE void wgmma_ss(float (&d)[BN / 2], u64 a, u64 b) {
  asm volatile(WGMMA_OF(BN, "1") NUMBERS SS : ACCUMULATORS : "l"(a), "l"(b));
}
