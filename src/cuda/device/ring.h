// A ring of buffers in shared memory, each with two barriers: full (its content has arrived) and empty (its
// readers are done). Buffers are counted by use: the n-th use of the ring takes slot n % size, so that a role
// needs no state but the number of uses before it. Index arithmetic on host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace snapmla::cuda_ops {

/// The buffer of the `use`-th use of a ring; the parity its full barrier has passed when it is loaded, and
/// the one its empty barrier has passed when the use before is over.
template <int kSize>
struct Ring {
  std::uint32_t slot;
  std::uint32_t full;
  std::uint32_t freed;

  SNAPMLA_HOST_DEVICE explicit constexpr Ring(std::uint32_t use)
      : slot(use % kSize), full(use / kSize & 1), freed(full ^ 1) {}
};

}  // namespace snapmla::cuda_ops
