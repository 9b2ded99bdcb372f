// What the kernels share: the activation type, programmatic dependent launch, asynchronous copies, tensor-core
// products. T is the model's 16-bit type: DTYPE_BF16 = 0 half, 1 bfloat16.
#pragma once
#include <cuda_fp16.h>
#include <cuda_bf16.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef DTYPE_BF16
#define DTYPE_BF16 0
#endif
#ifdef __CUDA_ARCH__
#define ARCH __CUDA_ARCH__
#else
#define ARCH 0
#endif
#define INLINE __device__ __forceinline__

#if DTYPE_BF16
typedef __nv_bfloat16 T;
typedef __nv_bfloat162 T2;
INLINE float to_float(T x) { return __bfloat162float(x); }
INLINE T from_float(float x) { return __float2bfloat16_rn(x); }
INLINE float2 to_float2(T2 x) { return __bfloat1622float2(x); }
INLINE T2 from_float2(float a, float b) { return __floats2bfloat162_rn(a, b); }
#else
typedef half T;
typedef half2 T2;
INLINE float to_float(T x) { return __half2float(x); }
INLINE T from_float(float x) { return __float2half_rn(x); }
INLINE float2 to_float2(T2 x) { return __half22float2(x); }
INLINE T2 from_float2(float a, float b) { return __floats2half2_rn(a, b); }
#endif

// --- programmatic dependent launch ------------------------------------------------------------------------
// pdl_wait: everything the kernels before this one wrote is visible after it. pdl_launch: the next kernel may
// start (it still waits for our end in its own pdl_wait).
INLINE void pdl_wait() {
#if ARCH >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
INLINE void pdl_launch() {
#if ARCH >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- loads --------------------------------------------------------------------------------------------------
// 16 bytes that are read once, e.g. weights: past L1, 256 bytes at a time into L2.
INLINE uint4 ld_stream(const void* p) {
  uint4 v;
#if ARCH >= 800
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
#else
  v = __ldg((const uint4*)p);
#endif
  return v;
}

INLINE u32 smem_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes, global to shared, asynchronous where the chip can; zeros where !valid.
INLINE void cp_async16(void* to, const void* from, bool valid = true) {
#if ARCH >= 800
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(smem_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
#else
  *(uint4*)to = valid ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}
INLINE void cp_async_commit() {
#if ARCH >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int PENDING> INLINE void cp_async_wait() {
#if ARCH >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// --- tensor cores ---------------------------------------------------------------------------------------------
// Fragments of m16n8k16 (PTX ISA): A regs (row l/4 | +8) x (k 2(l%4) | +8); B regs k 2(l%4) | +8, column l/4;
// C floats (row l/4, columns 2(l%4), +1), (row l/4 + 8, same).
INLINE void mma_f16(float* c, const u32* a, const u32* b) {
#if ARCH >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif ARCH >= 750
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}
INLINE void mma_bf16(float* c, const u32* a, const u32* b) {
#if ARCH >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// In the model's type.
INLINE void mma(float* c, const u32* a, const u32* b) {
#if DTYPE_BF16
  mma_bf16(c, a, b);
#else
  mma_f16(c, a, b);
#endif
}
INLINE void ldmatrix4(u32* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(p)) : "memory");
}
INLINE void ldmatrix4_trans(u32* r, const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(p)) : "memory");
}

// a & mask | bits: the one instruction that makes two 16-bit numbers of two packed codes.
INLINE u32 and_or(u32 a, u32 mask, u32 bits) {
  u32 r;
  asm("lop3.b32 %0,%1,%2,%3,0xea;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
  return r;
}
INLINE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
