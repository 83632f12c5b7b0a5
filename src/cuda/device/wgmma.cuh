// Warpgroup matrix products of sm_90a, the shapes this project uses and no others. PTX ISA, "Asynchronous
// Warpgroup Level Matrix Multiply-Accumulate Instructions".
//
// D[64][N] (+)= A[64][K] * B[K][N], K = 32 bytes: 32 e4m3 or 16 bf16. D is fp32 in registers: lane 4g + c of
// warp w holds, in d[4j + e], row 16w + g + 8 (e / 2), column 8j + 2c + e % 2. The overload is chosen by D's
// size (N / 2 registers) and by where A lies:
//
//     mma_e4m3         D, A in shared memory, B     N = 128, 64               A, B K-major
//     mma_e4m3         D, A in 4 registers, B       N = 64, 32, 16, 8         A, B K-major
//     mma_bf16         D, A in shared memory, B     N = 128, 64, 16           A, B K-major
//     mma_bf16         D, A in 4 registers, B       N = 128, 96, 64, 16       A, B K-major
//     mma_bf16_rows    D, A in shared memory, B     N = 128                   A K-major, B MN-major
//     mma_bf16_rows    D, A in 4 registers, B       N = 128, 64               A K-major, B MN-major
//
// A product is asynchronous: fence() before the first after registers were written by other instructions,
// commit(), and wait<pending>() before D, or A's registers, are touched again. ptxas serializes products
// (warnings C7510 to C7520) where it cannot see that: keep them in straight-line code, and pin() accumulators
// behind a wait.
#pragma once

#include <cstdint>

namespace snapmla::cuda_ops {

/// How a tile is swizzled, as a descriptor encodes it (bits 62-63).
enum class Swizzle : std::uint64_t { kNone = 0, k128B = 1, k64B = 2, k32B = 3 };

/// A shared-memory matrix descriptor ("Matrix descriptor format"): address, leading and stride byte offsets
/// in units of 16 bytes at bits 0, 16 and 32. The tile's base must be a multiple of the swizzle pattern
/// (1,024 bytes for 128B); a step along K within the pattern is advance() with the unswizzled offset.
struct Descriptor {
  std::uint64_t bits;

