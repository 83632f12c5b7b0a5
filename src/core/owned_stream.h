// OwnedStream: a stream of a backend that ends with its owner. The backend outlives it.
#pragma once

#include "snapmla/backend.h"

namespace snapmla {

class OwnedStream {
 public:
  explicit OwnedStream(Backend& backend) : backend_(&backend), stream_(backend.create_stream()) {}
  ~OwnedStream() { backend_->destroy_stream(stream_); }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  [[nodiscard]] Stream get() const { return stream_; }

 private:
  Backend* backend_;
  Stream stream_;
};

}  // namespace snapmla
