// decode: attention of S*H query rows a request over its pages, item by item of the plan; then combine.
//
// FP8 pages (SnapMLA, arXiv 2602.10718, with a temporary per block in place of the paper's in-accumulator
// rescaling), for each query row and each block of 64 tokens, one page:
//
//     acc[t]   = q_latent . latent[t] + q_rope . rope[t]     stored values; one accumulator for both parts
//     logit[t] = softmax_scale * q_scale * scale[t] * acc[t]
//     m = max logit      p[t] = exp(logit[t] - m)            sum += p (neither quantized nor scaled)
//     f[t] = p[t] * scale[t]      sigma = max f / 448        w[t] = e4m3(f[t] / sigma)
//     tmp  = sum_t w[t] * latent[t]                          stored values
//     M' = max(M, m)     O = O exp(M - M') + sigma exp(m - M') tmp     (and the same for the sum)
//
// BF16 pages: scale = q_scale = sigma = 1 and w[t] = bf16(p[t]). Sums within a block are fp32, everything
// across blocks is fp64: no term is ever added to an accumulator that has grown with the sequence in a
// narrower format.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/bf16.h"
#include "core/e4m3.h"
#include "core/parallel.h"
#include "reference/multiversion.h"
#include "reference/ops.h"
#include "reference/page.h"

namespace snapmla::reference_ops {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

/// Up to 64 cached tokens as stored, widened to fp32.
struct Block {
  std::array<std::array<float, kTokenDim>, kPageTokens> token;
  std::array<float, kPageTokens> scale;
};

/// One query row, widened.
struct QueryRow {
  std::array<float, kTokenDim> value;
  double logit_scale = 0;  ///< softmax_scale * q_scale
};

/// The running softmax of one row: out is weighted with exp(logit - max) and not yet divided by sum.
struct RowState {
  double max = kMinusInfinity;
  double sum = 0;
  std::array<double, kLatentDim> out{};
};

/// The value of each e4m3 code: decoding 512 codes a token took a fifth of the time at 4 heads.
const std::array<float, 256>& e4m3_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> table{};
    for (std::size_t code = 0; code < table.size(); ++code)
      table[code] = to_float(E4m3{static_cast<std::uint8_t>(code)});
    return table;
  }();
  return values;
}

void load_block(const CacheView& cache, std::int64_t page, int tokens, Block& block) {
  const std::array<float, 256>& values = e4m3_values();
  for (int t = 0; t < tokens; ++t) {
    float* row = block.token[static_cast<std::size_t>(t)].data();
    if (cache.format == CacheFormat::kFp8) {
      const E4m3* latent = page_row<E4m3>(cache.latent, page, t);
      for (int d = 0; d < kLatentDim; ++d) row[d] = values[latent[d].bits];
      block.scale[static_cast<std::size_t>(t)] = *page_row<float>(cache.scale, page, t);
    } else {
      const Bf16* latent = page_row<Bf16>(cache.latent, page, t);
      for (int d = 0; d < kLatentDim; ++d) row[d] = to_float(latent[d]);
      block.scale[static_cast<std::size_t>(t)] = 1;
    }
    const Bf16* rope = page_row<Bf16>(cache.rope, page, t);
    for (int d = 0; d < kRopeDim; ++d) row[kLatentDim + d] = to_float(rope[d]);
  }
}

/// Row `row` of the s * heads of a request.
QueryRow load_query(const DecodeParams& params, std::int64_t request, std::int64_t row) {
  QueryRow query;
  const bool fp8 = params.cache.format == CacheFormat::kFp8;
  const std::int64_t heads = params.q_latent.dim(2);
  const auto begin = [&](const ConstTensorView& q) {
    return request * q.stride(0) + row / heads * q.stride(1) + row % heads * q.stride(2);
  };
  float* value = query.value.data();
  for (int d = 0; d < kLatentDim; ++d) {
    const std::int64_t i = begin(params.q_latent) + d;
    value[d] = fp8 ? to_float(params.q_latent.as<E4m3>()[i]) : to_float(params.q_latent.as<Bf16>()[i]);
  }
  for (int d = 0; d < kRopeDim; ++d) {
    value[kLatentDim + d] = to_float(params.q_rope.as<Bf16>()[begin(params.q_rope) + d]);
  }
  const std::int64_t rows = params.q_latent.dim(1) * heads;
  query.logit_scale = static_cast<double>(params.softmax_scale) *
                      (fp8 ? params.q_scale.as<float>()[request * rows + row] : 1.0F);
  return query;
}

/// Sum over 576 products: 16 lanes of 36 terms in fp32 (a fixed order that compilers can vectorise), then
/// fp64.
SNAPMLA_ALWAYS_INLINE double dot(const std::array<float, kTokenDim>& a,
                                 const std::array<float, kTokenDim>& b) {
  constexpr std::size_t kLanes = 16;
  std::array<float, kLanes> lane{};
  for (std::size_t d = 0; d < kTokenDim; d += kLanes) {
    for (std::size_t l = 0; l < kLanes; ++l) lane[l] += a[d + l] * b[d + l];
  }
  double sum = 0;
  for (const float partial : lane) sum += partial;
  return sum;
}

/// Turns p into the weights of the PV product and returns sigma, the scale that restores them.
float quantize_weights(CacheFormat format, const Block& block, int visible,
                       std::array<float, kPageTokens>& p) {
  if (format == CacheFormat::kBf16) {
    for (std::size_t t = 0; t < static_cast<std::size_t>(visible); ++t) p[t] = round_to_bf16(p[t]);
    return 1;
  }
  float largest = 0;
  for (std::size_t t = 0; t < static_cast<std::size_t>(visible); ++t) {
    p[t] *= block.scale[t];
    largest = std::fmax(largest, p[t]);
  }
  const float sigma = largest > 0 ? largest / kE4m3Max : 1;
  for (std::size_t t = 0; t < static_cast<std::size_t>(visible); ++t) p[t] = to_float(to_e4m3(p[t] / sigma));
  return sigma;
}

