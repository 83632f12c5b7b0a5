// Checkpoints on a disk that does not do its part: files that may not be read, and files that are cut while
// they are read. Errors that name the file, never a signal and never half a model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <thread>

#include "engine/tokenizer.h"
#include "model/config.h"
#include "model/model.h"
#include "model/safetensors.h"
#include "snapmla/error.h"
#include "support/checkpoint.h"
#include "support/temp_dir.h"

namespace snapmla {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::TempDir;

/// What `call` throws in a process without root's rights, as "code: text"; "none" if nothing.
std::string error_of_nobody(const std::function<void()>& call) {
  int ends[2] = {-1, -1};
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    std::string text = "none";
    if (geteuid() == 0 && (setgid(kNobody) != 0 || setuid(kNobody) != 0)) _exit(1);
    try {
      call();
    } catch (const Error& error) {
      text = std::string(error.code() == ErrorCode::kIo ? "kIo: " : "another code: ") + error.what();
    }
    _exit(write(ends[1], text.data(), text.size()) < 0 ? 1 : 0);
  }
  close(ends[1]);
  std::string text(4096, '\0');
  const ssize_t count = read(ends[0], text.data(), text.size());
  close(ends[0]);
  waitpid(child, nullptr, 0);
  text.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  return text;
}

TEST(BadDisk, FilesThatMayNotBeReadAreNamed) {
  const TempDir dir;
  testing::write_checkpoint(dir.path(), testing::tiny_config());
  testing::write_file(dir.file("tokenizer.json"), "{}");
  fs::permissions(dir.path(), fs::perms(0755));
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"})
    fs::permissions(dir.file(name), fs::perms::none);
  EXPECT_THAT(error_of_nobody([&] { (void)load_config(dir.path()); }),
              AllOf(HasSubstr("kIo: "), HasSubstr("config.json"), HasSubstr("Permission denied")));
  EXPECT_THAT(error_of_nobody([&] { (void)Checkpoint(dir.path()); }),
              AllOf(HasSubstr("kIo: "), HasSubstr("model.safetensors"), HasSubstr("Permission denied")));
  EXPECT_THAT(error_of_nobody([&] { (void)Tokenizer::load(dir.path()); }),
              AllOf(HasSubstr("kIo: "), HasSubstr("tokenizer.json"), HasSubstr("Permission denied")));
}

TEST(BadDisk, WhatIsNoFileIsNotWaitedFor) {
  for (const char* name : {"config.json", "generation_config.json", "tokenizer.json"}) {
    const TempDir dir;
    testing::write_checkpoint(dir.path(), testing::tiny_config());
    std::error_code ignored;
    fs::remove(dir.file(name), ignored);
    ASSERT_EQ(mkfifo(dir.file(name).c_str(), 0600), 0);
    try {
      (void)load_config(dir.path());
      (void)Tokenizer::load(dir.path());
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kIo);
      EXPECT_THAT(error.what(), AllOf(HasSubstr(name), HasSubstr("is not a regular file")));
    }
  }
}

TEST(BadDisk, ACheckpointCutWhileItIsReadLoadsOrIsAnError) {
  const TempDir dir;
  testing::write_checkpoint(dir.path(), testing::tiny_config());
  const std::string whole = dir.file("whole");
  const std::string path = dir.file("model.safetensors");
  fs::rename(path, whole);
  const auto size = static_cast<std::int64_t>(fs::file_size(whole));
  std::mt19937_64 random(5);
  int num_errors = 0;
  for (int i = 0; i < 60 || (num_errors < 5 && i < 3000); ++i) {
    fs::copy_file(whole, path, fs::copy_options::overwrite_existing);
    const auto left = std::uniform_int_distribution<std::int64_t>(0, size - 1)(random);
    const std::chrono::microseconds delay(std::uniform_int_distribution<int>(0, 500)(random));
    std::thread cutter([&] {
      std::this_thread::sleep_for(delay);
      fs::resize_file(path, static_cast<std::uintmax_t>(left));
    });
    try {
      EXPECT_NE(Model::load(reference(), dir.path(), {.max_seq_len = 64}), nullptr);
    } catch (const Error& error) {
      ++num_errors;
      EXPECT_TRUE(error.code() == ErrorCode::kIo || error.code() == ErrorCode::kCorruptFile) << error.what();
      EXPECT_THAT(error.what(), HasSubstr("model.safetensors"));
    }
    cutter.join();
  }
  EXPECT_GE(num_errors, 5);
}

}  // namespace
}  // namespace snapmla
