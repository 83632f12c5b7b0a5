#include "model/read_ahead.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace snapmla {

ReadAhead::ReadAhead(std::vector<Part> parts) : parts_(std::move(parts)), thread_([this] { read_all(); }) {}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ReadAhead::read_all() {
  std::size_t num_expected = 0;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    for (; num_expected < std::min(i + kExpected, parts_.size()); ++num_expected) {
      parts_[num_expected].file->expect(parts_[num_expected].bytes, parts_[num_expected].begin);
    }
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || i < num_free_; });
      if (stopping_) return;
    }
    const Part& part = parts_[i];
    std::exception_ptr error;
    try {
      std::vector<std::byte>& buffer = buffer_of(i);
      if (std::ssize(buffer) < part.bytes) buffer.resize(static_cast<std::size_t>(part.bytes));
      part.file->read_at(buffer.data(), part.bytes, part.begin);
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    error_ = error;
    if (!error_) ++num_read_;
    changed_.notify_all();
    if (error_) return;
  }
}

std::span<const std::byte> ReadAhead::next() {
  SNAPMLA_ASSERT(num_taken_ < parts_.size());
  const std::size_t i = num_taken_++;
  std::unique_lock lock(mutex_);
  num_free_ = i + kBuffers;  // the part before this one is done with
  changed_.notify_all();
  changed_.wait(lock, [&] { return error_ || i < num_read_; });
  if (i >= num_read_) std::rethrow_exception(error_);
  return std::span<const std::byte>(buffer_of(i)).first(static_cast<std::size_t>(parts_[i].bytes));
}

}  // namespace snapmla
