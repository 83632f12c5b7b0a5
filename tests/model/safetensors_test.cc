// The safetensors reader: what a valid file gives, what each wrong one gets, and that no damage to a file
// ever leads to anything but a load or an Error.
#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>

#include "core/bf16.h"
#include "snapmla/error.h"
#include "support/temp_dir.h"

namespace snapmla {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string le64(std::uint64_t value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::string file_of(const std::string& header, const std::string& data) {
  return le64(header.size()) + header + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         '}';
}

// The one-line error of opening a file with this content.
Error error_of(const std::string& content) {
  const testing::TempDir dir;
  testing::write_file(dir.file("x.safetensors"), content);
  try {
    const SafetensorsFile file(dir.file("x.safetensors"));
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("x.safetensors: "));
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error;
  }
  ADD_FAILURE() << "opened: " << content;
  return {ErrorCode::kInternal, ""};
}

TEST(Safetensors, ReadsTensorsInAnyOrderBesideMetadata) {
  const testing::TempDir dir;
  const std::string data =
      bytes_of<float>({1.5F, -2, 3}) + bytes_of<std::uint16_t>({0x3f80, 0xc000}) + "\x07";
  testing::write_file(
      dir.file("a.safetensors"),
      file_of("{" + entry("z", "U8", "[1]", "[16,17]") + R"(,"__metadata__":{"format":"pt"},)" +
                  entry("b", "BF16", "[2]", "[12,16]") + "," + entry("a", "F32", "[1,3]", "[0,12]") + "," +
                  entry("none", "F16", "[0,4]", "[12,12]") + "}   ",
              data));
  SafetensorsFile opened(dir.file("a.safetensors"));
  const SafetensorsFile file = std::move(opened);
  ASSERT_EQ(file.tensors().size(), 4U);
  EXPECT_EQ(file.tensors().at("a").dtype, DType::kF32);
  EXPECT_THAT(file.tensors().at("a").shape, ElementsAre(1, 3));
  std::array<float, 3> a{};
  file.read("a", a.data());
  EXPECT_THAT(a, ElementsAre(1.5F, -2, 3));
  std::array<std::uint16_t, 2> b{};
  file.read("b", b.data());
  EXPECT_THAT(b, ElementsAre(0x3f80, 0xc000));
  std::uint8_t z = 0;
  file.read("z", &z);
  EXPECT_EQ(z, 7);
  file.read("none", nullptr);
  try {
    file.read("missing", nullptr);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_THAT(error.what(), HasSubstr("has no tensor \"missing\""));
  }
}

TEST(Safetensors, KnowsEveryDtypeOfOurs) {
  const std::vector<std::pair<std::string, DType>> all = {
      {"F64", DType::kF64}, {"F32", DType::kF32}, {"F16", DType::kF16}, {"BF16", DType::kBF16},
      {"I64", DType::kI64}, {"I32", DType::kI32}, {"U8", DType::kU8},   {"F8_E4M3", DType::kE4M3}};
  const testing::TempDir dir;
  for (const auto& [name, dtype] : all) {
    const auto size = static_cast<std::size_t>(size_of(dtype));
    testing::write_file(dir.file("x"),
                        file_of("{" + entry("t", name, "[]", "[0," + std::to_string(size) + "]") + "}",
                                std::string(size, '\0')));
    EXPECT_EQ(SafetensorsFile(dir.file("x")).tensors().at("t").dtype, dtype) << name;
  }
}

TEST(Safetensors, RefusesWrongHeaders) {
  struct Case {
    const char* what;
    std::string content;
    const char* text;
    ErrorCode code = ErrorCode::kCorruptFile;
  };
  const std::string eight(8, '\0');
  const auto one = [&](const char* dtype, const char* shape, const char* offsets) {
    return file_of("{" + entry("w", dtype, shape, offsets) + "}", eight);
  };
  const std::vector<Case> cases = {
      {"empty", "", "8-byte header length; got 0 bytes"},
      {"short length", "1234567", "8-byte header length; got 7 bytes"},
      {"length past the end", le64(100) + "{}", "2 bytes that follow it; got 100"},
      {"length near 2^64", le64(~0ULL) + "{}", "got 18446744073709551615"},
      {"no JSON", file_of("{\"a\":", ""), "the header must be JSON"},
      {"invalid UTF-8", file_of("{\"\xff\":1}", ""), "the header must be JSON"},
      {"number out of range", file_of("{\"a\":1e999}", ""), "the header must be JSON"},
      {"empty header", file_of("", ""), "the header must be JSON"},
      {"array", file_of("[]", ""), "the header must be a JSON object; got array"},
      {"deep", file_of(std::string(100000, '[') + std::string(100000, ']'), ""),
       "must not nest deeper than 4"},
      {"entry not an object", file_of(R"({"w":3})", ""), "tensor \"w\" must be a JSON object; got number"},
      {"no dtype", file_of(R"({"w":{"shape":[],"data_offsets":[0,0]}})", ""), "field \"dtype\" is missing"},
      {"no shape", file_of(R"({"w":{"dtype":"U8","data_offsets":[0,0]}})", ""), "field \"shape\" is missing"},
      {"no offsets", file_of(R"({"w":{"dtype":"U8","shape":[]}})", ""), "field \"data_offsets\" is missing"},
      {"dtype not a string", file_of(R"({"w":{"dtype":1,"shape":[],"data_offsets":[0,0]}})", ""),
       "tensor \"w\" dtype must be a string; got number"},
      {"unknown dtype", one("F7", "[8]", "[0,8]"), "tensor \"w\" dtype must be F64, F32"},
      {"dtype of another reader", one("BOOL", "[8]", "[0,8]"), "got \"BOOL\"", ErrorCode::kUnsupported},
      {"shape not an array", one("F32", "2", "[0,8]"), "tensor \"w\" shape must be an array; got number"},
      {"negative extent", one("F32", "[-2]", "[0,8]"), "integers from 0 to 2^63 - 1; got \"-2\""},
      {"fractional extent", one("F32", "[2.0]", "[0,8]"), "integers from 0 to 2^63 - 1; got \"2.0\""},
      {"extent of 2^63", one("F32", "[9223372036854775808]", "[0,8]"), "integers from 0 to 2^63 - 1"},
      {"extents overflow", one("F32", "[4294967296,4294967296]", "[0,0]"), "over 2^63"},
      {"extents overflow to 8", one("F64", "[2305843009213693953]", "[0,8]"), "over 2^63"},
      {"offsets not two", one("F32", "[2]", "[0]"), "data_offsets must be two integers"},
      {"negative offset", one("F32", "[2]", "[-8,0]"), "data_offsets must be two integers"},
      {"offsets reversed", one("F32", "[2]", "[8,0]"),
       "data_offsets must span its f32 [2], 8 bytes; got [8, 0]"},
      {"offsets and shape differ", one("F32", "[3]", "[0,8]"),
       "data_offsets must span its f32 [3], 12 bytes"},
      {"offsets and dtype differ", one("F16", "[2]", "[0,8]"), "data_offsets must span its f16 [2], 4 bytes"},
      {"data cut short", one("F32", "[4]", "[0,16]"), "must end within the file's 8 bytes of data; got 16"},
      {"data left over", one("U8", "[7]", "[0,7]"), "must fill the file's 8 bytes of data; they end at 7"},
      {"data without tensors", file_of("{}", eight), "must fill the file's 8 bytes of data; they end at 0"},
      {"hole",
       file_of("{" + entry("a", "U8", "[3]", "[0,3]") + "," + entry("b", "U8", "[4]", "[4,8]") + "}", eight),
       "tensor \"b\" must begin where the one before ends, at 3; got 4 (hole)"},
      {"hole before all", one("U8", "[7]", "[1,8]"), "at 0; got 1 (hole)"},
      {"overlap",
       file_of("{" + entry("a", "U8", "[5]", "[0,5]") + "," + entry("b", "U8", "[4]", "[4,8]") + "}", eight),
       "tensor \"b\" must begin where the one before ends, at 5; got 4 (overlap)"},
      {"same range twice",
       file_of("{" + entry("a", "U8", "[8]", "[0,8]") + "," + entry("b", "U8", "[8]", "[0,8]") + "}", eight),
       "(overlap)"},
      {"name with a line break", file_of(R"({"a\nb":3})", ""), "tensor \"a?b\" must be a JSON object"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    const Error error = error_of(c.content);
    EXPECT_EQ(error.code(), c.code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(c.text));
  }
}

TEST(Safetensors, RefusesHeadersOver100Megabytes) {
  const testing::TempDir dir;
  const std::string path = dir.file("x.safetensors");
  testing::write_file(path, le64(100'000'001));
  std::filesystem::resize_file(path, 200'000'000);  // sparse
  try {
    const SafetensorsFile file(path);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorruptFile);
    EXPECT_THAT(error.what(), HasSubstr("header length must be at most 100000000"));
  }
}

TEST(Safetensors, RefusesWhatIsNoFile) {
  const testing::TempDir dir;
  ASSERT_EQ(mkfifo(dir.file("pipe").c_str(), 0600), 0);
  const std::vector<std::pair<std::string, ErrorCode>> cases = {{dir.file("missing"), ErrorCode::kNotFound},
                                                                {dir.path(), ErrorCode::kIo},
                                                                {dir.file("pipe"), ErrorCode::kIo}};
  for (const auto& [path, code] : cases) {
    try {
      const SafetensorsFile file(path);
      ADD_FAILURE() << path;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_THAT(error.what(), HasSubstr(path));
    }
  }
}

TEST(Safetensors, FileCutAfterOpeningIsAnError) {
  const testing::TempDir dir;
  const std::string path = dir.file("x.safetensors");
  testing::write_file(path, file_of("{" + entry("w", "F32", "[2]", "[0,8]") + "}", std::string(8, '\1')));
  const SafetensorsFile file(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  std::array<float, 2> w{};
  try {
    file.read("w", w.data());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_THAT(error.what(), HasSubstr("1 more bytes must follow"));
  }
}

TEST(Safetensors, DamageLoadsOrThrows) {
  const int memory =
      memfd_create("x.safetensors", MFD_CLOEXEC);  // writing 4,000 files to a disk takes a while
  ASSERT_GE(memory, 0);
  const std::string path = "/proc/self/fd/" + std::to_string(memory);
  const std::string valid =
      file_of("{" + entry("a", "F32", "[2,2]", "[0,16]") + R"(,"__metadata__":{"k":"v"},)" +
                  entry("b", "BF16", "[4]", "[16,24]") + "}  ",
              std::string(24, '\x3f'));
  testing::write_file(path, valid);
  ASSERT_EQ(SafetensorsFile(path).tensors().size(), 2U);
  std::mt19937 random(20);
  int loaded = 0;
  int refused = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string damaged = valid;
    const auto changes = 1 + random() % 3;
    for (std::size_t c = 0; c < changes; ++c) {
      const std::size_t at = random() % damaged.size();
      switch (random() % 4) {
        case 0:
          damaged[at] = static_cast<char>(random());
          break;
        case 1:
          damaged[at] = static_cast<char>(damaged[at] ^ (1 << random() % 8));
          break;
        case 2:
          damaged[at] = "0123456789[]{},:\"-"[random() % 18];
          break;
        default:
          damaged.resize(at + 1);
      }
    }
    testing::write_file(path, damaged);
    try {
      const SafetensorsFile file(path);
      for (const auto& [name, info] : file.tensors()) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(info.end - info.begin));
        file.read(name, bytes.data());
      }
      ++loaded;
    } catch (const Error&) {
      ++refused;
    }
  }
  close(memory);
  EXPECT_GT(loaded, 100);  // damage to the data, the metadata or a name is not visible
  EXPECT_GT(refused, 1000);
}

