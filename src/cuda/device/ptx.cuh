// Single PTX instructions of Hopper as functions: barriers in shared memory, bulk and tensor copies, matrix
// moves between registers and shared memory, register budgets, dependent launch, fast maths. No policy and no
// layout in here; warpgroup matrix products are in wgmma.cuh. Section titles are those of the PTX ISA
// (version 8.0 and later).
//
// Shared-memory addresses are 32-bit (the .shared window), as the instructions take them.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace snapmla::cuda_ops {

/// The 32-bit shared-memory address of a generic pointer into shared memory (cvta).
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- Barriers in shared memory ("mbarrier"): 8 bytes, 8-byte aligned ---

/// Makes a barrier whose phases complete after `count` arrivals (and the bytes they expect).
__device__ __forceinline__ void barrier_init(std::uint32_t barrier, std::uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

/// Makes the barriers of this thread visible to the copy engine; a __syncthreads() shows them to the CTA.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// One arrival; releases what this thread did before.
__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// One arrival for a warp, after all its lanes have come.
__device__ __forceinline__ void arrive_warp(std::uint32_t barrier, int lane) {
  __syncwarp();
  if (lane == 0) arrive(barrier);
}

/// One arrival that also makes the phase wait for `bytes` of copies.
__device__ __forceinline__ void arrive_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Waits until the phase of this parity has completed: parity n & 1 for the n-th phase, counted from 0. A
/// fresh barrier lets parity 1 pass at once. try_wait suspends the thread for a while in hardware before it
/// answers.
__device__ __forceinline__ void wait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// Whether the phase of this parity has completed, without waiting for it.
__device__ __forceinline__ bool test_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// --- Fences and thread groups ("membar / fence", "bar / barrier") ---

/// Orders this thread's ordinary shared-memory accesses before later ones of the async proxy (wgmma operands,
/// bulk copies), its own or, after a barrier, those of others.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Waits on hardware barrier `id` (1 to 15; 0 is __syncthreads) until `threads` threads have come.
__device__ __forceinline__ void sync_threads(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Counts as come on hardware barrier `id` without waiting.
__device__ __forceinline__ void arrive_threads(int id, int threads) {
  asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- Clusters ("barrier.cluster", "mapa") ---

/// Waits until all threads of the cluster have come; what each did before is then visible to all.
__device__ __forceinline__ void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

/// The float at the same place in the shared memory of CTA `rank` of the cluster, which may be this one.
__device__ __forceinline__ float load_from_peer(std::uint32_t s_address, int rank) {
  float x = 0;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [remote];\n"
      "}\n"
      : "=f"(x)
      : "r"(s_address), "r"(rank)
      : "memory");
  return x;
}

/// Two of them, 8-byte aligned.
__device__ __forceinline__ float2 load_pair_from_peer(std::uint32_t s_address, int rank) {
  float2 x = make_float2(0, 0);
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %2, %3;\n"
      "ld.shared::cluster.v2.f32 {%0, %1}, [remote];\n"
      "}\n"
      : "=f"(x.x), "=f"(x.y)
      : "r"(s_address), "r"(rank)
      : "memory");
  return x;
}

// --- Bulk copies ("cp.async.bulk", "cp.async.bulk.tensor", "prefetch.tensormap") ---

/// What L2 should do with the lines of a copy: the 64-bit policies that createpolicy.fractional makes for a
/// fraction of 1; being constants they need no instruction.
enum class CachePolicy : std::uint64_t {
  kEvictNormal = 0x1000000000000000,
  kEvictFirst = 0x12F0000000000000,
  kEvictLast = 0x14F0000000000000,
};

/// Copies `bytes` (16-byte multiple, both ends 16-byte aligned) to shared memory; completes them on
/// `barrier`.
__device__ __forceinline__ void copy_bulk(std::uint32_t s_dst, const void* g_src, std::uint32_t bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(s_dst),
      "l"(g_src), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Copies the map's box at (column, row, page) to shared memory; completes its bytes on `barrier`. Elements
/// past the map's bounds arrive as zeros and count as bytes.
__device__ __forceinline__ void copy_tile(std::uint32_t s_dst, const CUtensorMap* map, int column, int row,
                                          int page, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(s_dst),
      "l"(map), "r"(column), "r"(row), "r"(page), "r"(barrier)
      : "memory");
}

/// The same with a word to L2.
__device__ __forceinline__ void copy_tile(std::uint32_t s_dst, const CUtensorMap* map, int column, int row,
                                          int page, std::uint32_t barrier, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(s_dst),
      "l"(map), "r"(column), "r"(row), "r"(page), "r"(barrier), "l"(static_cast<std::uint64_t>(policy))
      : "memory");
}

