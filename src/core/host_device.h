// What lets one function compile for host and device: the attribute, and bit casts that nvcc takes in device
// code.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SNAPMLA_HOST_DEVICE __host__ __device__
#else
#define SNAPMLA_HOST_DEVICE
#endif

namespace snapmla {

SNAPMLA_HOST_DEVICE inline std::uint32_t float_to_bits(float x) {
  std::uint32_t bits = 0;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

SNAPMLA_HOST_DEVICE inline float bits_to_float(std::uint32_t bits) {
  float x = 0;
  memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace snapmla
