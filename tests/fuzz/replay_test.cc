// Runs every fuzz target on its seeds and on what fuzzing found, and shows that a target sees what it is given.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <string>
#include <vector>

#include "fuzz/targets.h"

namespace snapmla::fuzz {

/// How a test's parameter is shown.
static void PrintTo(const Target& target, std::ostream* out) {
  *out << target.name;
}

namespace {

namespace fs = std::filesystem;
const fs::path kFolder = SNAPMLA_SOURCE_DIR "/tests/fuzz";

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<fs::path> inputs(const fs::path& folder) {
  std::vector<fs::path> paths;
  if (!fs::exists(folder)) return paths;
  for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

class Replay : public ::testing::TestWithParam<Target> {};

TEST_P(Replay, AcceptsItsSeeds) {
  const Target target = GetParam();
  ASSERT_FALSE(inputs(kFolder / "seeds" / target.name).empty());
  for (const fs::path& path : inputs(kFolder / "seeds" / target.name))
    EXPECT_TRUE(target.run(read_file(path))) << path;
}

TEST_P(Replay, SurvivesWhatFuzzingFound) {
  const Target target = GetParam();
  for (const fs::path& path : inputs(kFolder / "found" / target.name)) {
    SCOPED_TRACE(path.filename());
    EXPECT_NO_THROW(target.run(read_file(path)));
  }
}

TEST_P(Replay, EveryPrefixAndEveryChangedByteOfASeed) {
  const Target target = GetParam();
  for (const fs::path& path : inputs(kFolder / "seeds" / target.name)) {
    const std::string seed = read_file(path);
    SCOPED_TRACE(path.filename());
    const std::size_t stride = seed.size() / 200 + 1;
    for (std::size_t at = 0; at < seed.size(); at += stride) {
      EXPECT_NO_THROW(target.run(seed.substr(0, at)));
      std::string changed = seed;
      changed[at] = static_cast<char>(changed[at] ^ (1 << at % 8));
      EXPECT_NO_THROW(target.run(changed));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Replay, ::testing::ValuesIn(kTargets),
                         [](const auto& target) { return std::string(target.param.name); });

}  // namespace
}  // namespace snapmla::fuzz