class CheckpointTest : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& content) {
    testing::write_file(dir_.file(name), content);
  }
  void write_shard(const std::string& name, const std::string& tensor) {
    write(name, file_of("{" + entry(tensor, "U8", "[1]", "[0,1]") + "}", "\1"));
  }
  void write_index(const std::string& weight_map) {
    write("model.safetensors.index.json", R"({"metadata":{"total_size":2},"weight_map":)" + weight_map + "}");
  }
  void expect_error(ErrorCode code, const std::string& text) {
    try {
      const Checkpoint checkpoint(dir_.path());
      ADD_FAILURE() << "opened; expected: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_THAT(error.what(), HasSubstr(text));
    }
  }

  testing::TempDir dir_;
};

TEST_F(CheckpointTest, ReadsShards) {
  write_shard("one.safetensors", "b");
  write_shard("two.safetensors", "a");
  write_index(R"({"a":"two.safetensors","b":"one.safetensors"})");
  const Checkpoint checkpoint(dir_.path());
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b"));
  EXPECT_TRUE(checkpoint.contains("a"));
  EXPECT_FALSE(checkpoint.contains("c"));
  EXPECT_EQ(checkpoint.info("b").dtype, DType::kU8);
  EXPECT_THROW((void)checkpoint.info("c"), Error);
}

