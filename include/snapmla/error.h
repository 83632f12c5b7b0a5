// The one exception type of the library, and the list of what can go wrong.
//
// Every failure that a caller can cause or meet is thrown as snapmla::Error. The library never prints, exits
// or aborts on input. The message is one line, `[op] rule; what came`, so that it can be acted on without the
// source:
//
//     [decode] block_table must be int32 [batch, max_pages]; got int64 [4, 12]
//
// Example (compiled and run by tests/core/headers_test.cc):
//
//     try {
//       snapmla::decode(backend, params, {});
//     } catch (const snapmla::Error& e) {
//       if (e.code() == snapmla::ErrorCode::kInvalidArgument) std::puts(e.what());
//     }
#pragma once

#include <stdexcept>
#include <string>

namespace snapmla {

/// What kind of failure an Error is. The comment after each is its cause.
enum class ErrorCode {
  kInvalidArgument,  ///< the caller broke a rule of a contract: a shape, a dtype, a range, a flag
  kNotFound,         ///< a file, folder, tensor or field that must be there is not
  kCorruptFile,      ///< a file is there and readable, but its content breaks its own format
  kUnsupported,  ///< valid input of a kind this build or version does not handle; the text says what would
  kIo,           ///< the operating system refused or cut short a read or a write
  kOutOfMemory,  ///< an allocation failed, or a cache pool is too small for the request at all
  kDevice,       ///< a CUDA call failed; the text carries the call and CUDA's own error name
  kInternal,     ///< a bug of ours (SNAPMLA_ASSERT); please report it
};

/// The lower-case name of a code ("invalid_argument"), for logs and JSON.
const char* to_string(ErrorCode code) noexcept;

/// The exception. Immutable, copyable, safe to move between threads.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace snapmla
