// Functions built twice, for AVX2 and for the baseline of x86-64, and chosen when called or loaded. Both give
// the same bits: neither has fused multiply-add, and the order of the sums is in the source. Elsewhere
// everything here is empty.
#pragma once

#include <cstddef>  // brings in __GLIBC__

#if defined(__x86_64__) && defined(__GNUC__)
#define SNAPMLA_TARGET_AVX2 [[gnu::target("avx2")]]
#endif

/// Lets GCC make both versions of one function. It needs glibc's ifunc, which sanitizers cannot intercept.
#if defined(SNAPMLA_TARGET_AVX2) && !defined(__clang__) && defined(__GLIBC__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SNAPMLA_MULTIVERSION __attribute__((target_clones("avx2", "default")))
#else
#define SNAPMLA_MULTIVERSION
#endif

/// For what such a function calls: on its own it would be built for the baseline only.
#define SNAPMLA_ALWAYS_INLINE [[gnu::always_inline]] inline

namespace snapmla::reference_ops {

#ifdef SNAPMLA_TARGET_AVX2
inline bool has_avx2() {
  static const bool supported = __builtin_cpu_supports("avx2") != 0;
  return supported;
}
#endif

}  // namespace snapmla::reference_ops
