// Staging: host memory that the host fills and the device reads, or the other way round, without either waiting for the other at
// every copy. It comes with an event that says when the last copy is done, so that the memory can be used again.
#pragma once

#include <cstdint>
#include <exception>

#include "snapmla/backend.h"

namespace snapmla {

class Staging {
 public:
  /// Throws Error(kOutOfMemory).
  Staging(Backend& backend, std::int64_t bytes)
      : backend_(&backend), data_(backend.allocate_host(bytes)), bytes_(bytes) {
    try {
      copied_ = backend.create_event();
    } catch (...) {
      backend.deallocate_host(data_);
      throw;
    }
  }
  ~Staging() {
    try {
      wait();  // a copy may be under way
    } catch (const std::exception&) {
    }
    backend_->destroy_event(copied_);
    backend_->deallocate_host(data_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] std::int64_t bytes() const { return bytes_; }

  /// Enqueue the copy of the first `bytes`; wait() waits for the latest.
  void to_device(void* dst, std::int64_t bytes, Stream stream) {
    backend_->copy(dst, data_, bytes, CopyKind::kHostToDevice, stream);
    mark(stream);
  }
  void mark(Stream stream) {
    backend_->record(copied_, stream);
    used_ = true;
  }
  void wait() const {
    if (used_) backend_->wait(copied_);
  }

 private:
  Backend* backend_;
  void* data_;
  std::int64_t bytes_;
  Event copied_{};
  bool used_ = false;
};

}  // namespace snapmla
