// sample: a token from each row of logits, and its log-probability, by the rule of src/reference/sample.h. A block a row.
//
// 1. One pass finds the largest logit, the lowest index that has it, and sum exp(logit - largest), whose terms are fp32
//    and whose sums are fp64. Greedy and forced rows are done with it.
// 2. A row without cuts walks its tokens by index: the row is cut into 32 parts, a part a warp; their masses say in which
//    one the walk ends, and that one is cut again, until a part is one token.
// 3. A row with cuts walks its tokens by rank (falling logit, then index), up to three times: to the top_k-th token, to
//    where the masses reach top_p, and to the token. Nothing is sorted: logits are binned by the leading bits of their
//    ranks, prefix sums over the bins say in which one the walk ends, and its logits are binned by the bits behind them.
//    The last bin holds equal logits, which are walked by index.
//
// Masses are exp((logit - largest) / temperature) in fp64. In bins they are fixed-point numbers, so that atomics add
// them up to the same bits in any order, and so that a bin's mass is the sum of its bins' in the next round. Each is off by
// at most 2^-62 of a bound on the sum of all (log2_bound), so all of 2^17 together by 2^-45 times that bound, which for
// a model's logits is far below 2^10.
#include <cstdint>

#include "core/sample_rule.h"
#include "cuda/device/launch.h"
#include "cuda/device/order.cuh"
#include "cuda/device/ptx.cuh"
#include "cuda/device/reduce.cuh"
#include "cuda/plain_ops.h"
#include "cuda/require.h"

namespace snapmla::cuda_ops {
namespace {

using Wide = unsigned long long;  // not std::uint64_t, which shuffles do not take

constexpr int kThreads = 1024;
constexpr int kFour = 4;  // logits a thread loads at a time
constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;
static_assert(kBins == 2 * kThreads);

struct SampleArgs {
  const float* logits;
  std::int64_t stride;
  int vocab;
  const SampleRow* rows;
  int* token;
  float* logprob;
};

/// 64-bit sums as two words, since shared memory adds words only. The upper one counts the lower one's overflows.
struct Bins {
  std::uint32_t low[kBins];
  std::uint32_t high[kBins];