/// Fetches a tensor map into the descriptor cache ahead of its first use.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// Asks for the line of an address in L2.
__device__ __forceinline__ void prefetch_l2(const void* g_address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(g_address) : "memory");
}

/// Copies 16 bytes to shared memory past L1, behind this thread's back ("cp.async").
__device__ __forceinline__ void copy_async_16(std::uint32_t s_dst, const void* g_src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s_dst), "l"(g_src) : "memory");
}

/// Makes a group of this thread's copy_async_16 since the last one, which may be none.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits for all of this thread's groups but the newest kPending; what they brought is then there for this thread.
template <int kPending>
__device__ __forceinline__ void wait_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- Ordinary shared memory by its 32-bit address ("ld", "st") ---

template <class T>
__device__ __forceinline__ T load_shared(std::uint32_t s_address) = delete;
template <>
__device__ __forceinline__ int load_shared<int>(std::uint32_t s_address) {
  int x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(s_address));
  return x;
}
template <>
__device__ __forceinline__ float load_shared<float>(std::uint32_t s_address) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(s_address));
  return x;
}
template <>
__device__ __forceinline__ int2 load_shared<int2>(std::uint32_t s_address) {
  int2 v;
  asm volatile("ld.shared.v2.s32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(s_address));
  return v;
}
template <>
__device__ __forceinline__ float2 load_shared<float2>(std::uint32_t s_address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(s_address));
  return v;
}
template <>
__device__ __forceinline__ float4 load_shared<float4>(std::uint32_t s_address) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(s_address));
  return v;
}
template <>
__device__ __forceinline__ int4 load_shared<int4>(std::uint32_t s_address) {
  int4 v;
  asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(s_address));
  return v;
}
__device__ __forceinline__ void store_shared(std::uint32_t s_address, int x) {
  asm volatile("st.shared.s32 [%0], %1;" ::"r"(s_address), "r"(x) : "memory");
}
__device__ __forceinline__ void store_shared(std::uint32_t s_address, std::uint16_t x) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(s_address), "h"(x) : "memory");
}
__device__ __forceinline__ void store_shared(std::uint32_t s_address, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(s_address), "f"(x) : "memory");
}
__device__ __forceinline__ void store_shared(std::uint32_t s_address, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(s_address), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}

// --- Registers and launches ("setmaxnreg", "griddepcontrol") ---

/// Raises this warpgroup's registers a thread to kCount (a multiple of 8); waits until the pool has them.
template <int kCount>
__device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

/// Lowers this warpgroup's registers a thread to kCount (a multiple of 8) and gives the rest to the pool.
template <int kCount>
__device__ __forceinline__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

/// Waits until the grids this one depends on have completed and their writes are visible. No-op without a
/// dependent launch.
__device__ __forceinline__ void wait_for_previous_grid() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// Lets the next grid of the stream start once every CTA of this one has said so or ended. It gives no
/// visibility: the next grid still waits with wait_for_previous_grid().
__device__ __forceinline__ void launch_next_grid() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// --- 8 x 8 matrices of 16-bit elements ("ldmatrix", "stmatrix") ---
// Lane i gives the address of row i % 8 of matrix i / 8. Lane 4g + c holds, of each matrix, row g, columns 2c and
// 2c + 1 (transposed: column g, rows 2c and 2c + 1).

