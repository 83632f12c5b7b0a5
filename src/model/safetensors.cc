#include "model/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>

#include "core/bf16.h"
#include "core/check.h"

namespace snapmla {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kMaxHeaderBytes = 100'000'000;
constexpr int kMaxJsonDepth = 4;  // a header nests to 3, an index to 2

template <class... Parts>
[[noreturn]] void corrupt(const std::string& path, const Parts&... parts) {
  fail(ErrorCode::kCorruptFile, "safetensors", path, ": ", parts...);
}

// Text from a file as an error may show it: quoted, on one line, not endless.
std::string shown(std::string_view text) {
  constexpr std::size_t kMost = 200;
  std::string line = "\"";
  for (const char c : text.substr(0, kMost))
    line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return line + (text.size() > kMost ? "...\"" : "\"");
}

nlohmann::json parse_object(const std::string& path, const std::string& text, const char* what) {
  const auto shallow = [&](int depth, nlohmann::json::parse_event_t /*event*/, nlohmann::json& /*value*/) {
    if (depth > kMaxJsonDepth) corrupt(path, what, " must not nest deeper than ", kMaxJsonDepth);
    return true;
  };
  nlohmann::json object = nlohmann::json::parse(text, shallow, false);
  if (object.is_discarded()) corrupt(path, what, " must be JSON");
  if (!object.is_object()) corrupt(path, what, " must be a JSON object; got ", object.type_name());
  return object;
}

std::optional<std::int64_t> non_negative(const nlohmann::json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  const auto number = value.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return std::nullopt;
  return static_cast<std::int64_t>(number);
}

DType parse_dtype(const std::string& path, const std::string& tensor, const std::string& name) {
  static const std::map<std::string, DType> known = {
      {"F64", DType::kF64},   {"F32", DType::kF32},      {"F16", DType::kF16},
      {"BF16", DType::kBF16}, {"I64", DType::kI64},      {"I32", DType::kI32},
      {"U8", DType::kU8},     {"F8_E4M3", DType::kE4M3}, {"F8_E8M0", DType::kU8}};
  static const std::vector<std::string> others = {"BOOL", "I8", "I16",     "U16",     "U32",    "U64",
                                                  "C64",  "F4", "F6_E2M3", "F6_E3M2", "F8_E5M2"};
  if (const auto it = known.find(name); it != known.end()) return it->second;
  const bool valid = std::find(others.begin(), others.end(), name) != others.end();
  fail(valid ? ErrorCode::kUnsupported : ErrorCode::kCorruptFile, "safetensors", path, ": tensor ",
       shown(tensor), " dtype must be F64, F32, F16, BF16, I64, I32, U8, F8_E4M3 or F8_E8M0; got ",
       shown(name));
}

// Bytes of a tensor; nullopt if they overflow.
std::optional<std::int64_t> bytes_of(DType dtype, const std::vector<std::int64_t>& shape) {
  std::int64_t bytes = size_of(dtype);
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return bytes;
}

// Offsets are left as in the header: relative to the data.
TensorInfo parse_tensor(const std::string& path, const std::string& name, const nlohmann::json& entry) {
  const std::string tensor = "tensor " + shown(name);
  if (!entry.is_object()) corrupt(path, tensor, " must be a JSON object; got ", entry.type_name());
  const auto field = [&](const char* key) -> const nlohmann::json& {
    const auto it = entry.find(key);
    if (it == entry.end()) corrupt(path, tensor, ": field \"", key, "\" is missing");
    return *it;
  };
  TensorInfo info;
  const nlohmann::json& dtype = field("dtype");
  if (!dtype.is_string()) corrupt(path, tensor, " dtype must be a string; got ", dtype.type_name());
  info.dtype = parse_dtype(path, name, dtype.get_ref<const std::string&>());
  const nlohmann::json& shape = field("shape");
  if (!shape.is_array()) corrupt(path, tensor, " shape must be an array; got ", shape.type_name());
  for (const nlohmann::json& extent : shape) {
    const std::optional<std::int64_t> number = non_negative(extent);
    if (!number)
      corrupt(path, tensor, " shape must hold integers from 0 to 2^63 - 1; got ", shown(extent.dump()));
    info.shape.push_back(*number);
  }
  const nlohmann::json& offsets = field("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2 || !non_negative(offsets[0]) || !non_negative(offsets[1])) {
    corrupt(path, tensor, " data_offsets must be two integers from 0 to 2^63 - 1; got ",
            shown(offsets.dump()));
  }
  info.begin = *non_negative(offsets[0]);
  info.end = *non_negative(offsets[1]);
  const std::optional<std::int64_t> bytes = bytes_of(info.dtype, info.shape);
  if (info.begin > info.end || !bytes || *bytes != info.end - info.begin) {
    corrupt(path, tensor, " data_offsets must span its ", to_string(info.dtype), ' ', to_text(info.shape),
            ", ", bytes ? std::to_string(*bytes) : "over 2^63", " bytes; got [", info.begin, ", ", info.end,
            ']');
  }
  return info;
}

// The tensors must tile the data: no holes, no overlaps, nothing past the end of the file and nothing left
// over.
void check_layout(const std::string& path, const std::map<std::string, TensorInfo>& tensors,
                  std::int64_t data_bytes) {
  std::vector<std::pair<const std::string*, const TensorInfo*>> in_order;
  in_order.reserve(tensors.size());
  for (const auto& [name, info] : tensors) in_order.emplace_back(&name, &info);
  std::sort(in_order.begin(), in_order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  std::int64_t at = 0;
  for (const auto& [name, info] : in_order) {
    if (info->begin != at) {
      corrupt(path, "tensor ", shown(*name), " must begin where the one before ends, at ", at, "; got ",
              info->begin, info->begin < at ? " (overlap)" : " (hole)");
    }
    if (info->end > data_bytes) {
      corrupt(path, "tensor ", shown(*name), " must end within the file's ", data_bytes,
              " bytes of data; got ", info->end);
    }
    at = info->end;
  }
  if (at != data_bytes)
    corrupt(path, "the tensors must fill the file's ", data_bytes, " bytes of data; they end at ", at);
}

std::string path_in(const std::string& dir, const std::string& name) {
  return dir + '/' + name;
}

// The file that says what a checkpoint has, or empty.
std::string checkpoint_file(const std::string& dir) {
  for (const char* name : {"model.safetensors", "model.safetensors.index.json", "consolidated.safetensors",
                           "consolidated.safetensors.index.json"}) {
    if (file_exists(path_in(dir, name))) return name;
  }
  return {};
}

// tensor -> shard of an index file, shard names checked to be plain names of files beside it.
std::map<std::string, std::string> read_index(const std::string& path) {
  const nlohmann::json index =
      parse_object(path, read_whole_file("safetensors", path, kMaxHeaderBytes), "the index");
  const auto weights = index.find("weight_map");
  if (weights == index.end()) corrupt(path, "field \"weight_map\" is missing");
  if (!weights->is_object()) corrupt(path, "weight_map must be a JSON object; got ", weights->type_name());
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, shard] : weights->items()) {
    if (!shard.is_string()) {
      corrupt(path, "weight_map of ", shown(tensor), " must be a file name; got ", shard.type_name());
    }
    const auto& name = shard.get_ref<const std::string&>();
    const bool plain = !name.empty() && name != "." && name != ".." &&
                       name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
    if (!plain) {
      corrupt(path, "weight_map of ", shown(tensor), " must name a file in the same folder; got ",
              shown(name));
    }
    shard_of[tensor] = name;
  }
  return shard_of;
}

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U)
    return bits_to_float(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);  // infinity, NaN
  if (magnitude < 0x400U) {  // subnormal: steps of 2^-24, exact in fp32
    return bits_to_float(sign | float_to_bits(static_cast<float>(magnitude) * 0x1p-24F));
  }
  return bits_to_float(sign | ((magnitude << 13) + ((127U - 15U) << 23)));
}

