// Hopper's warpgroup products and barriers as prefill attention needs them: S = Q K^T from shared memory, O += P V with
// P in registers and V read across.
#pragma once
#include "attn_prefill.cuh"
#include "hopper.cuh"

// This thread's arrival, once all of its cp.async up to here have landed.
INLINE void mbar_arrive_async(u64* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem_address(bar)) : "memory");
}
// cp_async16 of common.cuh for an address that is known in shared memory; `bytes` 16, or 0 to write zeros.
INLINE void copy_async(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
INLINE void copy_async4(u32 to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],4;" ::"r"(to), "l"(from) : "memory");
}
INLINE void store_shared(u32 to, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0],{%1,%2,%3,%4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
// Ordinary writes to shared memory become visible to wgmma.
INLINE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
INLINE void named_sync(int id, int threads) { asm volatile("bar.sync %0,%1;" ::"r"(id), "r"(threads) : "memory"); }
INLINE void named_arrive(int id, int threads) { asm volatile("bar.arrive %0,%1;" ::"r"(id), "r"(threads) : "memory"); }
template <int COUNT> INLINE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> INLINE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// Matrix descriptor (PTX ISA, "Matrix descriptor format"): rows of 64 numbers = 128 bytes under the 128-byte swizzle,
// groups of 8 rows 1,024 bytes apart; `slab`: bytes between columns 64 apart, where the matrix is read across. The low
// word holds all that differs, so that a step of `bytes` is one addition.
INLINE u32 descriptor(u32 address, int slab = 16) { return (address >> 4 & 0x3fff) | (u32)(slab >> 4) << 16; }
INLINE u64 advance(u32 low, int bytes) { return (u64)(1u << 30 | 64u) << 32 | (low + (bytes >> 4)); }

#if DTYPE_BF16 && KV_BITS == 16
#define WGMMA_TYPE "f32.bf16.bf16"
#else
#define WGMMA_TYPE "f32.f16.f16"
#endif
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D32 D16(0), D16(16)
#define D40 D32, D4(32), D4(36)
#define D48 D32, D16(32)
#define D64 D32, D16(32), D16(48)
#define D128 D64, D16(64), D16(80), D16(96), D16(112)
#define R32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R40 R32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define R48 R40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define R64 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define R128 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// d [64 x 2 COUNT] = (fresh ? 0 : d) + a b^T: a [64 x 16] and b [2 COUNT x 16] by descriptor, numbers along k contiguous.
template <int COUNT> INLINE void wgmma_ss(float (&d)[COUNT], u64 a, u64 b, bool fresh) {
#define SS(n, regs, outs, x, y, z) \
  asm volatile("{.reg .pred p; setp.eq.s32 p,%" #z ",0; wgmma.mma_async.sync.aligned.m64n" #n "k16." WGMMA_TYPE " {" regs \
               "},%" #x ",%" #y ",p,1,1,0,0;}" : outs : "l"(a), "l"(b), "r"((int)fresh))
  if constexpr (COUNT == 32) SS(64, R32, D32, 32, 33, 34);
  else SS(128, R64, D64, 64, 65, 66);
}
// d [64 x 2 COUNT] += a b: a [64 x 16] in registers, b [16 x 2 COUNT] by descriptor, numbers of a row contiguous.
template <int COUNT> INLINE void wgmma_rs(float (&d)[COUNT], const u32* a, u64 b) {
#define RS(n, regs, outs, w, x, y, z, desc) \
  asm volatile("{.reg .pred p; setp.eq.s32 p,1,1; wgmma.mma_async.sync.aligned.m64n" #n "k16." WGMMA_TYPE " {" regs \
               "},{%" #w ",%" #x ",%" #y ",%" #z "},%" #desc ",p,1,1,1;}" \
               : outs : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (COUNT == 32) RS(64, R32, D32, 32, 33, 34, 35, 36);
  else if constexpr (COUNT == 40) RS(80, R40, D40, 40, 41, 42, 43, 44);
  else if constexpr (COUNT == 48) RS(96, R48, D48, 48, 49, 50, 51, 52);
  else if constexpr (COUNT == 64) RS(128, R64, D64, 64, 65, 66, 67, 68);
  else RS(256, R128, D128, 128, 129, 130, 131, 132);
}
