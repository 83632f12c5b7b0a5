#include "reference/moe.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "core/bf16.h"
#include "core/check.h"
#include "core/parallel.h"
#include "reference/block_product.h"
#include "reference/linear.h"
#include "reference/weight_rows.h"

namespace snapmla::reference_ops {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// `logits` become scores.
void score(Scoring scoring, std::vector<float>& logits) {
  if (scoring == Scoring::kSigmoid) {
    for (float& logit : logits) logit = 1.0F / (1.0F + std::exp(-logit));
    return;
  }
  float largest = kMinusInfinity;
  for (const float logit : logits) largest = std::fmax(largest, logit);
  float sum = 0;
  for (float& logit : logits) {
    logit = std::exp(logit - largest);
    sum += logit;
  }
  for (float& logit : logits) logit /= sum;
}

// Index of the largest value among those not taken, the lowest index among equals; NaN is below every number.
int best_of(const std::vector<float>& value, const std::vector<bool>& taken) {
  int best = -1;
  for (int i = 0; i < static_cast<int>(value.size()); ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (taken[at]) continue;
    const bool first_number =
        best >= 0 && std::isnan(value[static_cast<std::size_t>(best)]) && !std::isnan(value[at]);
    if (best < 0 || first_number || value[at] > value[static_cast<std::size_t>(best)]) best = i;
  }
  return best;
}

float group_score(GroupScore rule, const float* choice, int size) {
  float first = kMinusInfinity;
  float second = kMinusInfinity;
  for (int i = 0; i < size; ++i) {
    if (choice[i] > first) {
      second = first;
      first = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  return rule == GroupScore::kMax || size == 1 ? first : first + second;
}

// Marks the experts of all groups but the best as taken.
std::vector<bool> outside_best_groups(const RouteParams& params, const std::vector<float>& choice) {
  std::vector<bool> taken(choice.size(), false);
  if (params.num_groups == 1) return taken;
  const int size = static_cast<int>(choice.size()) / params.num_groups;
  std::vector<float> group;
  group.reserve(static_cast<std::size_t>(params.num_groups));
  for (int g = 0; g < params.num_groups; ++g) {
    group.push_back(
        group_score(params.group_score, choice.data() + static_cast<std::ptrdiff_t>(g) * size, size));
  }
  std::vector<bool> kept(group.size(), false);
  for (int i = 0; i < params.top_groups; ++i) kept[static_cast<std::size_t>(best_of(group, kept))] = true;
  for (std::size_t e = 0; e < choice.size(); ++e) taken[e] = !kept[e / static_cast<std::size_t>(size)];
  return taken;
}

void route_token(const RouteParams& params, const float* logits, std::int32_t* expert, float* weight) {
  const auto experts = static_cast<std::size_t>(params.logits.dim(1));
  const auto top_k = static_cast<int>(params.expert.dim(1));
  std::vector<float> scores(logits, logits + experts);
  score(params.scoring, scores);
  std::vector<float> choice = scores;
  if (params.bias.present()) {
    for (std::size_t e = 0; e < experts; ++e) choice[e] += params.bias.as<float>()[e];
  }
  std::vector<bool> taken = outside_best_groups(params, choice);
  float sum = 0;
  for (int k = 0; k < top_k; ++k) {
    expert[k] = best_of(choice, taken);
    taken[static_cast<std::size_t>(expert[k])] = true;
    weight[k] = scores[static_cast<std::size_t>(expert[k])];
    sum += weight[k];
  }
  for (int k = 0; k < top_k; ++k) {
    if (params.normalize) weight[k] /= sum + 1e-20F;
    weight[k] *= params.scaling_factor;
  }
}

// A token's k-th choice is pair token * top_k + k. The pairs of expert e are order[first[e]] .. order[first[e
// + 1]]; those of identity experts are in none of these lists.
struct Workspace {
  std::int32_t* first;  ///< [experts + 1]
  std::int32_t* order;  ///< [pairs]
  Bf16* hidden;         ///< [pairs, inter]: silu(gate x) * up x
  float* down;          ///< [pairs, hidden]
  std::int64_t bytes;
};

Workspace carve_workspace(std::byte* base, std::int64_t pairs, std::int64_t hidden, std::int64_t inter,
                          std::int64_t experts) {
  std::int64_t at = 0;
  const auto take = [&](std::int64_t bytes) {
    constexpr std::int64_t kAlignment = 64;
    std::byte* start = base == nullptr ? nullptr : base + at;
    at += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return static_cast<void*>(start);
  };
  Workspace space{};
  space.first = static_cast<std::int32_t*>(take((experts + 1) * 4));
  space.order = static_cast<std::int32_t*>(take(pairs * 4));
  space.hidden = static_cast<Bf16*>(take(pairs * inter * 2));
  space.down = static_cast<float*>(take(pairs * hidden * 4));
  space.bytes = at;
  return space;
}

std::int32_t expert_of(const ExpertsParams& params, std::int64_t pair) {
  const std::int64_t top_k = params.expert.dim(1);
  return params.expert.as<std::int32_t>()[pair / top_k * params.expert.stride(0) + pair % top_k];
}

void group_by_expert(const ExpertsParams& params, const Workspace& space) {
  const auto experts = static_cast<std::int32_t>(params.gate.values.dim(0));
  const std::int64_t pairs = params.expert.dim(0) * params.expert.dim(1);
  std::fill_n(space.first, experts + 1, 0);
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    const std::int32_t e = expert_of(params, pair);
    SNAPMLA_ASSERT(e >= 0 && e < experts + params.identities);
    if (e < experts) ++space.first[e + 1];
  }
  for (std::int32_t e = 0; e < experts; ++e) space.first[e + 1] += space.first[e];
  std::vector<std::int32_t> next(space.first, space.first + experts);
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    const std::int32_t e = expert_of(params, pair);
    if (e < experts) space.order[next[static_cast<std::size_t>(e)]++] = static_cast<std::int32_t>(pair);
  }
}

// out = sum over the token's choices of weight * down, or weight * x for identity experts.
void sum_choices(const ExpertsParams& params, const Workspace& space, std::int64_t token) {
  const std::int64_t top_k = params.expert.dim(1);
  const std::int64_t hidden = params.x.dim(1);
  const float* weight = params.weight.as<float>() + token * params.weight.stride(0);
  const float* down = space.down + token * top_k * hidden;
  const Bf16* x = params.x.as<Bf16>() + token * params.x.stride(0);
  Bf16* out = params.out.as<Bf16>() + token * params.out.stride(0);
  std::vector<float> sum(static_cast<std::size_t>(hidden));
  for (std::int64_t k = 0; k < top_k; ++k) {
    const bool identity = expert_of(params, token * top_k + k) >= params.gate.values.dim(0);
    for (std::int64_t d = 0; d < hidden; ++d) {
      sum[static_cast<std::size_t>(d)] += weight[k] * (identity ? to_float(x[d]) : down[k * hidden + d]);
    }
  }
  for (std::int64_t d = 0; d < hidden; ++d) out[d] = to_bf16(sum[static_cast<std::size_t>(d)]);
}

using BlockResult = std::array<float, static_cast<std::size_t>(kRowBlock) * kOutBlock>;

// Up to kRowBlock pairs of one expert, and up to kOutBlock of its outputs.
struct PairBlock {
  std::int64_t expert;
  const std::int32_t* pair;
  int pairs;
  std::int64_t first_out;
  int outs;

