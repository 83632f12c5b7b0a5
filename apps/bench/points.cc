#include "bench/points.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <utility>

#include "cli.h"
#include "snapmla/attention.h"

namespace snapmla::apps {
namespace {

constexpr int kMaxBatch = 4096;
constexpr int kDefaultBatch = 128;
constexpr int kDefaultSeqLen = 16384;
constexpr int kDefaultHeads = 128;
constexpr std::array kOps{BenchOp::kDecode, BenchOp::kQuantizeQ, BenchOp::kAppendKv, BenchOp::kFetchKv,
                          BenchOp::kPlan};

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(by, at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

std::vector<int> or_default(const std::vector<int>& list, int value) {
  return list.empty() ? std::vector<int>{value} : list;
}

/// "1x131072+127x1024".
BenchShape parse_ragged(const std::string& text) {
  BenchShape shape;
  for (const std::string& part : split(text, '+')) {
    const std::vector<std::string> numbers = split(part, 'x');
    if (numbers.size() != 2) {
      throw CLI::ValidationError(
          "--ragged", fmt::format("must be REQUESTSxSEQ_LEN+..., as 1x128k+127x1k; got '{}'", text));
    }
    shape.groups.push_back({.requests = parse_size("--ragged", numbers[0], kMaxBatch),
                            .seq_len = parse_size("--ragged", numbers[1], kMaxSeqLen)});
  }
  return shape;
}

/// "128x16kx128" or "128x16kx128x2".
BenchShape parse_shape(const std::string& text) {
  const std::vector<std::string> numbers = split(text, 'x');
  if (numbers.size() != 3 && numbers.size() != 4) {
    throw CLI::ValidationError(
        "--shape", fmt::format("must be BATCHxSEQ_LENxHEADS or BATCHxSEQ_LENxHEADSxS; got '{}'", text));
  }
  return {.groups = {{.requests = parse_size("--shape", numbers[0], kMaxBatch),
                      .seq_len = parse_size("--shape", numbers[1], kMaxSeqLen)}},
          .s = numbers.size() == 4 ? parse_size("--shape", numbers[3], kMaxRows) : 1,
          .heads = parse_size("--shape", numbers[2], kMaxHeads)};
}

void require_callable(const BenchShape& shape) {
  if (std::int64_t{shape.s} * shape.heads > kMaxRows) {
    throw CLI::ValidationError(
        "--s", fmt::format("s * heads must be at most {}; got {} * {}", kMaxRows, shape.s, shape.heads));
  }
  if (shape.batch() > kMaxBatch) {
    throw CLI::ValidationError(
        "--ragged", fmt::format("must be {} requests at most in all; got {}", kMaxBatch, shape.batch()));
  }
}

void require_number_of_points(double count) {
  if (count > kMaxPoints) {
    throw CLI::ValidationError(
        "--batch", fmt::format("the lists must make at most {} points; got {:.0f}", kMaxPoints, count));
  }
}

std::vector<BenchShape> make_shapes(const BenchLists& lists) {
  const std::vector<int> all_heads = or_default(lists.heads, kDefaultHeads);
  const std::vector<int> all_s = or_default(lists.s, 1);
  std::vector<BenchShape> batches;
  const bool grid = !lists.batch.empty() || !lists.seq_len.empty();
  if (grid || (lists.shapes.empty() && lists.ragged.empty())) {
    for (const int batch : or_default(lists.batch, kDefaultBatch)) {
      for (const int seq_len : or_default(lists.seq_len, kDefaultSeqLen)) {
        batches.push_back({.groups = {{.requests = batch, .seq_len = seq_len}}});
      }
    }
  }
  for (const std::string& text : lists.ragged) batches.push_back(parse_ragged(text));

  std::vector<BenchShape> shapes;
  for (const std::string& text : lists.shapes) shapes.push_back(parse_shape(text));
  for (const BenchShape& batch : batches) {
    for (const int heads : all_heads) {
      for (const int s : all_s) shapes.push_back({.groups = batch.groups, .s = s, .heads = heads});
    }
  }
  for (const BenchShape& shape : shapes) require_callable(shape);
  return shapes;
}

/// The point with the extents that its op does not see taken out.
BenchPoint seen_by(BenchOp op, BenchShape shape, CacheFormat format) {
  const bool has_rows = op == BenchOp::kDecode || op == BenchOp::kQuantizeQ || op == BenchOp::kPlan;
  if (!has_rows) shape.heads = 0;
  if (op == BenchOp::kFetchKv) shape.s = 1;
  if (op == BenchOp::kQuantizeQ || op == BenchOp::kAppendKv) {
    shape.groups = {{.requests = shape.batch(), .seq_len = 0}};
  }
  if (op == BenchOp::kQuantizeQ || op == BenchOp::kPlan) format = CacheFormat::kFp8;
  return {.op = op, .shape = std::move(shape), .format = format};
}

std::string key(const BenchPoint& point) {
  return fmt::format("{} {} {} {} {} {}", to_string(point.op), point.shape.batch(),
                     point.shape.seq_len_text(), point.shape.s, point.shape.heads, to_string(point.format));
}

}  // namespace

const char* to_string(BenchOp op) noexcept {
  switch (op) {
    case BenchOp::kDecode:
      return "decode";
    case BenchOp::kQuantizeQ:
      return "quantize_q";
    case BenchOp::kAppendKv:
      return "append_kv";
    case BenchOp::kFetchKv:
      return "fetch_kv";
    case BenchOp::kPlan:
      return "plan";
  }
  return "";
}

int BenchShape::batch() const {
  int sum = 0;
  for (const RequestGroup& group : groups) sum += group.requests;
  return sum;
}

std::int64_t BenchShape::num_tokens() const {
  std::int64_t sum = 0;
  for (const RequestGroup& group : groups) sum += std::int64_t{group.requests} * group.seq_len;
  return sum;
}

int BenchShape::longest() const {
  int most = 0;
  for (const RequestGroup& group : groups) most = std::max(most, group.seq_len);
  return most;
}

std::int64_t BenchShape::num_pages() const {
  std::int64_t sum = 0;
  for (const RequestGroup& group : groups) {
    sum += std::int64_t{group.requests} * ((group.seq_len + kPageTokens - 1) / kPageTokens);
  }
  return sum;
}

std::vector<std::int32_t> BenchShape::seq_lens() const {
  std::vector<std::int32_t> lens;
  for (const RequestGroup& group : groups) {
    lens.insert(lens.end(), static_cast<std::size_t>(group.requests), group.seq_len);
  }
  return lens;
}

std::string BenchShape::seq_len_text() const {
  if (groups.size() == 1) return fmt::format("{}", groups[0].seq_len);
  std::string text;
  for (const RequestGroup& group : groups) {
    text += fmt::format("{}{}x{}", text.empty() ? "" : "+", group.requests, group.seq_len);
  }
  return text;
}

int parse_size(const std::string& flag, std::string text, int most) {
  const std::string given = text;
  const std::string problem = human_size(1)(text);
  if (!problem.empty()) throw CLI::ValidationError(flag, problem);
  const std::int64_t size = std::stoll(text);
  if (size > most) throw CLI::ValidationError(flag, fmt::format("must be at most {}; got {}", most, given));
  return static_cast<int>(size);
}

std::vector<BenchPoint> make_points(const BenchLists& lists) {
  const auto extent = [](const std::vector<int>& list) {
    return static_cast<double>(std::max<std::size_t>(list.size(), 1));
  };
  const double kinds = static_cast<double>(lists.ops.size()) * static_cast<double>(lists.dtypes.size());
  const double batches =
      extent(lists.batch) * extent(lists.seq_len) + static_cast<double>(lists.ragged.size());
  require_number_of_points(
      kinds * (batches * extent(lists.heads) * extent(lists.s) + static_cast<double>(lists.shapes.size())));
  const std::vector<BenchShape> shapes = make_shapes(lists);
  std::vector<BenchPoint> points;
  std::set<std::string> seen;
  for (const BenchOp op : kOps) {
    if (std::find(lists.ops.begin(), lists.ops.end(), to_string(op)) == lists.ops.end()) continue;
    for (const BenchShape& shape : shapes) {
      for (const std::string& dtype : lists.dtypes) {
        BenchPoint point = seen_by(op, shape, dtype == "fp8" ? CacheFormat::kFp8 : CacheFormat::kBf16);
        if (seen.insert(key(point)).second) points.push_back(std::move(point));
      }
    }
  }
  return points;
}

}  // namespace snapmla::apps