// The elements of a float tensor, as they are stored, one by one as fp32: `convert(element index, value)`.
template <class Convert>
void for_each_value(DType dtype, std::span<const std::byte> stored, const Convert& convert) {
  const auto size = static_cast<std::size_t>(size_of(dtype));
  for (std::size_t i = 0; i < stored.size() / size; ++i) {
    if (dtype == DType::kF32) {
      float value = 0;
      std::memcpy(&value, stored.data() + i * size, size);
      convert(i, value);
    } else {
      std::uint16_t bits = 0;
      std::memcpy(&bits, stored.data() + i * size, size);
      convert(i, dtype == DType::kBF16 ? to_float(Bf16{bits}) : half_to_float(bits));
    }
  }
}

}  // namespace

std::string to_text(const std::vector<std::int64_t>& shape) {
  std::ostringstream text;
  text << '[';
  for (std::size_t i = 0; i < shape.size(); ++i) text << (i == 0 ? "" : ", ") << shape[i];
  text << ']';
  return text.str();
}

std::span<const Bf16> as_bf16(DType dtype, std::span<const std::byte> stored, std::vector<Bf16>& converted) {
  const std::size_t count = stored.size() / static_cast<std::size_t>(size_of(dtype));
  if (dtype == DType::kBF16) return {reinterpret_cast<const Bf16*>(stored.data()), count};
  converted.resize(count);
  for_each_value(dtype, stored, [&](std::size_t i, float value) { converted[i] = to_bf16(value); });
  return converted;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : file_("safetensors", path) {
  const std::int64_t file_bytes = file_.size();
  if (file_bytes < kLengthBytes) {
    corrupt(path, "must begin with an 8-byte header length; got ", file_bytes, " bytes");
  }
  std::uint64_t header_bytes = 0;
  file_.read_at(&header_bytes, kLengthBytes, 0);
  if (header_bytes > static_cast<std::uint64_t>(std::min(kMaxHeaderBytes, file_bytes - kLengthBytes))) {
    corrupt(path, "header length must be at most ", kMaxHeaderBytes, " and the ", file_bytes - kLengthBytes,
            " bytes that follow it; got ", header_bytes);
  }
  std::string text(header_bytes, '\0');
  file_.read_at(text.data(), static_cast<std::int64_t>(header_bytes), kLengthBytes);
  const nlohmann::json header = parse_object(path, text, "the header");
  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") tensors_.emplace(name, parse_tensor(path, name, entry));
  }
  const std::int64_t data_begin = kLengthBytes + static_cast<std::int64_t>(header_bytes);
  check_layout(path, tensors_, file_bytes - data_begin);
  for (auto& [name, info] : tensors_) {
    info.begin += data_begin;
    info.end += data_begin;
  }
}

