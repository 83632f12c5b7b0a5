// ReadAhead: every part, in order, of several files; what a file cut short gives; and parts that nobody takes.
#include "model/read_ahead.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "snapmla/error.h"
#include "support/temp_dir.h"

namespace snapmla {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Text whose every part is another.
std::string long_text(int size) {
  std::string text;
  while (static_cast<int>(text.size()) < size) text += std::to_string(text.size()) + ' ';
  return text.substr(0, static_cast<std::size_t>(size));
}

TEST(ReadAhead, GivesEveryPartInOrder) {
  const TempDir dir;
  const std::string text_a = long_text(100'000);
  const std::string text_b(300, 'b');
  testing::write_file(dir.file("a"), text_a);
  testing::write_file(dir.file("b"), text_b);
  const InputFile a("test", dir.file("a"));
  const InputFile b("test", dir.file("b"));
  std::vector<ReadAhead::Part> parts;
  std::vector<std::string> expected;
  for (std::size_t begin = 0; begin + 2000 < text_a.size();
       begin += 1777) {  // they overlap, and sizes go up and down
    const std::size_t bytes = begin % 2000;
    parts.push_back({&a, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(bytes)});
    expected.push_back(text_a.substr(begin, bytes));
    parts.push_back({&b, 299, 1});
    expected.emplace_back("b");
  }
  ASSERT_GT(parts.size(), 100U);
  ReadAhead ahead(parts);
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(text_of(ahead.next()), expected[i]) << i;
}

TEST(ReadAhead, AFileThatEndsEarlyIsAnErrorOfItsPartAndNotBefore) {
  const TempDir dir;
  testing::write_file(dir.file("short"), "0123456789");
  const InputFile file("test", dir.file("short"));
  ReadAhead ahead({{&file, 0, 4}, {&file, 4, 6}, {&file, 8, 6}, {&file, 0, 4}});
  EXPECT_EQ(text_of(ahead.next()), "0123");
  EXPECT_EQ(text_of(ahead.next()), "456789");
  for (int part = 2; part < 4; ++part) {  // nothing is read behind it
    try {
      ahead.next();
      ADD_FAILURE() << "no Error was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kIo);
      EXPECT_THAT(error.what(), HasSubstr("short: ends at byte 10; 4 more bytes must follow"));
    }
  }
}

TEST(ReadAhead, PartsThatNobodyTakesAreNotWaitedFor) {
  const TempDir dir;
  testing::write_file(dir.file("a"), long_text(1000));
  const InputFile file("test", dir.file("a"));
  for (int taken = 0; taken < 8; ++taken) {
    ReadAhead ahead(std::vector<ReadAhead::Part>(100, {&file, 10, 500}));
    for (int i = 0; i < taken; ++i) EXPECT_EQ(ahead.next().size(), 500U);
  }
  const ReadAhead nothing({});
}

}  // namespace
}  // namespace snapmla
