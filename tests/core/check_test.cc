// The check macros and the names of the error codes.
#include "core/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace snapmla {
namespace {

TEST(Check, RequireNamesOpRuleAndValues) {
  SNAPMLA_REQUIRE(true, "plan", "never");
  try {
    SNAPMLA_REQUIRE(1 > 2, "plan", "batch must be positive; got ", -3, " of ", 4.5);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "[plan] batch must be positive; got -3 of 4.5");
  }
}

TEST(Check, AssertIsInternalAndNamesTheCondition) {
  SNAPMLA_ASSERT(true);
  try {
    SNAPMLA_ASSERT(2 + 2 == 5);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("check_test.cc:"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("2 + 2 == 5"));
  }
}

TEST(ErrorCode, NamesAreDistinct) {
  EXPECT_STREQ(to_string(ErrorCode::kInvalidArgument), "invalid_argument");
  EXPECT_STREQ(to_string(ErrorCode::kNotFound), "not_found");
  EXPECT_STREQ(to_string(ErrorCode::kCorruptFile), "corrupt_file");
  EXPECT_STREQ(to_string(ErrorCode::kUnsupported), "unsupported");
  EXPECT_STREQ(to_string(ErrorCode::kIo), "io");
  EXPECT_STREQ(to_string(ErrorCode::kOutOfMemory), "out_of_memory");
  EXPECT_STREQ(to_string(ErrorCode::kDevice), "device");
  EXPECT_STREQ(to_string(ErrorCode::kInternal), "internal");
}

}  // namespace
}  // namespace snapmla