TEST_F(CheckpointTest, PrefersTheSingleFile) {
  write_shard("model.safetensors", "a");
  write_index("[]");
  EXPECT_THAT(Checkpoint(dir_.path()).names(), ElementsAre("a"));
}

TEST_F(CheckpointTest, RefusesWrongFolders) {
  expect_error(ErrorCode::kNotFound, "must hold model.safetensors or model.safetensors.index.json");
  write_shard("one.safetensors", "a");
  write_shard("two.safetensors", "a");
  write("model.safetensors.index.json", "{");
  expect_error(ErrorCode::kCorruptFile, "the index must be JSON");
  write("model.safetensors.index.json", "{}");
  expect_error(ErrorCode::kCorruptFile, "field \"weight_map\" is missing");
  write_index("[]");
  expect_error(ErrorCode::kCorruptFile, "weight_map must be a JSON object; got array");
  write_index(R"({"a":1})");
  expect_error(ErrorCode::kCorruptFile, "weight_map of \"a\" must be a file name; got number");
  write_index(R"({"a":"three.safetensors"})");
  expect_error(ErrorCode::kNotFound, "three.safetensors: cannot be opened");
  write_index(R"({"b":"one.safetensors"})");
  expect_error(ErrorCode::kCorruptFile,
               "weight_map says that tensor \"b\" is in \"one.safetensors\"; it is not");
  write_index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  expect_error(ErrorCode::kCorruptFile, "tensor \"a\" must be in one file only");
  std::filesystem::create_directory(dir_.file("model.safetensors"));
  expect_error(ErrorCode::kIo, "is not a regular file");
}

