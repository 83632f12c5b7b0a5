// A walk over the tokens by rank (falling logit, then index), up to three times: to the top_k-th token, to where the masses
// reach top_p, and to the token. Nothing is sorted: logits are binned by the leading bits of their ranks, prefix sums over
// the bins say in which one the walk ends, and its logits are binned by the bits behind them. The last bin holds equal
// logits, which are walked by index.
#pragma once

#include <cstdint>

#include "core/sample_rule.h"
#include "cuda/device/order.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/sample/config.cuh"
#include "cuda/sample/mass.cuh"
#include "cuda/sample/stats.cuh"
#include "cuda/sample/walk_by_index.cuh"

namespace snapmla::cuda_ops::sampling {

/// Rises as logits fall.
__device__ __forceinline__ std::uint32_t rank_of(float logit) {
  return ~order_key(logit);
}

/// What top_k keeps: ranks up to a last one, and of its equal logits those up to an index.
struct Cut {
  std::uint32_t rank;
  int index;

  [[nodiscard]] __device__ __forceinline__ bool keeps(std::uint32_t r, int i) const {
    return r < rank || (r == rank && i <= index);
  }
};

/// Ranks, both ends included, and the bits of a rank that the next rounds are left.
struct Ranks {
  std::uint32_t first;
  std::uint32_t last;

  [[nodiscard]] __device__ __forceinline__ int shift() const {
    return max(0, 32 - __clz(static_cast<int>(last - first)) - kBinBits);
  }
};

/// The row as the walks by rank see it.
template <bool kAligned>
struct RankedRow {
  const float* g_row;
  int vocab;
  Shared* shared;

  /// The weights of the kept tokens in these ranks.
  template <class Weight>
  __device__ __forceinline__ void fill(Bins& bins, const Ranks& ranks, const Cut& cut,
                                       const Weight& weight) const {
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) bins.low[i] = bins.high[i] = 0;
    __syncthreads();
    const std::uint32_t span = ranks.last - ranks.first;
    const int shift = ranks.shift();
    const auto take = [&](float logit, int i) {
      const std::uint32_t rank = rank_of(logit);
      const std::uint32_t at = rank - ranks.first;
      if (i < vocab && at <= span && cut.keeps(rank, i)) bins.add(at >> shift, weight(logit));
    };
#pragma unroll 2
    for (int first = static_cast<int>(threadIdx.x) * kFour; first < vocab; first += kThreads * kFour) {
      const float4 x = load_four<kAligned>(g_row, first, vocab);
      take(x.x, first);
      take(x.y, first + 1);
      take(x.z, first + 2);
      take(x.w, first + 3);
    }
    __syncthreads();
  }

  /// The bin at which the sum of weights passes target_of(sum of all), which must be below that sum.
  template <class TargetOf>
  __device__ __forceinline__ Crossing cross(const Bins& bins, const TargetOf& target_of) const {
    const int bin = 2 * static_cast<int>(threadIdx.x);
    const Wide first = bins.at(bin);
    const Wide second = bins.at(bin + 1);
    const ScanResult<Wide> sums = block_scan(first + second, shared->wide);
    const Wide target = target_of(sums.total);
    const Wide through_first = sums.before + first;
    const auto is_in = [target](Wide before, Wide through) { return before <= target && target < through; };
    if (is_in(sums.before, through_first))
      shared->crossing = {static_cast<std::uint32_t>(bin), sums.before, first, target};
    if (is_in(through_first, through_first + second))
      shared->crossing = {static_cast<std::uint32_t>(bin + 1), through_first, second, target};
    __syncthreads();
    const Crossing found = shared->crossing;
    __syncthreads();
    return found;
  }

  /// Equal logits, among which a walk by rank ends.
  struct Equals {
    std::uint32_t rank;
    Wide before;  ///< weight of all ranks before
    Wide weight;  ///< of them all
    Wide rest;    ///< what the walk has left for them: below `weight`
  };

  /// Walks the kept tokens by rank from the bins of the first round, shared->all, of these ranks.
  template <class Weight, class TargetOf>
  __device__ __forceinline__ Equals walk_by_rank(Ranks ranks, const Cut& cut, const Weight& weight,
                                                 const TargetOf& target_of) const {
    Crossing found = cross(shared->all, target_of);
    Wide before = found.before;
    Wide rest = found.target - found.before;
    for (int shift = ranks.shift();; shift = ranks.shift()) {
      ranks.first += found.bin << shift;
      if (shift == 0) return {ranks.first, before, found.weight, rest};
      ranks.last = min(ranks.last, ranks.first + ((1U << shift) - 1));
      fill(shared->some, ranks, cut, weight);
      found = cross(shared->some, [rest](Wide) { return rest; });
      before += found.before;
      rest -= found.before;
    }
  }

  /// The index of the n-th (from 0) of the kept tokens of a rank.
  [[nodiscard]] __device__ __forceinline__ int index_of(std::uint32_t rank, const Cut& cut, int n) const {
    return walk_by_index(
        vocab, [&](int i) { return rank_of(__ldg(g_row + i)) == rank && cut.keeps(rank, i) ? 1 : 0; },
        [n](int) { return n; }, shared->count);
  }

  __device__ __forceinline__ Cut find_cut(const RowStats& stats, int top_k) const {
    Cut cut{.rank = rank_of(-INFINITY), .index = INT32_MAX};  // keeps all
    if (top_k <= 0 || top_k >= vocab) return cut;
    const Ranks ranks{.first = rank_of(stats.largest), .last = cut.rank};
    fill(shared->all, ranks, cut, One{});
    const Equals last =
        walk_by_rank(ranks, cut, One{}, [top_k](Wide) { return static_cast<Wide>(top_k - 1); });
    const bool keeps_all_equals = last.rest + 1 == last.weight;
    const int index = keeps_all_equals ? INT32_MAX : index_of(last.rank, cut, static_cast<int>(last.rest));
    return {.rank = last.rank, .index = index};
  }

  __device__ __forceinline__ int choose(const SampleRow& row, const RowStats& stats, double uniform) const {
    const Cut cut = find_cut(stats, row.top_k);
    constexpr double kSumBits = 62;  // of 64: rounding and 2^18 halves stay below the next power of two
    const FixedMass weight{.mass = {.largest = stats.largest, .inverse = 1.0 / row.temperature},
                           .scale = exp2(kSumBits - ceil(log2_bound(stats.sum, row.temperature, vocab)))};
    const Ranks ranks{.first = rank_of(stats.largest), .last = cut.rank};
    fill(shared->all, ranks, cut, weight);
    const auto mass_of = [&](const Equals& equals) { return weight(number_of(~equals.rank)); };

    Wide kept = 0;  // 0: all
    if (row.top_p < 1) {
      // The sum must reach top_p of all: pass the number before.
      const Equals last = walk_by_rank(ranks, cut, weight, [&](Wide total) {
        const Wide least = __double2ull_ru(static_cast<double>(row.top_p) * static_cast<double>(total));
        return min(max(least, Wide{1}), total) - 1;
      });
      const Wide mass = mass_of(last);
      kept = last.before + (last.rest / mass + 1) * mass;
    }
    const Equals chosen = walk_by_rank(ranks, cut, weight, [&](Wide total) {
      const Wide sum = kept == 0 ? total : kept;
      return min(__double2ull_rd(uniform * static_cast<double>(sum)), sum - 1);
    });
    return index_of(chosen.rank, cut, static_cast<int>(chosen.rest / mass_of(chosen)));
  }
};

}  // namespace snapmla::cuda_ops::sampling
