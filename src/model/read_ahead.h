// ReadAhead: parts of files, read on a thread of its own ahead of whoever takes them, so that neither waits for the
// other for long. Further ahead still the system is told what comes: its own read-ahead knows nothing of parts in
// other files, and reaches 128 KB in most settings.
//
//     ReadAhead ahead({{&file, 0, 4096}, {&file, 8192, 100}});
//     ahead.next();  // the 4096 bytes
//     ahead.next();  // the 100
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "model/file.h"

namespace snapmla {

class ReadAhead {
 public:
  struct Part {
    const InputFile* file = nullptr;  ///< must outlive the ReadAhead
    std::int64_t begin = 0;
    std::int64_t bytes = 0;
  };

  explicit ReadAhead(std::vector<Part> parts);
  ~ReadAhead();  ///< parts that nobody took are not waited for
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  /// The next part's bytes, aligned for any type, which stay until the next call. At most one call a part, all from one
  /// thread. Throws what reading the part threw.
  std::span<const std::byte> next();

 private:
  static constexpr std::size_t kBuffers = 4;
  static constexpr std::size_t kExpected = 16;  ///< parts that the system is told of before they are read

  void read_all();
  std::vector<std::byte>& buffer_of(std::size_t part) { return buffers_[part % kBuffers]; }

  std::vector<Part> parts_;
  std::array<std::vector<std::byte>, kBuffers> buffers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t num_read_ = 0;         ///< parts that are in their buffers, or were
  std::size_t num_free_ = kBuffers;  ///< parts before this one may be read: their buffers are free
  std::size_t num_taken_ = 0;        ///< calls of next()
  std::exception_ptr error_;         ///< of part num_read_
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace snapmla