  __device__ __forceinline__ void add(std::uint32_t bin, Wide x) {
    if (x == 0) return;
    const auto word = static_cast<std::uint32_t>(x);
    const std::uint32_t before = atomicAdd(low + bin, word);
    const std::uint32_t upper = static_cast<std::uint32_t>(x >> 32) + (before + word < before ? 1 : 0);
    if (upper != 0) atomicAdd(high + bin, upper);
  }
  [[nodiscard]] __device__ __forceinline__ Wide at(int bin) const {
    return static_cast<Wide>(high[bin]) << 32 | low[bin];
  }
};

/// Where a walk over the bins ends.
struct Crossing {
  std::uint32_t bin;
  Wide before;  ///< weight of the bins before
  Wide weight;  ///< of the bin
  Wide target;
};

struct Shared {
  Bins all;   ///< of the first round
  Bins some;  ///< of a later one
  Crossing crossing;
  Wide wide[kWarpLanes];
  double real[kWarpLanes];
  int count[kWarpLanes];
};

/// Logits first to first + 3; -inf past the end. kAligned: the row starts at a multiple of 16 bytes.
template <bool kAligned>
__device__ __forceinline__ float4 load_four(const float* g_row, int first, int vocab) {
  if (kAligned && first + kFour <= vocab) return __ldg(reinterpret_cast<const float4*>(g_row + first));
  const auto at = [&](int i) { return i < vocab ? __ldg(g_row + i) : -INFINITY; };
  return make_float4(at(first), at(first + 1), at(first + 2), at(first + 3));
}

struct RowStats {
  int argmax;  ///< -1: the row has no softmax
  float largest;
  double sum;  ///< of exp(logit - largest)
};

/// NaN and +inf show in the sum: the one gives NaN, as does inf - inf.
template <bool kAligned>
__device__ __forceinline__ RowStats find_stats(const float* g_row, int vocab, Shared& shared) {
  constexpr float kLowest = -3.40282347e38F;  // in place of -inf, which has no difference to itself
  float largest = -INFINITY;                  // of this thread
  int argmax = -1;
  double sum = 0;
#pragma unroll 4
  for (int first = static_cast<int>(threadIdx.x) * kFour; first < vocab; first += kThreads * kFour) {
    const float4 x = load_four<kAligned>(g_row, first, vocab);
    const float top = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
    if (top > largest) {
      sum *= expf(fmaxf(largest, kLowest) - top);
      largest = top;
      argmax = first + (x.x == top ? 0 : x.y == top ? 1 : x.z == top ? 2 : 3);
    }
    const float base = fmaxf(largest, kLowest);
    sum += (expf(x.x - base) + expf(x.y - base)) + (expf(x.z - base) + expf(x.w - base));
  }
  // The largest key, then the lowest index; 0 of a thread that has no number above -inf.
  Wide best =
      argmax < 0 ? 0 : static_cast<Wide>(order_key(largest)) << 32 | ~static_cast<std::uint32_t>(argmax);
  for (int step = kWarpLanes / 2; step > 0; step /= 2)
    best = max(best, __shfl_xor_sync(kAllLanes, best, step));
  if (lane_index() == 0) shared.wide[warp_index()] = best;
  __syncthreads();
  best = shared.wide[lane_index()];
  for (int step = kWarpLanes / 2; step > 0; step /= 2)
    best = max(best, __shfl_xor_sync(kAllLanes, best, step));
  __syncthreads();
  RowStats stats{.argmax = static_cast<int>(~static_cast<std::uint32_t>(best)),
                 .largest = number_of(static_cast<std::uint32_t>(best >> 32)),
                 .sum = 0};
  if (best == 0) stats.largest = kLowest;
  stats.sum = block_sum(sum * exp(static_cast<double>(fmaxf(largest, kLowest)) - stats.largest), shared.real);
  if (best == 0 || isnan(stats.sum)) stats.argmax = -1;
  return stats;
}

/// exp((logit - largest) / temperature)
struct Mass {
  double largest;
  double inverse;  ///< of the temperature

  __device__ __forceinline__ double operator()(float logit) const {
    return exp(__dmul_rn(__dsub_rn(logit, largest), inverse));
  }
};

/// The same as a fixed-point number.
struct FixedMass {
  Mass mass;
  double scale;

