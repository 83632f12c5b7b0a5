#include "reference/prefill.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/bf16.h"
#include "core/check.h"
#include "core/parallel.h"
#include "reference/block_product.h"
#include "reference/linear.h"

namespace snapmla::reference_ops {
namespace {

constexpr int kKeyBlock = 64;
constexpr int kQueryBlock = 64;

// Up to kQueryBlock queries of one head and their running softmax state. The arrays live in thread_scratch.
class QueryTile {
 public:
  QueryTile(const PrefillAttentionParams& params, std::int64_t head, std::int64_t first_query)
      : p_(params),
        head_(head),
        first_query_(first_query),
        rows_(static_cast<int>(std::min<std::int64_t>(kQueryBlock, params.q.dim(0) - first_query))),
        first_position_(params.k_nope.dim(0) - params.q.dim(0) + first_query),
        q_dim_(params.q.dim(2)),
        v_dim_(params.v.dim(2)),
        keys_(static_cast<std::size_t>(q_dim_) * kKeyBlock) {
    const std::int64_t q_floats = kQueryBlock * q_dim_;
    const std::int64_t out_floats = kQueryBlock * v_dim_;
    q_ = thread_scratch(q_floats + 2 * out_floats + std::int64_t{kQueryBlock} * kKeyBlock);
    out_ = q_ + q_floats;
    block_out_ = out_ + out_floats;
    logit_ = block_out_ + out_floats;
    max_.fill(-std::numeric_limits<float>::infinity());
    sum_.fill(0);
    std::fill_n(out_, out_floats, 0.0F);
    for (int r = 0; r < rows_; ++r) {
      widen(params.q.as<Bf16>() + (first_query + r) * params.q.stride(0) + head * params.q.stride(1), q_dim_,
            q_ + r * q_dim_);
    }
  }

  void attend() {
    const std::int64_t last_position = first_position_ + rows_ - 1;
    for (std::int64_t first_key = 0; first_key <= last_position; first_key += kKeyBlock) {
      gather_keys(first_key);
      // Rows before this one see no key of the block. The logits of unseen keys are computed, too, but never
      // used.
      int row = static_cast<int>(std::clamp<std::int64_t>(first_key - first_position_, 0, rows_));
      dot_columns({.x = q_ + row * q_dim_,
                   .x_stride = q_dim_,
                   .rows = rows_ - row,
                   .outs = kKeyBlock,
                   .inner = static_cast<int>(q_dim_),
                   .y = logit_ + static_cast<std::ptrdiff_t>(row) * kKeyBlock,
                   .y_stride = kKeyBlock},
                  keys_.data(), kKeyBlock);
      // Rows on the diagonal take the keys they see one row at a time; those below see the whole block.
      for (; row < rows_; ++row) {
        const std::int64_t seen = first_position_ + row + 1 - first_key;
        if (seen >= kKeyBlock) break;
        add_values(row, 1, first_key, static_cast<int>(seen));
      }
      if (row < rows_) add_values(row, rows_ - row, first_key, kKeyBlock);
    }
  }

  void store() const {
    for (int r = 0; r < rows_; ++r) {
      Bf16* out = p_.out.as<Bf16>() + (first_query_ + r) * p_.out.stride(0) + head_ * p_.out.stride(1);
      const float inverse = 1.0F / sum_[static_cast<std::size_t>(r)];
      for (std::int64_t d = 0; d < v_dim_; ++d) out[d] = to_bf16(out_[r * v_dim_ + d] * inverse);
    }
  }

 private:
  // The block's keys with their dimensions as rows, so that vectors run along keys; zeros past the context.
  void gather_keys(std::int64_t first_key) {
    const std::int64_t nope = q_dim_ - kRopeDim;
    const std::int64_t keys = std::min<std::int64_t>(kKeyBlock, p_.k_nope.dim(0) - first_key);
    if (keys < kKeyBlock) std::fill(keys_.begin(), keys_.end(), Bf16{});
    for (std::int64_t t = 0; t < keys; ++t) {
      const Bf16* k_nope =
          p_.k_nope.as<Bf16>() + (first_key + t) * p_.k_nope.stride(0) + head_ * p_.k_nope.stride(1);
      const Bf16* k_rope = p_.k_rope.as<Bf16>() + (first_key + t) * p_.k_rope.stride(0);
      Bf16* column = keys_.data() + t;
      for (std::int64_t d = 0; d < nope; ++d) column[d * kKeyBlock] = k_nope[d];
      for (std::int64_t d = 0; d < kRopeDim; ++d) column[(nope + d) * kKeyBlock] = k_rope[d];
    }
  }

