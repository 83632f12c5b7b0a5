#include "model/fp8_weights.h"

#include <array>
#include <cmath>
#include <string_view>

#include "core/bf16.h"
#include "core/check.h"
#include "core/e4m3.h"
#include "core/parallel.h"

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

struct Grid {
  std::int64_t matrices = 1;  ///< of a stack
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

Grid grid_of(const std::vector<std::int64_t>& shape) {
  SNAPMLA_ASSERT(shape.size() == 2 || shape.size() == 3);
  const std::size_t n = shape.size();
  return {.matrices = n == 3 ? shape[0] : 1, .rows = shape[n - 2], .columns = shape[n - 1]};
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
  if (checkpoint.info(weight).shape != shape)
    static_cast<void>(checkpoint.read_bf16(weight, shape));  // throws
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

std::vector<Bf16> read_fp8(const Checkpoint& checkpoint, const std::string& weight, const Fp8Blocks& blocks) {
  const Grid grid = grid_of(checkpoint.info(weight).shape);
  const std::vector<std::uint8_t> codes = checkpoint.read_bytes(weight);
  const std::vector<float> scales = read_scales(checkpoint, find_scales(checkpoint, weight));
  const std::int64_t scale_rows = (grid.rows + blocks.rows - 1) / blocks.rows;
  const std::int64_t scale_columns = (grid.columns + blocks.columns - 1) / blocks.columns;
  std::vector<Bf16> values(codes.size());
  parallel_for(grid.matrices * grid.rows, 64, [&](std::int64_t i) {
    const std::int64_t scale_row = i / grid.rows * scale_rows + i % grid.rows / blocks.rows;
    const float* scale = scales.data() + scale_row * scale_columns;
    for (std::int64_t j = 0; j < grid.columns; ++j) {
      const auto at = static_cast<std::size_t>(i * grid.columns + j);
      values[at] = to_bf16(to_float(E4m3{codes[at]}) * scale[j / blocks.columns]);
    }
  });
  return values;
}

}  // namespace snapmla
