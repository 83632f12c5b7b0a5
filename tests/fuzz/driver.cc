// The libFuzzer program of one target, which the build names.
#include <cstddef>
#include <cstdint>

#include "fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  snapmla::fuzz::SNAPMLA_FUZZ_TARGET({reinterpret_cast<const char*>(data), size});
  return 0;
}