void SafetensorsFile::read(const std::string& name, void* dst) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end())
    fail(ErrorCode::kNotFound, "safetensors", path(), ": has no tensor ", shown(name));
  file_.read_at(dst, it->second.end - it->second.begin, it->second.begin);
}

bool Checkpoint::is_in(const std::string& dir) {
  return !checkpoint_file(dir).empty();
}

Checkpoint::Checkpoint(const std::string& dir) : dir_(dir) {
  const std::string first = checkpoint_file(dir);
  if (first.empty()) {
    fail(ErrorCode::kNotFound, "safetensors", dir,
         ": must hold model.safetensors or model.safetensors.index.json (Mistral: consolidated.*); it holds "
         "neither");
  }
  const std::string index = path_in(dir, first);
  std::map<std::string, std::string> shard_of;
  std::vector<std::string> shards;
  if (first.ends_with(".json")) {
    shard_of = read_index(index);
    for (const auto& [tensor, shard] : shard_of) shards.push_back(shard);
    std::sort(shards.begin(), shards.end());
    shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  } else {
    shards.push_back(first);
  }
  for (const std::string& shard : shards) {
    files_.emplace_back(path_in(dir, shard));
    for (const auto& [tensor, info] : files_.back().tensors()) {
      const auto [it, added] = file_idx_of_.emplace(tensor, files_.size() - 1);
      if (!added) {
        corrupt(files_.back().path(), "tensor ", shown(tensor), " must be in one file only; it is in ",
                files_[it->second].path(), " too");
      }
    }
  }
  for (const auto& [tensor, shard] : shard_of) {
    const auto it = file_idx_of_.find(tensor);
    if (it == file_idx_of_.end() || files_[it->second].path() != path_in(dir, shard)) {
      corrupt(index, "weight_map says that tensor ", shown(tensor), " is in ", shown(shard), "; it is not");
    }
  }
}

bool Checkpoint::contains(const std::string& name) const {
  return file_idx_of_.contains(name);
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : file_idx_of_) names.push_back(name);
  return names;
}

const SafetensorsFile& Checkpoint::file_of(const std::string& name) const {
  const auto it = file_idx_of_.find(name);
  if (it == file_idx_of_.end()) {
    fail(ErrorCode::kNotFound, "safetensors", dir_, ": has no tensor ", shown(name));
  }
  return files_[it->second];
}

const TensorInfo& Checkpoint::info(const std::string& name) const {
  return file_of(name).tensors().at(name);
}

std::vector<std::uint8_t> Checkpoint::read_bytes(const std::string& name) const {
  const TensorInfo& found = info(name);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(found.end - found.begin));
  file_of(name).read(name, bytes.data());
  return bytes;
}

void Checkpoint::require_floats(const std::string& name, const std::vector<std::int64_t>& shape) const {
  const SafetensorsFile& file = file_of(name);
  const TensorInfo& found = info(name);
  if (found.shape != shape) {
    corrupt(file.path(), "tensor ", shown(name), " must have shape ", to_text(shape), "; got ",
            to_text(found.shape));
  }
  if (found.dtype != DType::kBF16 && found.dtype != DType::kF16 && found.dtype != DType::kF32) {
    corrupt(file.path(), "tensor ", shown(name), " must be bf16, f16 or f32; got ", to_string(found.dtype));
  }
}

std::vector<float> Checkpoint::read_f32(const std::string& name,
                                        const std::vector<std::int64_t>& shape) const {
  require_floats(name, shape);
  const DType dtype = info(name).dtype;
  const std::vector<std::uint8_t> stored = read_bytes(name);
  std::vector<float> values(stored.size() / static_cast<std::size_t>(size_of(dtype)));
  for_each_value(dtype, std::as_bytes(std::span(stored)),
                 [&](std::size_t i, float value) { values[i] = value; });
  return values;
}

}  // namespace snapmla