  [[nodiscard]] BlockProduct product(const float* x, std::int64_t inner, BlockResult& y) const {
    return {.x = x,
            .x_stride = inner,
            .rows = pairs,
            .outs = outs,
            .inner = static_cast<int>(inner),
            .y = y.data(),
            .y_stride = kOutBlock};
  }
};

// The pairs' rows `x` with the weights of their expert for the block's outputs.
void multiply(const PairBlock& block, const float* x, const WeightView& weight, BlockResult& y) {
  const WeightRows rows(weight, block.expert, block.first_out, block.outs);
  dot_rows(block.product(x, weight.values.dim(2), y), rows.data(), rows.stride());
}

// Calls body(block) for all pairs of all experts that have any and all outputs, in parallel over experts and
// outputs.
template <class Body>
void for_each_pair_block(const Workspace& space, std::int64_t experts, std::int64_t outs, std::int64_t inner,
                         const Body& body) {
  std::vector<std::int64_t> active;
  for (std::int64_t e = 0; e < experts; ++e) {
    if (space.first[e] < space.first[e + 1]) active.push_back(e);
  }
  if (active.empty()) return;
  const std::int64_t out_blocks = (outs + kOutBlock - 1) / kOutBlock;
  const std::int64_t mean_pairs = (space.first[experts] - 1) / static_cast<std::int64_t>(active.size()) + 1;
  parallel_for(static_cast<std::int64_t>(active.size()) * out_blocks,
               grain_of(mean_pairs * kOutBlock * inner), [&](std::int64_t i) {
                 const std::int64_t e = active[static_cast<std::size_t>(i / out_blocks)];
                 const std::int64_t out = i % out_blocks * kOutBlock;
                 for (std::int32_t at = space.first[e]; at < space.first[e + 1]; at += kRowBlock) {
                   body(PairBlock{.expert = e,
                                  .pair = space.order + at,
                                  .pairs = std::min(kRowBlock, space.first[e + 1] - at),
                                  .first_out = out,
                                  .outs = static_cast<int>(std::min<std::int64_t>(kOutBlock, outs - out))});
                 }
               });
}

void check(const ExpertsParams& p) {
  SNAPMLA_ASSERT(is_tensor(p.x, DType::kBF16, 2) && is_tensor(p.out, DType::kBF16, 2));
  SNAPMLA_ASSERT(is_tensor(p.expert, DType::kI32, 2) && is_tensor(p.weight, DType::kF32, 2));
  SNAPMLA_ASSERT(is_weight(p.gate, 3) && is_weight(p.up, 3) && is_weight(p.down, 3));
  SNAPMLA_ASSERT(p.up.is_e4m3() == p.gate.is_e4m3() && p.down.is_e4m3() == p.gate.is_e4m3());
  const ConstTensorView& gate = p.gate.values;
  const ConstTensorView& up = p.up.values;
  const ConstTensorView& down = p.down.values;
  const std::int64_t tokens = p.x.dim(0);
  const std::int64_t hidden = p.x.dim(1);
  const std::int64_t inter = gate.dim(1);
  SNAPMLA_ASSERT(p.out.dim(0) == tokens && p.out.dim(1) == hidden);
  SNAPMLA_ASSERT(p.expert.dim(0) == tokens && p.weight.dim(0) == tokens &&
                 p.weight.dim(1) == p.expert.dim(1));
  SNAPMLA_ASSERT(gate.dim(2) == hidden && up.dim(0) == gate.dim(0) && up.dim(1) == inter &&
                 up.dim(2) == hidden);
  SNAPMLA_ASSERT(down.dim(0) == gate.dim(0) && down.dim(1) == hidden && down.dim(2) == inter);
  SNAPMLA_ASSERT(is_tensor(p.workspace, DType::kU8, 1));
}

}  // namespace

