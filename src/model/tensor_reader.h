// TensorReader: the tensors of a checkpoint into memory of a backend. It is told first what goes where, and then reads
// all in the order in which they lie in their files, a thread ahead of what is converted and copied.
//
//     TensorReader reader(backend, checkpoint, config.fp8);
//     reader.bf16_into("model.norm.weight", device_memory);
//     reader.read_all();
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/read_ahead.h"
#include "model/safetensors.h"
#include "snapmla/backend.h"

namespace snapmla {

class TensorReader {
 public:
  /// `fp8`: the blocks of e4m3 tensors, for which check_fp8 must hold.
  TensorReader(Backend& backend, const Checkpoint& checkpoint, const Fp8Blocks& fp8)
      : backend_(backend), checkpoint_(checkpoint), fp8_(fp8) {}

  // What these ask for is done by read_all().

  /// A tensor of any type, converted.
  void bf16_into(const std::string& name, Bf16* dst);
  /// The codes of an e4m3 tensor as they are.
  void codes_into(const std::string& name, E4m3* dst);
  void f32_into(const std::string& name, const std::vector<std::int64_t>& shape, float* dst);
  /// A whole tensor, converted, to `take`.
  void whole(const std::string& name, std::function<void(std::vector<Bf16>)> take);

  /// Throws as Checkpoint does, and kCorruptFile for a NaN among e4m3 codes.
  void read_all();

  /// To the backend, done on return.
  template <class T>
  void copy(void* dst, std::span<const T> src) {
    backend_.copy(dst, src.data(), static_cast<std::int64_t>(src.size_bytes()), CopyKind::kHostToDevice,
                  Stream{});
    backend_.synchronize(Stream{});
  }

 private:
  using Place = std::pair<const SafetensorsFile*, std::int64_t>;
  using TakeBf16 = std::function<void(std::int64_t first, std::span<const Bf16> elements)>;

  struct Read {
    Place place;
    std::vector<ReadAhead::Part> parts;
    std::function<void(ReadAhead&)> run;  ///< takes the parts
  };

  [[nodiscard]] Place place_of(const std::string& name) const;
  void later(const std::string& name, std::int64_t part_bytes, std::function<void(ReadAhead&)> run);
  void take_bf16(const std::string& name, ReadAhead& ahead, const TakeBf16& take) const;

  Backend& backend_;
  const Checkpoint& checkpoint_;
  Fp8Blocks fp8_;
  std::vector<Read> reads_;
};

}  // namespace snapmla