  /// The matrix `bytes` (a multiple of 16) further on.
  __device__ __forceinline__ Descriptor advance(std::uint32_t bytes) const { return {bits + (bytes >> 4)}; }
};

__device__ __forceinline__ Descriptor make_descriptor(std::uint32_t s_address, std::uint32_t leading_bytes,
                                                      std::uint32_t stride_bytes, Swizzle swizzle) {
  return {static_cast<std::uint64_t>((s_address & 0x3FFFFU) >> 4) |
          static_cast<std::uint64_t>(leading_bytes >> 4) << 16 |
          static_cast<std::uint64_t>(stride_bytes >> 4) << 32 | static_cast<std::uint64_t>(swizzle) << 62};
}

/// K-major, swizzled: `stride_bytes` from 8 rows of M (or N) to the next 8: 1,024 for dense 128B tiles, 512
/// for 64B. The leading offset is not used.
__device__ __forceinline__ Descriptor k_major(std::uint32_t s_address, std::uint32_t stride_bytes,
                                              Swizzle swizzle) {
  return make_descriptor(s_address, 16, stride_bytes, swizzle);
}

/// MN-major with the 128B swizzle, 16-bit elements: a row of 128 bytes is 64 elements of N for one K;
/// `chunk_bytes` to the next 64 of N, 1,024 bytes (8 rows) to the next 8 of K.
__device__ __forceinline__ Descriptor mn_major_128b(std::uint32_t s_address, std::uint32_t chunk_bytes) {
  return make_descriptor(s_address, chunk_bytes, 1024, Swizzle::k128B);
}

/// Orders register writes of this warpgroup before the products that follow.
__device__ __forceinline__ void mma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Closes the group of products issued since the last commit.
__device__ __forceinline__ void mma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most kPending of the latest groups are still running.
template <int kPending>
__device__ __forceinline__ void mma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Ties values to this place: the compiler may neither move their uses above nor their definitions below.
template <int kCount>
__device__ __forceinline__ void pin(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(std::uint32_t (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// Inline assembly wants its register lists spelled out: names of the first N operands, and the operands.
#define SNAPMLA_NAMES_4 "%0,%1,%2,%3"
#define SNAPMLA_NAMES_8 SNAPMLA_NAMES_4 ",%4,%5,%6,%7"
#define SNAPMLA_NAMES_16 SNAPMLA_NAMES_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define SNAPMLA_NAMES_32 SNAPMLA_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SNAPMLA_NAMES_48 SNAPMLA_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define SNAPMLA_NAMES_64                                                          \
  SNAPMLA_NAMES_32                                                                \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50," \
  "%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SNAPMLA_REGS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SNAPMLA_REGS_8(d, i) SNAPMLA_REGS_4(d, i), SNAPMLA_REGS_4(d, i + 4)
#define SNAPMLA_REGS_16(d, i) SNAPMLA_REGS_8(d, i), SNAPMLA_REGS_8(d, i + 8)
#define SNAPMLA_REGS_32(d, i) SNAPMLA_REGS_16(d, i), SNAPMLA_REGS_16(d, i + 16)
#define SNAPMLA_REGS_48(d, i) SNAPMLA_REGS_32(d, i), SNAPMLA_REGS_16(d, i + 32)
#define SNAPMLA_REGS_64(d, i) SNAPMLA_REGS_32(d, i), SNAPMLA_REGS_32(d, i + 32)

// One product. `shape` and `tail` are PTX text; the operands behind D are numbered as `a`, `b` and `flag`
// say. After the flag come the signs of A and B (1: not negated), then for bf16 whether each is MN-major.
#define SNAPMLA_MMA_SS(count, shape, a_name, b_name, flag_name, tail)                                        \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " flag_name ", 0;\nwgmma.mma_async.sync.aligned." shape \
               " {" SNAPMLA_NAMES_##count "}, " a_name ", " b_name ", add, " tail ";\n}\n"                   \
               : SNAPMLA_REGS_##count(d, 0)                                                                  \
               : "l"(a.bits), "l"(b.bits), "r"(static_cast<int>(accumulate)))
#define SNAPMLA_MMA_RS(count, shape, a_names, b_name, flag_name, tail)                                       \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " flag_name ", 0;\nwgmma.mma_async.sync.aligned." shape \
               " {" SNAPMLA_NAMES_##count "}, {" a_names "}, " b_name ", add, " tail ";\n}\n"                \
               : SNAPMLA_REGS_##count(d, 0)                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits), "r"(static_cast<int>(accumulate)))

/// D (+)= A * B with e4m3 operands in shared memory; `accumulate` false overwrites D.
__device__ __forceinline__ void mma_e4m3(float (&d)[64], Descriptor a, Descriptor b, bool accumulate) {
  SNAPMLA_MMA_SS(64, "m64n128k32.f32.e4m3.e4m3", "%64", "%65", "%66", "1, 1");
}
__device__ __forceinline__ void mma_e4m3(float (&d)[32], Descriptor a, Descriptor b, bool accumulate) {
  SNAPMLA_MMA_SS(32, "m64n64k32.f32.e4m3.e4m3", "%32", "%33", "%34", "1, 1");
}

/// The same with A in registers: a[0] holds row g, K 4c to 4c + 3; a[1] row g + 8; a[2], a[3] K 16 further.
__device__ __forceinline__ void mma_e4m3(float (&d)[32], const std::uint32_t (&a)[4], Descriptor b,
                                         bool accumulate) {
  SNAPMLA_MMA_RS(32, "m64n64k32.f32.e4m3.e4m3", "%32,%33,%34,%35", "%36", "%37", "1, 1");
}
__device__ __forceinline__ void mma_e4m3(float (&d)[16], const std::uint32_t (&a)[4], Descriptor b,
                                         bool accumulate) {
  SNAPMLA_MMA_RS(16, "m64n32k32.f32.e4m3.e4m3", "%16,%17,%18,%19", "%20", "%21", "1, 1");
}
__device__ __forceinline__ void mma_e4m3(float (&d)[8], const std::uint32_t (&a)[4], Descriptor b,
                                         bool accumulate) {
  SNAPMLA_MMA_RS(8, "m64n16k32.f32.e4m3.e4m3", "%8,%9,%10,%11", "%12", "%13", "1, 1");
}
__device__ __forceinline__ void mma_e4m3(float (&d)[4], const std::uint32_t (&a)[4], Descriptor b,
                                         bool accumulate) {
  SNAPMLA_MMA_RS(4, "m64n8k32.f32.e4m3.e4m3", "%4,%5,%6,%7", "%8", "%9", "1, 1");
}

/// D (+)= A * B with bf16 operands in shared memory, both K-major.
__device__ __forceinline__ void mma_bf16(float (&d)[64], Descriptor a, Descriptor b, bool accumulate) {
  SNAPMLA_MMA_SS(64, "m64n128k16.f32.bf16.bf16", "%64", "%65", "%66", "1, 1, 0, 0");
}
__device__ __forceinline__ void mma_bf16(float (&d)[48], Descriptor a, Descriptor b, bool accumulate) {
  SNAPMLA_MMA_SS(48, "m64n96k16.f32.bf16.bf16", "%48", "%49", "%50", "1, 1, 0, 0");
}
__device__ __forceinline__ void mma_bf16(float (&d)[32], Descriptor a, Descriptor b, bool accumulate) {
  SNAPMLA_MMA_SS(32, "m64n64k16.f32.bf16.bf16", "%32", "%33", "%34", "1, 1, 0, 0");
}

__device__ __forceinline__ void mma_bf16(float (&d)[8], Descriptor a, Descriptor b, bool accumulate) {
  SNAPMLA_MMA_SS(8, "m64n16k16.f32.bf16.bf16", "%8", "%9", "%10", "1, 1, 0, 0");
}

/// The same with A in registers: a[0] holds row g, K 2c and 2c + 1; a[1] row g + 8; a[2], a[3] K 8 further.
__device__ __forceinline__ void mma_bf16(float (&d)[32], const std::uint32_t (&a)[4], Descriptor b,
                                         bool accumulate) {
  SNAPMLA_MMA_RS(32, "m64n64k16.f32.bf16.bf16", "%32,%33,%34,%35", "%36", "%37", "1, 1, 0");
}
__device__ __forceinline__ void mma_bf16(float (&d)[64], const std::uint32_t (&a)[4], Descriptor b,
                                         bool accumulate) {
  SNAPMLA_MMA_RS(64, "m64n128k16.f32.bf16.bf16", "%64,%65,%66,%67", "%68", "%69", "1, 1, 0");
}
__device__ __forceinline__ void mma_bf16(float (&d)[48], const std::uint32_t (&a)[4], Descriptor b,
                                         bool accumulate) {
  SNAPMLA_MMA_RS(48, "m64n96k16.f32.bf16.bf16", "%48,%49,%50,%51", "%52", "%53", "1, 1, 0");
}
__device__ __forceinline__ void mma_bf16(float (&d)[8], const std::uint32_t (&a)[4], Descriptor b,
                                         bool accumulate) {
  SNAPMLA_MMA_RS(8, "m64n16k16.f32.bf16.bf16", "%8,%9,%10,%11", "%12", "%13", "1, 1, 0");
}

/// D (+)= A * B with B MN-major: row k of B is contiguous along N, as the tokens of a page are
/// (mn_major_128b).
__device__ __forceinline__ void mma_bf16_rows(float (&d)[64], Descriptor a, Descriptor b, bool accumulate) {
  SNAPMLA_MMA_SS(64, "m64n128k16.f32.bf16.bf16", "%64", "%65", "%66", "1, 1, 0, 1");
}

/// The same with A in registers, as mma_bf16 has it.
__device__ __forceinline__ void mma_bf16_rows(float (&d)[64], const std::uint32_t (&a)[4], Descriptor b,
                                              bool accumulate) {
  SNAPMLA_MMA_RS(64, "m64n128k16.f32.bf16.bf16", "%64,%65,%66,%67", "%68", "%69", "1, 1, 1");
}
__device__ __forceinline__ void mma_bf16_rows(float (&d)[32], const std::uint32_t (&a)[4], Descriptor b,
                                              bool accumulate) {
  SNAPMLA_MMA_RS(32, "m64n64k16.f32.bf16.bf16", "%32,%33,%34,%35", "%36", "%37", "1, 1, 1");
}

#undef SNAPMLA_MMA_RS
#undef SNAPMLA_MMA_SS
#undef SNAPMLA_REGS_64
#undef SNAPMLA_REGS_48
#undef SNAPMLA_REGS_32
#undef SNAPMLA_REGS_16
#undef SNAPMLA_REGS_8
#undef SNAPMLA_REGS_4
#undef SNAPMLA_NAMES_64
#undef SNAPMLA_NAMES_48
#undef SNAPMLA_NAMES_32
#undef SNAPMLA_NAMES_16
#undef SNAPMLA_NAMES_8
#undef SNAPMLA_NAMES_4

}  // namespace snapmla::cuda_ops
