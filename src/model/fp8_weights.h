// FP8 weights with a scale a block, as DeepSeek-V3 brought them and compressed-tensors (FP8_BLOCK) has them too:
//
//     w[i, j] = e4m3[i, j] * scale[i / block_rows, j / block_columns]
//
// The scales of x.weight are x.weight_scale_inv, x.weight_scale or x.qscale_weight, F32, BF16, F16, or exponents
// alone (UE8M0: F8_E8M0, or U8). A weight stays as it is where the backend's products are faster so and its form is the
// one they take (kept_scales); elsewhere it becomes BF16 when it is loaded. Both stand for the same numbers, those
// products rounded to BF16 once, not at all where the scale is a power of two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/plain_ops.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace snapmla {

class JsonFields;

/// The blocks that quantization_config names; none where there is no such field. Throws kUnsupported for every
/// other quantization, kCorruptFile for absurd blocks.
Fp8Blocks read_quantization(const JsonFields& fields);

/// The tensor that holds the scales of `weight`; empty if the checkpoint has none.
std::string find_scales(const Checkpoint& checkpoint, const std::string& weight);

/// Throws unless `weight` is e4m3 of `shape` and has scales of the shape that `blocks` asks for.
void check_fp8(const Checkpoint& checkpoint, const std::string& weight,
               const std::vector<std::int64_t>& shape, const Fp8Blocks& blocks);

/// Whether a weight [out, in] with such blocks stays e4m3 on a backend with these ops, as far as its shape says.
bool stays_e4m3(const PlainOps& ops, const Fp8Blocks& blocks, std::int64_t out, std::int64_t in);

/// The scales of a weight that stays e4m3, [(n,) rows, columns] in blocks; nothing where it must become BF16: where it is of
/// another type or stays_e4m3 says no. `parts`: a stack's matrices are as many weights, one below the other (gate and up).
/// check_fp8 must hold for an e4m3 weight. Throws kCorruptFile for scales that are not finite.
std::optional<std::vector<float>> kept_scales(const PlainOps& ops, const Checkpoint& checkpoint,
                                              const std::string& weight, const Fp8Blocks& blocks,
                                              int parts = 1);

/// Throws kCorruptFile if a NaN is among the codes of `weight`.
void refuse_nan(const Checkpoint& checkpoint, const std::string& weight, std::span<const std::byte> codes);

/// What makes the rows of one FP8 weight BF16: its scales. check_fp8 must hold.
class Fp8Decoder {
 public:
  /// Reads the scales. Throws kCorruptFile for scales that are not finite.
  Fp8Decoder(const Checkpoint& checkpoint, const std::string& weight, const Fp8Blocks& blocks);

  /// Whole rows of the weight, or of the matrices of a stack one after the other, from row `first` on.
  void decode(std::int64_t first, std::span<const std::byte> codes, std::vector<Bf16>& values) const;

 private:
  std::int64_t rows_;  ///< of one matrix
  std::int64_t columns_;
  Fp8Blocks blocks_;
  std::vector<float> scales_;  ///< [matrices, rows, columns] in blocks
};

}  // namespace snapmla
