#include "bench/tensors.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "core/bf16.h"

namespace snapmla::apps {
namespace {

// A prime, so that rows of any width cut from the tape one behind the other differ.
constexpr std::size_t kTapeLength = 1'000'003;
constexpr std::int64_t kChunkPages = 64;

const std::vector<float>& tape() {
  static const std::vector<float> numbers = [] {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> made(kTapeLength);
    for (float& x : made) x = normal(random);
    return made;
  }();
  return numbers;
}

/// What fills a pool, over and over.
const std::vector<Bf16>& chunk_of_tokens() {
  static const std::vector<Bf16> tokens = random_tokens(kChunkPages * kPageTokens);
  return tokens;
}

const std::vector<float>& cos_sin_table() {
  static const std::vector<float> table = [] {
    std::vector<float> made;
    for (int position = 0; position < RopeTable::kPositions; ++position) {
      for (int part = 0; part < 2; ++part) {
        for (int i = 0; i < kRopeDim / 2; ++i) {
          const double angle = position * std::pow(10000.0, -2.0 * i / kRopeDim);
          made.push_back(static_cast<float>(part == 0 ? std::cos(angle) : std::sin(angle)));
        }
      }
    }
    return made;
  }();
  return table;
}

}  // namespace

std::vector<Bf16> random_values(std::int64_t count, float deviation, std::uint64_t place) {
  std::vector<Bf16> values(static_cast<std::size_t>(count));
  std::size_t at = place * 7919 % kTapeLength;
  for (Bf16& value : values) {
    value = to_bf16(deviation * tape()[at]);
    if (++at == kTapeLength) at = 0;
  }
  return values;
}

std::vector<Bf16> random_tokens(std::int64_t tokens) {
  std::vector<Bf16> values(static_cast<std::size_t>(tokens * kTokenDim));
  std::size_t at = kLatentDim;  // the first numbers of the tape are the means
  std::size_t d = 0;
  for (Bf16& value : values) {
    value = to_bf16(tape()[at] + (d < kLatentDim ? tape()[d] : 0));
    if (++at == kTapeLength) at = 0;
    if (++d == kTokenDim) d = 0;
  }
  return values;
}

std::vector<std::int32_t> random_order(std::int64_t count, std::uint64_t seed) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  return order;
}

FilledPool::FilledPool(Backend& backend, CacheFormat format, std::int64_t num_pages, Stream stream)
    : pages_(backend, num_pages * page_bytes(format)),
      view_(make_cache_view(format, pages_.data(), num_pages)) {
  const std::int64_t chunk_tokens = std::min(num_pages, kChunkPages) * kPageTokens;
  std::vector<std::int32_t> slots(static_cast<std::size_t>(chunk_tokens));
  std::iota(slots.begin(), slots.end(), 0);
  const DeviceBuffer slot_mapping = to_device(backend, slots, stream);
  const DeviceBuffer kv = to_device(backend, chunk_of_tokens(), stream);
  for (std::int64_t first = 0; first < num_pages; first += kChunkPages) {
    // The same slots every time, of a pool that begins at the next page.
    const std::int64_t chunk = std::min(num_pages - first, kChunkPages);
    auto* const base = static_cast<std::byte*>(pages_.data()) + first * page_bytes(format);
    append_kv(backend,
              {.kv = {kv.data(), DType::kBF16, {chunk * kPageTokens, kTokenDim}},
               .slot_mapping = {slot_mapping.data(), DType::kI32, {chunk * kPageTokens}},
               .cache = make_cache_view(format, base, chunk)},
              stream);
  }
  backend.synchronize(stream);
}

RopeTable::RopeTable(Backend& backend, std::int64_t tokens, Stream stream) {
  cos_sin_ = to_device(backend, cos_sin_table(), stream);
  std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < positions.size(); ++i) {
    positions[i] = static_cast<std::int32_t>(i * 37 % kPositions);
  }
  positions_ = to_device(backend, positions, stream);
}

RopeParams RopeTable::params(std::int64_t batch, std::int64_t s) const {
  return {.cos_sin = {cos_sin_.data(), DType::kF32, {kPositions, kRopeDim}},
          .positions = s > 0 ? ConstTensorView(positions_.data(), DType::kI32, {batch, s})
                             : ConstTensorView(positions_.data(), DType::kI32, {batch})};
}

}  // namespace snapmla::apps
