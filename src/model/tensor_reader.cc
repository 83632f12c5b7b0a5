#include "model/tensor_reader.h"

#include <algorithm>
#include <optional>

#include "model/fp8_weights.h"

namespace snapmla {
namespace {

// Stays in the processor's caches until it has been copied.
constexpr std::int64_t kPartBytes = 1 << 20;

// Of a tensor that becomes bf16: whole rows where each has its scales, of kPartBytes when they are converted.
std::int64_t converted_part_bytes(const TensorInfo& info) {
  if (info.dtype != DType::kE4M3) return kPartBytes;
  const std::int64_t columns = info.shape.back();
  return std::max<std::int64_t>(1, kPartBytes / 2 / columns) * columns;
}

std::int64_t element_count(const TensorInfo& info) {
  return (info.end - info.begin) / size_of(info.dtype);
}

}  // namespace

void TensorReader::bf16_into(const std::string& name, Bf16* dst) {
  later(name, converted_part_bytes(checkpoint_.info(name)), [this, name, dst](ReadAhead& ahead) {
    take_bf16(name, ahead,
              [&](std::int64_t first, std::span<const Bf16> elements) { copy(dst + first, elements); });
  });
}

void TensorReader::codes_into(const std::string& name, E4m3* dst) {
  later(name, kPartBytes, [this, name, dst](ReadAhead& ahead) {
    const std::int64_t count = element_count(checkpoint_.info(name));
    for (std::int64_t first = 0; first < count;) {
      const std::span<const std::byte> codes = ahead.next();
      refuse_nan(checkpoint_, name, codes);
      copy(dst + first, codes);
      first += std::ssize(codes);
    }
  });
}

void TensorReader::f32_into(const std::string& name, const std::vector<std::int64_t>& shape, float* dst) {
  // So few and small that they need no reading ahead.
  reads_.push_back({place_of(name), {}, [this, name, shape, dst](ReadAhead& /*ahead*/) {
                      copy(dst, std::span<const float>(checkpoint_.read_f32(name, shape)));
                    }});
}

void TensorReader::whole(const std::string& name, std::function<void(std::vector<Bf16>)> take) {
  later(name, converted_part_bytes(checkpoint_.info(name)),
        [this, name, take = std::move(take)](ReadAhead& ahead) {
          std::vector<Bf16> values;
          take_bf16(name, ahead, [&](std::int64_t /*first*/, std::span<const Bf16> elements) {
            values.insert(values.end(), elements.begin(), elements.end());
          });
          take(std::move(values));
        });
}

void TensorReader::read_all() {
  std::sort(reads_.begin(), reads_.end(), [](const Read& a, const Read& b) { return a.place < b.place; });
  std::vector<ReadAhead::Part> parts;
  for (const Read& read : reads_) parts.insert(parts.end(), read.parts.begin(), read.parts.end());
  ReadAhead ahead(std::move(parts));
  for (const Read& read : reads_) read.run(ahead);
  reads_.clear();
}

TensorReader::Place TensorReader::place_of(const std::string& name) const {
  return {&checkpoint_.file_of(name), checkpoint_.info(name).begin};
}

void TensorReader::later(const std::string& name, std::int64_t part_bytes,
                         std::function<void(ReadAhead&)> run) {
  const TensorInfo& info = checkpoint_.info(name);
  std::vector<ReadAhead::Part> parts;
  for (std::int64_t begin = info.begin; begin < info.end; begin += part_bytes) {
    parts.push_back({&checkpoint_.file_of(name).file(), begin, std::min(part_bytes, info.end - begin)});
  }
  reads_.push_back({place_of(name), std::move(parts), std::move(run)});
}

/// Takes a tensor's parts and hands them on as bf16; `first` is the index of the first element.
void TensorReader::take_bf16(const std::string& name, ReadAhead& ahead, const TakeBf16& take) const {
  const TensorInfo& info = checkpoint_.info(name);
  const std::int64_t count = element_count(info);
  std::optional<Fp8Decoder> fp8;
  if (info.dtype == DType::kE4M3) fp8.emplace(checkpoint_, name, fp8_);
  std::vector<Bf16> converted;
  for (std::int64_t first = 0; first < count;) {
    const std::span<const std::byte> stored = ahead.next();
    std::span<const Bf16> elements;
    if (fp8) {
      refuse_nan(checkpoint_, name, stored);
      fp8->decode(first / info.shape.back(), stored, converted);
      elements = converted;
    } else {
      elements = as_bf16(info.dtype, stored, converted);
    }
    take(first, elements);
    first += std::ssize(elements);
  }
}

}  // namespace snapmla
