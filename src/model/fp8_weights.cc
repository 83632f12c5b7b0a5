#include "model/fp8_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "core/bf16.h"
#include "core/check.h"
#include "core/e4m3.h"
#include "core/parallel.h"
#include "model/json_fields.h"

namespace snapmla {
namespace {

using nlohmann::json;

constexpr int kMostBlock = 1 << 16;

Fp8Blocks read_blocks(const JsonFields& fields, const char* name) {
  const json& block = fields.at(name);
  if (!block.is_array() || block.size() != 2)
    fields.refuse(name, block, "must be two numbers: rows and columns");
  return {.rows = fields.integer_of(name, block[0], 1, kMostBlock),
          .columns = fields.integer_of(name, block[1], 1, kMostBlock)};
}

// One group of a compressed-tensors config.
Fp8Blocks read_group(const JsonFields& group) {
  const JsonFields weights = group.object("weights");
  const std::string type = weights.text("type");
  const int bits = weights.integer("num_bits", 1, 64);
  if (type != "float" || bits != 8) {
    weights.unsupported("num_bits", bits, "must be 8, of type float: ", type == "int" ? "integer" : "other",
                        " weights would need unpacking, and a scale a group of each row");
  }
  const std::string strategy = weights.text("strategy");
  if (strategy != "block") {
    weights.unsupported("strategy", strategy, "must be block: other scales would need their own shapes");
  }
  return read_blocks(weights, "block_structure");
}

Fp8Blocks read_compressed_tensors(const JsonFields& quantization) {
  const JsonFields groups = quantization.object("config_groups");
  Fp8Blocks blocks;
  for (const auto& [name, value] : quantization.at("config_groups").items()) {
    const Fp8Blocks found = read_group(groups.object(name.c_str()));
    if (blocks.rows != 0 && (found.rows != blocks.rows || found.columns != blocks.columns)) {
      groups.unsupported(name.c_str(), value, "must have the blocks of the group before it");
    }
    blocks = found;
  }
  if (blocks.rows == 0) {
    quantization.refuse("config_groups", quantization.at("config_groups"), "must name at least one group");
  }
  return blocks;
}

std::vector<std::int64_t> scale_shape(std::vector<std::int64_t> shape, const Fp8Blocks& blocks) {
  const std::size_t n = shape.size();
  shape[n - 2] = (shape[n - 2] + blocks.rows - 1) / blocks.rows;
  shape[n - 1] = (shape[n - 1] + blocks.columns - 1) / blocks.columns;
  return shape;
}

bool is_exponents(const TensorInfo& scales) {
  return scales.dtype == DType::kU8;
}

std::vector<float> read_scales(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& info = checkpoint.info(name);
  std::vector<float> scales;
  if (is_exponents(info)) {
    for (const std::uint8_t code : checkpoint.read_bytes(name)) {
      scales.push_back(code == 255 ? NAN : std::ldexp(1.0F, code - 127));
    }
  } else {
    scales = checkpoint.read_f32(name, info.shape);
  }
  for (const float scale : scales) {
    if (!std::isfinite(scale)) {
      fail(ErrorCode::kCorruptFile, "weights", checkpoint.dir(), ": tensor \"", name,
           "\" must be finite; got ", scale);
    }
  }
  return scales;
}

using Bf16OfCode = std::array<Bf16, 256>;

// What each code stands for in a block. Looked up, weights become bf16 2.4 times as fast as multiplied and rounded one by
// one, 1.9 times as fast as by the vector code that GCC 12 makes of integer shifts (Xeon, 2026-11): a block of 128 x 128
// pays for its table with 64 codes of each kind.
Bf16OfCode values_in_block(float scale) {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> all{};
    for (std::size_t code = 0; code < all.size(); ++code) {
      all[code] = to_float(E4m3{static_cast<std::uint8_t>(code)});
    }
    return all;
  }();
  Bf16OfCode table;
  for (std::size_t code = 0; code < table.size(); ++code) table[code] = to_bf16(values[code] * scale);
  return table;
}

}  // namespace

Fp8Blocks read_quantization(const JsonFields& fields) {
  if (!fields.has("quantization_config")) return {};
  const JsonFields quantization = fields.object("quantization_config");
  if (quantization.has("qformat_weight")) {  // another of Mistral's formats
    quantization.unsupported("qformat_weight", quantization.at("qformat_weight"),
                             "must be absent: only FP8 with a scale a block is read, others would need their "
                             "own shapes of scales");
  }
  const std::string method = quantization.text("quant_method");
  if (method == "compressed-tensors") return read_compressed_tensors(quantization);
  if (method != "fp8") {
    quantization.unsupported(
        "quant_method", method,
        "must be fp8 or compressed-tensors with FP8 in blocks: another would need its own "
        "unpacking and scales");
  }
  const std::string format = quantization.text_or("fmt", "e4m3");
  if (format != "e4m3") {
    quantization.unsupported("fmt", format, "must be e4m3: another would need its own decoding");
  }
  if (!quantization.has("weight_block_size")) {
    quantization.unsupported("weight_block_size", nullptr,
                             "must be there: only FP8 with a scale a block is read, others would need their "
                             "own shapes of scales");
  }
  return read_blocks(quantization, "weight_block_size");
}

std::string find_scales(const Checkpoint& checkpoint, const std::string& weight) {
  constexpr std::string_view kWeight = "weight";
  const bool ends = weight.ends_with(kWeight);
  const std::string stem = ends ? weight.substr(0, weight.size() - kWeight.size()) : std::string();
  for (const std::string& name : {weight + "_scale_inv", weight + "_scale", stem + "qscale_weight"}) {
    if (checkpoint.contains(name)) return name;
  }
  return {};
}