  __device__ __forceinline__ Wide operator()(float logit) const {
    return __double2ull_rn(mass(logit) * scale);
  }
};

struct One {
  __device__ __forceinline__ Wide operator()(float /*logit*/) const { return 1; }
};

/// log2 of a bound on the sum of masses, from the sum at temperature 1, which is at least 1. A mass is at most 1, so below
/// temperature 1 none is above what it is at 1; above, the mean of p^(1/t) is at most the mean of p to the 1/t.
__device__ __forceinline__ double log2_bound(double sum, double temperature, int vocab) {
  if (temperature <= 1) return log2(sum);
  return (1 - 1 / temperature) * log2(static_cast<double>(vocab)) + log2(sum) / temperature;
}

/// Walks the tokens by index, adding weight(i), and returns the first at which the sum passes target_of(sum of all). If
/// rounding hides it: the last that has a weight.
template <class T, class Weight, class TargetOf>
__device__ __forceinline__ int walk_by_index(int vocab, const Weight& weight, const TargetOf& target_of,
                                             T (&s_part)[kWarpLanes]) {
  const int lane = lane_index();
  int begin = 0;
  int count = vocab;
  T target{};
  for (bool is_first = true;; is_first = false) {
    const int part = (count + kWarpLanes - 1) / kWarpLanes;
    T mine{};  // part `lane`
    if (part == 1) {
      if (lane < count) mine = weight(begin + lane);
    } else {
      T sum{};
      const int end = begin + min((warp_index() + 1) * part, count);
#pragma unroll 8
      for (int i = begin + warp_index() * part + lane; i < end; i += kWarpLanes) sum += weight(i);
      sum = warp_sum(sum);
      if (lane == 0) s_part[warp_index()] = sum;
      __syncthreads();
      mine = s_part[lane];
      __syncthreads();
    }
    const T through = warp_scan(mine);
    if (is_first) target = target_of(__shfl_sync(kAllLanes, through, kWarpLanes - 1));
    const unsigned weighty = __ballot_sync(kAllLanes, mine > 0);
    const unsigned passed = weighty & __ballot_sync(kAllLanes, through > target);
    const int chosen = passed != 0 ? __ffs(static_cast<int>(passed)) - 1
                                   : kWarpLanes - 1 - __clz(static_cast<int>(weighty | 1));
    begin += chosen * part;
    if (part == 1) return begin;
    target -= __shfl_sync(kAllLanes, through - mine, chosen);
    count = min(part, count - chosen * part);
  }
}

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

template <bool kAligned>
__device__ __forceinline__ int choose(const float* g_row, int vocab, const SampleRow& row,
                                      const RowStats& stats, Shared& shared) {
  if (row.forced >= 0) return row.forced;
  if (row.temperature == 0) return stats.argmax;
  const double uniform = uniform_at(row.seed, row.position);
  const bool cuts = (row.top_k > 0 && row.top_k < vocab) || row.top_p < 1;
  if (cuts) return RankedRow<kAligned>{g_row, vocab, &shared}.choose(row, stats, uniform);
  const Mass mass{.largest = stats.largest, .inverse = 1.0 / row.temperature};
  return walk_by_index(
      vocab, [&](int i) { return mass(__ldg(g_row + i)); }, [uniform](double sum) { return uniform * sum; },
      shared.real);
}

/// Grid: a block a row. kAligned: rows of logits start at multiples of 16 bytes.
template <bool kAligned>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleArgs args) {
  __shared__ Shared shared;
  launch_next_grid();
  wait_for_previous_grid();
  const float* g_row = args.logits + blockIdx.x * args.stride;
  const SampleRow row = args.rows[blockIdx.x];
  const RowStats stats = find_stats<kAligned>(g_row, args.vocab, shared);
  const int token = stats.argmax < 0 ? -1 : choose<kAligned>(g_row, args.vocab, row, stats, shared);
  if (threadIdx.x > 0) return;
  args.token[blockIdx.x] = token;
  args.logprob[blockIdx.x] =
      token < 0 ? NAN
                : static_cast<float>(static_cast<double>(g_row[token]) - stats.largest - log(stats.sum));
}

}  // namespace

void sample(const ConstTensorView& logits, const ConstTensorView& rows, const TensorView& token,
            const TensorView& logprob, cudaStream_t stream) {
  const std::int64_t n = rows.dim(0);
  constexpr std::int64_t kMaxVocab = 1 << 18;  // RankedRow::choose: halves that rounding may add
  SNAPMLA_ASSERT(is_tensor(logits, DType::kF32, 2) && logits.dim(0) >= n && logits.dim(1) >= 1 &&
                 logits.dim(1) <= kMaxVocab);
  SNAPMLA_ASSERT(is_tensor(rows, DType::kU8, 2) && rows.dim(1) == kSampleRowBytes && rows.is_contiguous() &&
                 is_aligned(rows.data(), kVectorBytes) && n <= INT32_MAX);
  SNAPMLA_ASSERT(is_tensor(token, DType::kI32, 1) && token.dim(0) >= n);
  SNAPMLA_ASSERT(is_tensor(logprob, DType::kF32, 1) && logprob.dim(0) >= n);
  if (n == 0) return;
  const SampleArgs args{.logits = logits.as<float>(),
                        .stride = logits.stride(0),
                        .vocab = static_cast<int>(logits.dim(1)),
                        .rows = rows.as<SampleRow>(),
                        .token = token.as<std::int32_t>(),
                        .logprob = logprob.as<float>()};
  const auto kernel = rows_aligned(logits, kVectorBytes) ? sample_kernel<true> : sample_kernel<false>;
  launch_overlapped(kernel, dim3(static_cast<unsigned>(n)), kThreads, 0, stream, args);
}

}  // namespace snapmla::cuda_ops
