// Files that commands write: whole at every moment, whatever stops the program.
#include "output_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "model_folder.h"
#include "run_program.h"
#include "snapmla/error.h"

namespace snapmla::testing {
namespace {

namespace fs = std::filesystem;
using apps::OutputFile;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    return error.what();
  }
  return "none";
}

TEST(OutputFile, ReplacesTheWholeTextAndLeavesNothingBeside) {
  const TempDir dir;
  const std::string path = dir.file("out.json");
  const OutputFile file("--json", path);
  EXPECT_FALSE(fs::exists(path)) << "trying leaves nothing behind";
  file.replace("a long first text");
  EXPECT_EQ(read_file(path), "a long first text");
  file.replace("second");
  EXPECT_EQ(read_file(path), "second");
  EXPECT_THAT(files_in(dir.path()), ::testing::ElementsAre("out.json"));
  struct stat status {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  const mode_t mask = umask(0);
  umask(mask);
  EXPECT_EQ(status.st_mode & 0777U, 0666U & ~mask);
}

TEST(OutputFile, FollowsALinkAndWritesWhatIsNoFileInPlace) {
  const TempDir dir;
  write_file(dir.file("real"), "old");
  fs::create_symlink("real", dir.file("link"));
  OutputFile("--json", dir.file("link")).replace("new");
  EXPECT_TRUE(fs::is_symlink(dir.file("link")));
  EXPECT_EQ(read_file(dir.file("real")), "new");

  OutputFile("--json", "/dev/null").replace("gone");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  OutputFile("--json", "").replace("nowhere");
}

TEST(OutputFile, NamesWhatCannotBeWrittenAndKeepsTheOldText) {
  const TempDir dir;
  EXPECT_THAT(error_of([&] { OutputFile("--json", dir.file("no/such/folder")); }),
              AllOf(StartsWith("[file] --json must be a file that can be written; got "),
                    HasSubstr("No such file or directory")));
  EXPECT_THAT(error_of([&] { OutputFile("--csv", dir.path()); }), HasSubstr("Is a directory"));
  EXPECT_THAT(error_of([] { OutputFile("--csv", "/dev/full").replace("text"); }),
              AllOf(HasSubstr("--csv: writing /dev/full failed"), HasSubstr("No space left on device")));

  const TempDir gone;
  const std::string path = gone.file("inner/out");
  fs::create_directory(gone.file("inner"));
  const OutputFile file("--json", path);
  fs::remove_all(gone.file("inner"));
  EXPECT_THAT(error_of([&] { file.replace("text"); }), HasSubstr("No such file or directory"));
}

std::vector<std::string> bench_args(const TempDir& dir) {
  std::vector<std::string> args{"bench", "kernel", "--backend", "reference", "--repeat", "1", "--heads", "2"};
  args.insert(args.end(), {"--seq-len", "64,128,192,256,320,384,448,512", "--batch", "1,2,3,4,5,6"});
  args.insert(args.end(), {"--json", dir.file("out.json"), "--csv", dir.file("out.csv")});
  return args;
}

TEST(OutputFile, KilledInTheMiddleABenchLeavesWholeFiles) {
  for (const int signal : {SIGTERM, SIGKILL}) {
    for (int ms = 0; ms < 600; ms += 75) {
      const TempDir dir;
      const ProgramResult result =
          run_program({.args = bench_args(dir), .signal_after_ms = ms, .signal = signal});
      std::vector<std::string> names = files_in(dir.path());
      // Nobody can clean up after SIGKILL; what is at the path is whole all the same.
      if (signal == SIGKILL)
        std::erase_if(names, [](const std::string& name) { return name.find(".tmp-") != std::string::npos; });
      for (const std::string& name : names) {
        const std::string text = read_file(dir.file(name));
        if (name == "out.json") {
          const auto json = nlohmann::json::parse(text, nullptr, false);
          EXPECT_TRUE(json.is_object() && json.contains("results")) << ms << " ms: " << text;
        } else {
          EXPECT_EQ(name, "out.csv") << ms << " ms";
          ASSERT_FALSE(text.empty());
          EXPECT_EQ(text.back(), '\n') << ms << " ms";
          const auto columns = [](std::string_view line) {
            return std::count(line.begin(), line.end(), ',');
          };
          const std::string last = text.substr(text.rfind('\n', text.size() - 2) + 1);
          EXPECT_EQ(columns(last), columns(text.substr(0, text.find('\n')))) << ms << " ms: " << last;
        }
      }
      EXPECT_TRUE(result.exit_code == 0 || result.exit_code == 128 + SIGTERM || result.exit_code == -1);
    }
  }
}

TEST(OutputFile, KilledInTheMiddleAnEvaluationKeepsTheOldFile) {
  const TempDir dir;
  const std::string model = make_model_folder(dir.file("model"));
  for (const int ms : {20, 200, 500}) {
    const TempDir out;
    write_file(out.file("old.json"), "{\"old\": 1}");
    const ProgramResult result = run_program(
        {.args = {"eval", model, "--tokens", "1M", "--max-context", "256", "--output", out.file("old.json")},
         .signal_after_ms = ms});
    EXPECT_TRUE(result.exit_code == 128 + SIGTERM || result.exit_code == -1)
        << result.exit_code << result.err;
    EXPECT_EQ(read_file(out.file("old.json")), "{\"old\": 1}");
    EXPECT_EQ(files_in(out.path()).size(), 1U);
  }
}

TEST(OutputFile, AFullDiskIsAnErrorAndKeepsTheLastWholeText) {
  const TempDir dir;
  const ProgramResult result = run_program({.args = bench_args(dir), .max_file_bytes = 2500});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err,
              AllOf(StartsWith("snapmla: error: [file] --json: writing "), HasSubstr("File too large")));
  EXPECT_GE(nlohmann::json::parse(read_file(dir.file("out.json"))).at("results").size(), 1U);
  EXPECT_THAT(files_in(dir.path()), ::testing::ElementsAre("out.csv", "out.json"));
}

}  // namespace
}  // namespace snapmla::testing
