// Uses the installed attention core alone: quantizes one query row on the reference backend.
#include <cstdint>
#include <iostream>
#include <vector>

#include "snapmla/attention.h"
#include "snapmla/backend.h"
#include "snapmla/error.h"
#include "snapmla/version.h"

int main() {
  using snapmla::DType;
  const std::uint16_t two = 0x4000;  // bf16
  const std::vector<std::uint16_t> latent(snapmla::kLatentDim, two);
  const std::vector<std::uint16_t> rope(snapmla::kRopeDim, two);
  std::vector<std::uint8_t> latent_out(snapmla::kLatentDim);
  std::vector<std::uint16_t> rope_out(snapmla::kRopeDim);
  float scale = 0;
  try {
    snapmla::Backend& backend = snapmla::reference();
    snapmla::quantize_q(backend,
                        {.q_latent = {latent.data(), DType::kBF16, {1, 1, 1, snapmla::kLatentDim}},
                         .q_rope = {rope.data(), DType::kBF16, {1, 1, 1, snapmla::kRopeDim}},
                         .q_latent_out = {latent_out.data(), DType::kE4M3, {1, 1, 1, snapmla::kLatentDim}},
                         .q_rope_out = {rope_out.data(), DType::kBF16, {1, 1, 1, snapmla::kRopeDim}},
                         .q_scale_out = {&scale, DType::kF32, {1, 1, 1}}},
                        backend.create_stream());
  } catch (const snapmla::Error& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  // 2 / 448 lies just above 2^-8, so the scale is 2^-7 and the code is that of 256: exponent 8, mantissa 0.
  std::cout << "snapmla " << SNAPMLA_VERSION << " on " << snapmla::reference().device_name() << ": scale 1/"
            << 1 / scale << ", code " << int{latent_out[0]} << '\n';
  return scale == 0x1p-7F && latent_out[0] == 0x78 && rope_out[0] == 0x4380 ? 0 : 1;
}