TEST_F(CheckpointTest, RefusesShardsOutsideTheFolder) {
  for (const char* name :
       {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "a\\\\b", "x\\u0000"}) {
    write_index(R"({"a":")" + std::string(name) + "\"}");
    expect_error(ErrorCode::kCorruptFile, "must name a file in the same folder");
  }
}

TEST_F(CheckpointTest, ConvertsF16Exactly) {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  write("model.safetensors",
        file_of("{" + entry("h", "F16", "[256,256]", "[0,131072]") + "}", bytes_of(halves)));
  const Checkpoint checkpoint(dir_.path());
  const std::vector<float> f32 = checkpoint.read_f32("h", {256, 256});
  std::vector<Bf16> converted;
  const std::span<const Bf16> bf16 = as_bf16(DType::kF16, std::as_bytes(std::span(halves)), converted);
  ASSERT_EQ(bf16.size(), halves.size());
  for (std::size_t i = 0; i < halves.size(); ++i) {
    const auto exponent = static_cast<int>(i >> 10 & 31);
    const auto mantissa = static_cast<double>(i & 1023);
    const double sign = (i & 0x8000) != 0 ? -1 : 1;
    double expected = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) {
      expected =
          mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    }
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(f32[i]) && std::isnan(to_float(bf16[i]))) << i;
      continue;
    }
    ASSERT_EQ(f32[i], sign * expected) << i;
    ASSERT_EQ(std::signbit(f32[i]), sign < 0) << i;
    ASSERT_EQ(bf16[i].bits, to_bf16(f32[i]).bits) << i;
  }
}

