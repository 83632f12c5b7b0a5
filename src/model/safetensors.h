// Safetensors: a u64 header length, a JSON header, raw little-endian data. Header validated on open; tensors
// read with pread, so a file cut short under us is an Error, never a signal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "model/file.h"
#include "snapmla/tensor.h"

namespace snapmla {

struct TensorInfo {
  DType dtype = DType::kBF16;  ///< kU8 for F8_E8M0 too: exponents, which are bytes to all but fp8_weights.h
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;  ///< byte offsets in the file
  std::int64_t end = 0;
};

/// "[2, 3]".
std::string to_text(const std::vector<std::int64_t>& shape);

/// One .safetensors file, open for reading. Movable, not copyable. read() may run on several threads.
class SafetensorsFile {
 public:
  /// Throws Error kNotFound, kIo (not a regular file among them), kUnsupported (a dtype of the format that
  /// DType lacks), or kCorruptFile: header length beyond the file or over 100 MB, not JSON, an unknown dtype,
  /// offsets that overlap, leave holes, run past the file, or do not match shape and dtype. The text names
  /// file and tensor.
  explicit SafetensorsFile(const std::string& path);

  [[nodiscard]] const InputFile& file() const { return file_; }
  [[nodiscard]] const std::string& path() const { return file_.path(); }
  [[nodiscard]] const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }

  /// Reads a whole tensor into `dst` (end - begin bytes). Throws Error kNotFound (no such tensor), kIo (short
  /// read).
  void read(const std::string& name, void* dst) const;

 private:
  InputFile file_;
  std::map<std::string, TensorInfo> tensors_;
};

/// Elements of a BF16, F16 or F32 tensor, as they are stored and aligned for their type, as bf16, rounded to nearest
/// even: those of BF16 themselves, others in `converted`, which is overwritten.
std::span<const Bf16> as_bf16(DType dtype, std::span<const std::byte> stored, std::vector<Bf16>& converted);

/// All tensors of a folder: model.safetensors, or the shards that model.safetensors.index.json names; where
/// there is neither, Mistral's consolidated.safetensors and consolidated.safetensors.index.json.
class Checkpoint {
 public:
  /// Whether `dir` has one of these files.
  static bool is_in(const std::string& dir);

  /// Throws as SafetensorsFile does, and kNotFound / kCorruptFile for the index, a shard it names, or a
  /// tensor that is not in the shard the index says, and for a tensor name in two shards.
  explicit Checkpoint(const std::string& dir);

  [[nodiscard]] bool contains(const std::string& name) const;
  [[nodiscard]] std::vector<std::string> names() const;  ///< sorted

  [[nodiscard]] const std::string& dir() const { return dir_; }

  /// Both throw kNotFound, naming folder and tensor.
  [[nodiscard]] const TensorInfo& info(const std::string& name) const;
  [[nodiscard]] const SafetensorsFile& file_of(const std::string& name) const;

  /// Throws kCorruptFile if the shape is not `shape` or the dtype is not BF16, F16 or F32; the text names file,
  /// tensor, rule and what came.
  void require_floats(const std::string& name, const std::vector<std::int64_t>& shape) const;

  /// The tensor as f32. Throws as require_floats() does.
  [[nodiscard]] std::vector<float> read_f32(const std::string& name,
                                            const std::vector<std::int64_t>& shape) const;

  /// The tensor as it is stored.
  [[nodiscard]] std::vector<std::uint8_t> read_bytes(const std::string& name) const;

 private:
  std::string dir_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t> file_idx_of_;
};

}  // namespace snapmla