__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], std::uint32_t s_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s_row)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t s_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s_row)
               : "memory");
}

__device__ __forceinline__ void store_matrices(std::uint32_t s_row, const std::uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(s_row), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

/// Hides where a value comes from, so that what is worked out from it stays here: else the compiler moves
/// such sums out of the main loop and spills them.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

/// The transpose of an 8 x 8 matrix whose lane 4g + c holds row g, columns 2c and 2c + 1 ("movmatrix").
__device__ __forceinline__ std::uint32_t transpose_matrix(std::uint32_t word) {
  std::uint32_t turned = 0;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(word));
  return turned;
}

// --- Arithmetic ("ex2", "lg2", "cvt", "prmt") ---

/// 2^x, relative error at most 2^-22; subnormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y = 0;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// e^x for x <= 0, off by 2^-22 + |x| 2^-24 relative; -inf gives 0.
__device__ __forceinline__ float exp_fast(float x) {
  constexpr float kLog2E = 1.44269504F;
  return exp2_fast(x * kLog2E);
}

/// log2(x), absolute error at most 2^-22 on (0.5, 2); -inf for 0 and subnormals.
__device__ __forceinline__ float log2_fast(float x) {
  float y = 0;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / x to one unit in the last place; exact for powers of two.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y = 0;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Four e4m3 codes, x0 in the lowest byte; rounded to nearest even, saturated to +-448 (NaN stays NaN).
__device__ __forceinline__ std::uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
  std::uint32_t packed = 0;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}\n"
      : "=r"(packed)
      : "f"(x0), "f"(x1), "f"(x2), "f"(x3));
  return packed;
}

/// The values of four e4m3 codes, that of the lowest byte first. They pass through f16, which has them all.
__device__ __forceinline__ float4 unpack_e4m3(std::uint32_t codes) {
  float4 x = make_float4(0, 0, 0, 0);
  asm("{\n"
      ".reg .b16 low, high;\n"
      ".reg .b32 low_pair, high_pair;\n"
      ".reg .f16 x0, x1, x2, x3;\n"
      "mov.b32 {low, high}, %4;\n"
      "cvt.rn.f16x2.e4m3x2 low_pair, low;\n"
      "cvt.rn.f16x2.e4m3x2 high_pair, high;\n"
      "mov.b32 {x0, x1}, low_pair;\n"
      "mov.b32 {x2, x3}, high_pair;\n"
      "cvt.f32.f16 %0, x0;\n"
      "cvt.f32.f16 %1, x1;\n"
      "cvt.f32.f16 %2, x2;\n"
      "cvt.f32.f16 %3, x3;\n"
      "}\n"
      : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
      : "r"(codes));
  return x;
}

/// Two bf16, x0 in the lower half; rounded to nearest even.
__device__ __forceinline__ std::uint32_t pack_bf16(float x0, float x1) {
  std::uint32_t packed = 0;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(x0), "f"(x1));
  return packed;
}

/// Two f16, x0 in the lower half; rounded to nearest even.
__device__ __forceinline__ std::uint32_t pack_half(float x0, float x1) {
  std::uint32_t packed = 0;
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(x0), "f"(x1));
  return packed;
}

/// The two f16 of pack_half.
__device__ __forceinline__ float2 unpack_half(std::uint32_t packed) {
  float2 x = make_float2(0, 0);
  asm("{\n"
      ".reg .f16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n"
      "}\n"
      : "=f"(x.x), "=f"(x.y)
      : "r"(packed));
  return x;
}

/// Four bytes picked from the eight of {b, a}: nibble i of kSelector says which (0-3 of a, 4-7 of b) is byte
/// i.
template <std::uint32_t kSelector>
__device__ __forceinline__ std::uint32_t pick_bytes(std::uint32_t a, std::uint32_t b) {
  std::uint32_t picked = 0;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(picked) : "r"(a), "r"(b), "n"(kSelector));
  return picked;
}

}  // namespace snapmla::cuda_ops