TEST_F(CheckpointTest, ConvertsF32AndBf16) {
  // 1 + 2^-8 and 1 + 3 * 2^-8 lie halfway between bf16 numbers: to the even one, down and up.
  const std::vector<float> values = {1.0F, 1.00390625F, 1.01171875F, -1e30F, 1e-40F};
  const std::vector<std::uint16_t> stored = {0x3f80, 0x8001, 0x7f80, 0x4049};
  write("model.safetensors",
        file_of("{" + entry("f", "F32", "[5]", "[0,20]") + "," + entry("b", "BF16", "[2,2]", "[20,28]") + "}",
                bytes_of(values) + bytes_of(stored)));
  const Checkpoint checkpoint(dir_.path());
  EXPECT_EQ(checkpoint.read_f32("f", {5}), values);
  std::vector<Bf16> converted;
  const std::span<const Bf16> f = as_bf16(DType::kF32, std::as_bytes(std::span(values)), converted);
  ASSERT_EQ(f.size(), values.size());
  EXPECT_EQ(f[1].bits, 0x3f80);
  EXPECT_EQ(f[2].bits, 0x3f82);
  const std::vector<std::uint8_t> raw = checkpoint.read_bytes("b");
  const std::span<const Bf16> b = as_bf16(DType::kBF16, std::as_bytes(std::span(raw)), converted);
  const std::vector<float> wide = checkpoint.read_f32("b", {2, 2});
  for (std::size_t i = 0; i < stored.size(); ++i) {
    EXPECT_EQ(b[i].bits, stored[i]);
    EXPECT_EQ(float_to_bits(wide[i]), std::uint32_t{stored[i]} << 16);
  }
}

TEST_F(CheckpointTest, RefusesWrongShapesAndDtypes) {
  write("model.safetensors",
        file_of("{" + entry("w", "BF16", "[2,3]", "[0,12]") + "," + entry("i", "I32", "[2]", "[12,20]") + "}",
                std::string(20, '\0')));
  const Checkpoint checkpoint(dir_.path());
  const auto text_of = [&](const char* name, const std::vector<std::int64_t>& shape) -> std::string {
    try {
      checkpoint.require_floats(name, shape);
    } catch (const Error& error) {
      const bool missing = std::string(name) == "none";
      EXPECT_EQ(error.code(), missing ? ErrorCode::kNotFound : ErrorCode::kCorruptFile);
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(text_of("w", {3, 2}),
              HasSubstr("model.safetensors: tensor \"w\" must have shape [3, 2]; got [2, 3]"));
  EXPECT_THAT(text_of("w", {6}), HasSubstr("must have shape [6]; got [2, 3]"));
  EXPECT_THAT(text_of("i", {2}), HasSubstr("tensor \"i\" must be bf16, f16 or f32; got int32"));
  EXPECT_THAT(text_of("none", {2}), HasSubstr(dir_.path() + ": has no tensor \"none\""));
  EXPECT_EQ(text_of("w", {2, 3}), "accepted");
  EXPECT_THROW((void)checkpoint.read_f32("w", {6}), Error);
}

}  // namespace
}  // namespace snapmla