  void add_values(int row, int rows, std::int64_t first_key, int keys) {
    for (int r = row; r < row + rows; ++r) soften(r, keys);
    dot_columns({.x = logit_ + static_cast<std::ptrdiff_t>(row) * kKeyBlock,
                 .x_stride = kKeyBlock,
                 .rows = rows,
                 .outs = static_cast<int>(v_dim_),
                 .inner = keys,
                 .y = block_out_ + row * v_dim_,
                 .y_stride = v_dim_},
                p_.v.as<Bf16>() + first_key * p_.v.stride(0) + head_ * p_.v.stride(1), p_.v.stride(0));
    for (std::int64_t i = row * v_dim_; i < (row + rows) * v_dim_; ++i) out_[i] += block_out_[i];
  }

  // Turns the products of row r into p against the running maximum, and rescales what the row has gathered
  // before.
  void soften(int r, int keys) {
    float* logit = logit_ + static_cast<std::ptrdiff_t>(r) * kKeyBlock;
    float& max = max_[static_cast<std::size_t>(r)];
    float& sum = sum_[static_cast<std::size_t>(r)];
    float new_max = max;
    for (int t = 0; t < keys; ++t) {
      logit[t] *= p_.softmax_scale;
      new_max = std::max(new_max, logit[t]);
    }
    const float keep = std::exp(max - new_max);
    max = new_max;
    float block_sum = 0;
    for (int t = 0; t < keys; ++t) {
      logit[t] = std::exp(logit[t] - new_max);
      block_sum += logit[t];
    }
    sum = sum * keep + block_sum;
    for (std::int64_t d = 0; d < v_dim_; ++d) out_[r * v_dim_ + d] *= keep;
  }

  const PrefillAttentionParams& p_;
  std::int64_t head_;
  std::int64_t first_query_;
  int rows_;
  std::int64_t first_position_;
  std::int64_t q_dim_;
  std::int64_t v_dim_;
  std::vector<Bf16> keys_;      ///< [q_dim, kKeyBlock]
  float* q_ = nullptr;          ///< [kQueryBlock, q_dim]
  float* out_ = nullptr;        ///< [kQueryBlock, v_dim], not yet divided by sum_
  float* block_out_ = nullptr;  ///< [kQueryBlock, v_dim]
  float* logit_ = nullptr;      ///< [kQueryBlock, kKeyBlock], then p
  std::array<float, kQueryBlock> max_{};
  std::array<float, kQueryBlock> sum_{};
};

}  // namespace

void prefill_attention(const PrefillAttentionParams& params) {
  const PrefillAttentionParams& p = params;
  SNAPMLA_ASSERT(is_tensor(p.q, DType::kBF16, 3) && is_tensor(p.k_nope, DType::kBF16, 3) &&
                 is_tensor(p.k_rope, DType::kBF16, 2) && is_tensor(p.v, DType::kBF16, 3) &&
                 is_tensor(p.out, DType::kBF16, 3));
  const std::int64_t tokens = p.q.dim(0);
  const std::int64_t heads = p.q.dim(1);
  const std::int64_t seq_len = p.k_nope.dim(0);
  SNAPMLA_ASSERT(seq_len >= tokens && p.k_rope.dim(0) == seq_len && p.v.dim(0) == seq_len);
  SNAPMLA_ASSERT(p.k_nope.dim(1) == heads && p.v.dim(1) == heads && p.k_rope.dim(1) == kRopeDim);
  SNAPMLA_ASSERT(p.q.dim(2) == p.k_nope.dim(2) + kRopeDim);
  SNAPMLA_ASSERT(p.out.dim(0) == tokens && p.out.dim(1) == heads && p.out.dim(2) == p.v.dim(2));
  SNAPMLA_ASSERT(std::isfinite(p.softmax_scale));
  const std::int64_t tiles = (tokens + kQueryBlock - 1) / kQueryBlock;
  const std::int64_t tile_products =
      std::min<std::int64_t>(tokens, kQueryBlock) * seq_len * (p.q.dim(2) + p.v.dim(2));
  parallel_for(tiles * heads, grain_of(tile_products), [&](std::int64_t i) {
    QueryTile tile(p, i % heads, i / heads * kQueryBlock);
    tile.attend();
    tile.store();
  });
}

}  // namespace snapmla::reference_ops
