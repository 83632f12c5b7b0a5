// The three check macros, no more, and the function they share.
//
//   SNAPMLA_REQUIRE(cond, op, text, values...)  the caller's mistake: throws Error(kInvalidArgument)
//   SNAPMLA_CUDA(call)                          a CUDA call that failed: throws Error(kDevice)
//   SNAPMLA_ASSERT(cond)                        our own bug: throws Error(kInternal)
//
// `text` and `values` are streamed one after the other: SNAPMLA_REQUIRE(n > 0, "plan", "batch must be
// positive; got ", n). Code that must report another ErrorCode (files, mostly) calls fail(code, op, ...)
// itself.
#pragma once

#include <sstream>
#include <string_view>

#include "snapmla/error.h"

namespace snapmla {

/// Throws Error(code, "[op] parts...").
template <class... Parts>
[[noreturn]] void fail(ErrorCode code, std::string_view op, const Parts&... parts) {
  std::ostringstream text;
  text << '[' << op << "] ";
  (text << ... << parts);
  throw Error(code, text.str());
}

}  // namespace snapmla

#define SNAPMLA_REQUIRE(cond, op, ...)                                                     \
  do {                                                                                     \
    if (!(cond)) ::snapmla::fail(::snapmla::ErrorCode::kInvalidArgument, op, __VA_ARGS__); \
  } while (false)

// Used in CUDA translation units only: cudaGetErrorName comes from the CUDA runtime header included there.
#define SNAPMLA_CUDA(call)                                            \
  do {                                                                \
    if (const auto snapmla_status = (call); snapmla_status != 0)      \
      ::snapmla::fail(::snapmla::ErrorCode::kDevice, "cuda", #call,   \
                      " failed: ", cudaGetErrorName(snapmla_status)); \
  } while (false)

#define SNAPMLA_ASSERT(cond)                                                                              \
  do {                                                                                                    \
    if (!(cond))                                                                                          \
      ::snapmla::fail(::snapmla::ErrorCode::kInternal, "internal", __FILE__, ":", __LINE__, ": ", #cond); \
  } while (false)