/// Adds the first `visible` tokens of a block to a row.
SNAPMLA_MULTIVERSION void attend(CacheFormat format, const QueryRow& query, const Block& block, int visible,
                                 RowState& state) {
  const auto count = static_cast<std::size_t>(visible);
  std::array<double, kPageTokens> logit;
  double block_max = kMinusInfinity;
  for (std::size_t t = 0; t < count; ++t) {
    logit[t] = query.logit_scale * block.scale[t] * dot(query.value, block.token[t]);
    block_max = std::fmax(block_max, logit[t]);
  }
  std::array<float, kPageTokens> weight;
  double block_sum = 0;
  for (std::size_t t = 0; t < count; ++t) {
    const double p = std::exp(logit[t] - block_max);
    block_sum += p;
    weight[t] = static_cast<float>(p);
  }
  const float sigma = quantize_weights(format, block, visible, weight);
  std::array<float, kLatentDim> tmp{};
  for (std::size_t t = 0; t < count; ++t) {
    for (std::size_t d = 0; d < kLatentDim; ++d) tmp[d] += weight[t] * block.token[t][d];
  }
  const double new_max = std::fmax(state.max, block_max);
  const double keep = std::exp(state.max - new_max);
  const double gain = std::exp(block_max - new_max);
  for (std::size_t d = 0; d < kLatentDim; ++d) state.out[d] = state.out[d] * keep + sigma * gain * tmp[d];
  state.sum = state.sum * keep + gain * block_sum;
  state.max = new_max;
}

/// All rows of one request over tokens [first, end): partial out, normalised by its own sum, and lse.
void decode_item(const DecodeParams& params, const std::int32_t* item, float* partial_out,
                 float* partial_lse) {
  const std::int64_t request = item[0];
  const int first = item[1];
  const int end = item[2];
  const auto s = static_cast<int>(params.q_latent.dim(1));
  const auto heads = static_cast<int>(params.q_latent.dim(2));
  const int rows = s * heads;
  const int seq_len = seq_len_of("decode", params.seq_lens, request);
  SNAPMLA_REQUIRE(first >= 0 && end <= seq_len, "decode",
                  "plan must be made for these seq_lens; got tokens [", first, ", ", end, ") of request ",
                  request, " with seq_len ", seq_len);

  std::vector<QueryRow> query;
  query.reserve(static_cast<std::size_t>(rows));
  for (int row = 0; row < rows; ++row) query.push_back(load_query(params, request, row));
  std::vector<RowState> state(static_cast<std::size_t>(rows));
  Block block;
  for (int begin = first; begin < end; begin += kPageTokens) {
    const int tokens = std::min(kPageTokens, end - begin);
    load_block(params.cache, page_of("decode", params.block_table, request, begin, params.cache.num_pages),
               tokens, block);
    for (int row = 0; row < rows; ++row) {
      const int sees = params.causal ? seq_len - s + row / heads + 1 : seq_len;  // tokens from 0
      const int visible = std::clamp(sees - begin, 0, tokens);
      if (visible > 0) {
        attend(params.cache.format, query[static_cast<std::size_t>(row)], block, visible,
               state[static_cast<std::size_t>(row)]);
      }
    }
  }
  for (int row = 0; row < rows; ++row) {
    const RowState& done = state[static_cast<std::size_t>(row)];
    const double inverse = done.sum > 0 ? 1 / done.sum : (std::isnan(done.sum) ? done.sum : 0);
    float* out = partial_out + std::int64_t{row} * kLatentDim;
    for (std::size_t d = 0; d < kLatentDim; ++d) out[d] = static_cast<float>(done.out[d] * inverse);
    partial_lse[row] = static_cast<float>(done.max + std::log(done.sum));
  }
}

}  // namespace

std::int64_t decode_workspace_bytes(const PlanShape& shape, int s, int heads) {
  return std::int64_t{shape.max_items} * s * heads * (kLatentDim + 1) *
         static_cast<std::int64_t>(sizeof(float));
}

void decode(const DecodeParams& params) {
  const PlanView& plan = params.plan;
  const std::int64_t rows = params.q_latent.dim(1) * params.q_latent.dim(2);
  const std::int64_t num_items = plan.split_offsets.as<std::int32_t>()[plan.shape.batch];
  SNAPMLA_REQUIRE(num_items >= plan.shape.batch && num_items <= plan.shape.max_items, "decode",
                  "plan must have been filled by plan(); its last split offset is ", num_items,
                  " of at most ", plan.shape.max_items);
  auto* partial_out = params.workspace.as<float>();
  float* partial_lse = partial_out + plan.shape.max_items * rows * kLatentDim;
  parallel_for(num_items, 1, [&](std::int64_t i) {
    const std::int32_t* item = plan.work_items.as<std::int32_t>() + 4 * i;
    SNAPMLA_REQUIRE(item[0] >= 0 && item[0] < plan.shape.batch && item[3] == i, "decode",
                    "plan must have been filled by plan(); got request ", item[0], ", partial ", item[3],
                    " in item ", i);
    decode_item(params, item, partial_out + i * rows * kLatentDim, partial_lse + i * rows);
  });
  combine({.partial_out = ConstTensorView(partial_out, DType::kF32, {num_items, rows, kLatentDim}),
           .partial_lse = ConstTensorView(partial_lse, DType::kF32, {num_items, rows}),
           .split_offsets = plan.split_offsets,
           .out = params.out,
           .lse = params.lse});
}

}  // namespace snapmla::reference_ops
