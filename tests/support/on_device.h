// A vector in a backend's memory, and the poison that tests fill memory with.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "snapmla/backend.h"

namespace snapmla::test {

/// All bits set: NaN in every floating format, -1 as an integer.
template <class T>
std::vector<T> poison(std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  if (count > 0) std::memset(static_cast<void*>(values.data()), 0xff, values.size() * sizeof(T));
  return values;
}

template <class T>
class OnDevice {
 public:
  OnDevice(Backend& backend, const std::vector<T>& host) : backend_(&backend), size_(host.size()) {
    data_ = static_cast<T*>(backend.allocate(bytes()));
    backend.copy(data_, host.data(), bytes(), CopyKind::kHostToDevice, {});
    backend.synchronize({});  // `host` may be gone before the stream is there
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { backend_->deallocate(data_); }

  [[nodiscard]] T* data() const { return data_; }

  /// The contents once the default stream is done; work on other streams must be done already.
  [[nodiscard]] std::vector<T> host() const {
    std::vector<T> result(size_);
    backend_->copy(result.data(), data_, bytes(), CopyKind::kDeviceToHost, {});
    backend_->synchronize({});
    return result;
  }

 private:
  [[nodiscard]] std::int64_t bytes() const { return static_cast<std::int64_t>(size_ * sizeof(T)); }
  Backend* backend_;
  std::size_t size_;
  T* data_;
};

}  // namespace snapmla::test