void route(const RouteParams& params) {
  const std::int64_t tokens = params.logits.dim(0);
  const std::int64_t experts = params.logits.dim(1);
  SNAPMLA_ASSERT(is_tensor(params.logits, DType::kF32, 2) && is_tensor(params.expert, DType::kI32, 2) &&
                 is_tensor(params.weight, DType::kF32, 2));
  SNAPMLA_ASSERT(!params.bias.present() ||
                 (is_tensor(params.bias, DType::kF32, 1) && params.bias.dim(0) == experts));
  SNAPMLA_ASSERT(params.expert.dim(0) == tokens && params.weight.dim(0) == tokens &&
                 params.weight.dim(1) == params.expert.dim(1));
  SNAPMLA_ASSERT(params.num_groups >= 1 && experts % params.num_groups == 0 && params.top_groups >= 1 &&
                 params.top_groups <= params.num_groups);
  SNAPMLA_ASSERT(params.expert.dim(1) <= experts / params.num_groups * params.top_groups);
  parallel_for(tokens, grain_of(experts * 64), [&](std::int64_t i) {
    route_token(params, params.logits.as<float>() + i * params.logits.stride(0),
                params.expert.as<std::int32_t>() + i * params.expert.stride(0),
                params.weight.as<float>() + i * params.weight.stride(0));
  });
}

std::int64_t experts_workspace_bytes(int tokens, int top_k, int hidden, int inter, int experts) {
  return carve_workspace(nullptr, std::int64_t{tokens} * top_k, hidden, inter, experts).bytes;
}

void experts(const ExpertsParams& params) {
  check(params);
  const std::int64_t top_k = params.expert.dim(1);
  const std::int64_t num_experts = params.gate.values.dim(0);
  const std::int64_t inter = params.gate.values.dim(1);
  const std::int64_t hidden = params.gate.values.dim(2);
  const Workspace space =
      carve_workspace(params.workspace.as<std::byte>(), params.x.dim(0) * top_k, hidden, inter, num_experts);
  SNAPMLA_ASSERT(params.workspace.dim(0) >= space.bytes);
  group_by_expert(params, space);

  for_each_pair_block(space, num_experts, inter, 2 * hidden, [&](const PairBlock& block) {
    float* x = thread_scratch(block.pairs * hidden);
    for (int r = 0; r < block.pairs; ++r) {
      widen(params.x.as<Bf16>() + block.pair[r] / top_k * params.x.stride(0), hidden, x + r * hidden);
    }
    BlockResult gate;
    BlockResult up;
    multiply(block, x, params.gate, gate);
    multiply(block, x, params.up, up);
    for (int r = 0; r < block.pairs; ++r) {
      Bf16* out = space.hidden + block.pair[r] * inter + block.first_out;
      for (int o = 0; o < block.outs; ++o) {
        const auto at = static_cast<std::size_t>(r) * kOutBlock + static_cast<std::size_t>(o);
        out[o] = to_bf16(silu(gate[at]) * up[at]);
      }
    }
  });

  for_each_pair_block(space, num_experts, hidden, inter, [&](const PairBlock& block) {
    float* x = thread_scratch(block.pairs * inter);
    for (int r = 0; r < block.pairs; ++r) widen(space.hidden + block.pair[r] * inter, inter, x + r * inter);
    BlockResult y;
    multiply(block, x, params.down, y);
    for (int r = 0; r < block.pairs; ++r) {
      std::copy_n(y.data() + static_cast<std::ptrdiff_t>(r) * kOutBlock, block.outs,
                  space.down + block.pair[r] * hidden + block.first_out);
    }
  });

  parallel_for(params.x.dim(0), grain_of(top_k * hidden),
               [&](std::int64_t token) { sum_choices(params, space, token); });
}

}  // namespace snapmla::reference_ops
