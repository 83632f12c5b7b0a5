// Queries and cached tokens to study, as a BF16 cache holds them, and attention over them in fp64.
//
// Two kinds. Recorded: the model's own, from decode steps of its engine (record.h). Synthetic, shaped as the
// literature describes MLA caches (SnapMLA, arXiv 2602.10718, figure on value ranges; attention sinks: arXiv 2309.17453):
//
//     latents   N(mean_d, 1), mean_d ~ N(0, 1), times 2: about +-10
//     rope      pair i turns with position at 10^6^(-i / 32) and has an amplitude of 10^3^(i / 31) give or take 2 %
//     logits    a content part of 1.2 nats deviation, and what the turning pairs give
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "snapmla/format.h"
#include "snapmla/tensor.h"

namespace snapmla::apps {

struct AttentionRows {
  std::string source{};
  int layer = -1;
  float softmax_scale = 0;
  int heads = 1;
  std::vector<Bf16> keys{};     ///< [tokens, 576]: latent, rope; normed and rotated
  std::vector<Bf16> queries{};  ///< [steps, heads, 576]: absorbed and rotated
  std::vector<int> sees{};      ///< [steps]: cached tokens a step attends to

  [[nodiscard]] int num_tokens() const { return static_cast<int>(keys.size() / kTokenDim); }
  [[nodiscard]] std::size_t num_rows() const { return queries.size() / kTokenDim; }
};

std::vector<float> widen(const std::vector<Bf16>& values);

/// Attention of every query row in fp64, [rows, 512]. `queries` and `keys` are shaped as in `rows` and may be
/// other values: restored from a quantized form.
std::vector<double> attend(const AttentionRows& rows, const std::vector<float>& queries,
                           const std::vector<float>& keys);

enum class Shape {
  kTails,  ///< rope amplitudes up to 10^3, the four slowest pairs giving 20 nats each to almost every token alike
  kSink,     ///< as kTails, and token 0 has 8 nats more
  kUniform,  ///< attention that is almost uniform: logits of 0.05 nats deviation, rope of unit size
  kOutlier,  ///< one token in 64 has one latent element that carries almost all of its norm, as sinks' do
};
/// "tails", "sink", "uniform", "outlier".
const char* to_string(Shape shape);

/// `steps` * `heads` rows over `tokens` tokens, the last step seeing all.
struct SyntheticOptions {
  Shape shape = Shape::kTails;
  int tokens = 0;
  int heads = 4;
  int steps = 4;
  std::uint64_t seed = 1;
};
AttentionRows make_synthetic(const SyntheticOptions& options);

}  // namespace snapmla::apps