void check_fp8(const Checkpoint& checkpoint, const std::string& weight,
               const std::vector<std::int64_t>& shape, const Fp8Blocks& blocks) {
  const auto refuse = [&](ErrorCode code, const auto&... rule) {
    fail(code, "weights", checkpoint.dir(), ": tensor \"", weight, "\" ", rule...);
  };
  if (checkpoint.info(weight).shape != shape) checkpoint.require_floats(weight, shape);  // throws
  if (blocks.rows == 0) {
    refuse(ErrorCode::kUnsupported,
           "is e4m3, and the config has no quantization_config that says how it is scaled");
  }
  if (shape.size() < 2) refuse(ErrorCode::kUnsupported, "must not be e4m3: it is not a matrix");
  const std::string scales = find_scales(checkpoint, weight);
  if (scales.empty()) {
    refuse(ErrorCode::kNotFound, "is e4m3 and must have scales, \"", weight,
           "_scale_inv\" or its like; it has none");
  }
  const TensorInfo& info = checkpoint.info(scales);
  const std::vector<std::int64_t> wanted = scale_shape(shape, blocks);
  if (info.shape != wanted) {
    fail(ErrorCode::kCorruptFile, "weights", checkpoint.dir(), ": tensor \"", scales, "\" must have shape ",
         to_text(wanted), ", a scale for ", blocks.rows, " x ", blocks.columns, " weights; got ",
         to_text(info.shape));
  }
  const bool readable = is_exponents(info) || info.dtype == DType::kF32 || info.dtype == DType::kBF16 ||
                        info.dtype == DType::kF16;
  if (!readable) {
    fail(ErrorCode::kCorruptFile, "weights", checkpoint.dir(), ": tensor \"", scales,
         "\" must be f32, bf16, f16 or exponents (F8_E8M0, U8); got ", to_string(info.dtype));
  }
}

bool stays_e4m3(const PlainOps& ops, const Fp8Blocks& blocks, std::int64_t out, std::int64_t in) {
  constexpr std::int64_t kOutsTogether = 8;  // products take outputs in such groups
  return blocks.rows == kWeightBlock && blocks.columns == kWeightBlock && in % kWeightBlock == 0 &&
         out % kOutsTogether == 0 && ops.prefers_e4m3(out, in);
}

std::optional<std::vector<float>> kept_scales(const PlainOps& ops, const Checkpoint& checkpoint,
                                              const std::string& weight, const Fp8Blocks& blocks, int parts) {
  const TensorInfo& info = checkpoint.info(weight);
  if (info.dtype != DType::kE4M3) return {};
  const std::int64_t rows = info.shape[info.shape.size() - 2];
  const bool blocks_end_with_parts = parts == 1 || rows % (parts * kWeightBlock) == 0;
  if (!blocks_end_with_parts || !stays_e4m3(ops, blocks, rows / parts, info.shape.back())) return {};
  return read_scales(checkpoint, find_scales(checkpoint, weight));
}

void refuse_nan(const Checkpoint& checkpoint, const std::string& weight, std::span<const std::byte> codes) {
  constexpr unsigned char kNan = 0x7f;  // or 0xff
  const auto* magnitudes = reinterpret_cast<const unsigned char*>(codes.data());
  unsigned char largest = 0;  // of all, and not the first that is found: so the loop becomes vector code
  for (std::size_t i = 0; i < codes.size(); ++i)
    largest = std::max(largest, static_cast<unsigned char>(magnitudes[i] & kNan));
  if (largest == kNan) {
    fail(ErrorCode::kCorruptFile, "weights", checkpoint.dir(), ": tensor \"", weight,
         "\" must be of numbers; got a NaN (e4m3 0x7f or 0xff)");
  }
}

Fp8Decoder::Fp8Decoder(const Checkpoint& checkpoint, const std::string& weight, const Fp8Blocks& blocks)
    : blocks_(blocks), scales_(read_scales(checkpoint, find_scales(checkpoint, weight))) {
  const std::vector<std::int64_t>& shape = checkpoint.info(weight).shape;
  SNAPMLA_ASSERT(shape.size() == 2 || shape.size() == 3);
  rows_ = shape[shape.size() - 2];
  columns_ = shape.back();
}

void Fp8Decoder::decode(std::int64_t first, std::span<const std::byte> codes,
                        std::vector<Bf16>& values) const {
  const std::int64_t scale_rows = (rows_ + blocks_.rows - 1) / blocks_.rows;
  const std::int64_t scale_columns = (columns_ + blocks_.columns - 1) / blocks_.columns;
  const std::int64_t end = first + std::ssize(codes) / columns_;
  values.resize(codes.size());
  constexpr std::int64_t kColumnsATask = 4;
  parallel_for(scale_columns, kColumnsATask, [&](std::int64_t column) {
    const std::int64_t left = column * blocks_.columns;
    const std::int64_t right = std::min(left + blocks_.columns, columns_);
    for (std::int64_t row = first; row < end;) {
      const std::int64_t in_matrix = row % rows_;
      const std::int64_t block_end =
          row + std::min(blocks_.rows - in_matrix % blocks_.rows, rows_ - in_matrix);
      const std::int64_t scale_row = row / rows_ * scale_rows + in_matrix / blocks_.rows;
      const Bf16OfCode value_of =
          values_in_block(scales_[static_cast<std::size_t>(scale_row * scale_columns + column)]);
      for (; row < std::min(block_end, end); ++row) {
        const std::int64_t at = (row - first) * columns_;
        for (std::int64_t j = at + left; j < at + right; ++j) {
          values[static_cast<std::size_t>(j)] =
              value_of[std::to_integer<std::size_t>(codes[static_cast<std::size_t>(j)])];
        }
      }
    }
  });
}

}  // namespace snapmla
