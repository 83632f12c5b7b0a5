// What `snapmla bench kernel` measures: lists from the command line, multiplied out to points.
//
// A point is one op on one shape with one cache format. Shapes come from three places: --shape names them one by
// one, --batch and --seq-len span a grid (with --heads and --s), and --ragged gives batches of unlike lengths.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "snapmla/format.h"

namespace snapmla::apps {

enum class BenchOp : std::uint8_t { kDecode, kQuantizeQ, kAppendKv, kFetchKv, kPlan };

/// "decode", "quantize_q", "append_kv", "fetch_kv", "plan".
const char* to_string(BenchOp op) noexcept;

/// Requests of one length.
struct RequestGroup {
  int requests = 1;
  int seq_len = 0;
};

/// What a call sees. An extent that an op does not have (heads of append_kv) is 0.
struct BenchShape {
  std::vector<RequestGroup> groups{};
  int s = 1;
  int heads = 0;

  [[nodiscard]] int batch() const;
  [[nodiscard]] std::int64_t num_tokens() const;  ///< cached tokens of all requests
  [[nodiscard]] int longest() const;
  [[nodiscard]] std::int64_t num_pages() const;
  [[nodiscard]] std::vector<std::int32_t> seq_lens() const;
  [[nodiscard]] std::string seq_len_text() const;  ///< "16384", or "1x131072+127x1024"
};

struct BenchPoint {
  BenchOp op = BenchOp::kDecode;
  BenchShape shape{};
  CacheFormat format = CacheFormat::kFp8;
};

/// As typed.
struct BenchLists {
  std::vector<std::string> ops{"decode"};
  std::vector<std::string> dtypes{"fp8", "bf16"};
  std::vector<int> batch{};    ///< empty: 128
  std::vector<int> seq_len{};  ///< empty: 16,384
  std::vector<int> heads{};    ///< empty: 128
  std::vector<int> s{};        ///< empty: 1
  std::vector<std::string> shapes{};
  std::vector<std::string> ragged{};
};

inline constexpr int kMaxPoints = 10000;

/// All points of the lists, those that differ only in what their op does not see taken once. Throws
/// CLI::ValidationError, naming the flag, on a shape that no call may have, or on more than kMaxPoints.
std::vector<BenchPoint> make_points(const BenchLists& lists);

/// "16384", "16k" or "1M" as a whole number from 1 to `most`; throws CLI::ValidationError naming `flag`.
int parse_size(const std::string& flag, std::string text, int most);

}  // namespace snapmla::apps
