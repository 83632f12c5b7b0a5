// Runs the built program with arguments, environment and standard input, and returns what it said.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "support/temp_dir.h"

namespace snapmla::testing {

struct ProgramRun {
  std::vector<std::string> args;
  std::vector<std::string> environment{};  ///< "NAME=value", beside the caller's own
  std::string input{};
  std::string directory{};  ///< "": the caller's own
  int signal_after_ms = -1;
  int signal = SIGTERM;
  bool closed_stdout = false;  ///< standard output is a pipe that nobody reads
  long max_file_bytes = -1;    ///< no file of the program can grow beyond; -1: any can
};

struct ProgramResult {
  int exit_code = -1;  ///< -1: killed by a signal, or hung
  std::string out;
  std::string err;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// In the child: never returns.
[[noreturn]] inline void become_program(const ProgramRun& run, const std::string& folder) {
  const int in = open((folder + "/in").c_str(), O_RDONLY);
  int out = open((folder + "/out").c_str(), O_WRONLY | O_CREAT, 0600);
  const int err = open((folder + "/err").c_str(), O_WRONLY | O_CREAT, 0600);
  if (run.closed_stdout) {
    int ends[2] = {-1, -1};
    if (pipe(ends) != 0) _exit(126);
    close(ends[0]);
    out = ends[1];
  }
  if (run.max_file_bytes >= 0) {
    const rlimit limit{static_cast<rlim_t>(run.max_file_bytes), static_cast<rlim_t>(run.max_file_bytes)};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  dup2(in, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  if (!run.directory.empty() && chdir(run.directory.c_str()) != 0) _exit(126);
  for (const std::string& entry : run.environment) {
    const std::size_t equals = entry.find('=');
    setenv(entry.substr(0, equals).c_str(), entry.substr(equals + 1).c_str(), 1);
  }
  std::vector<std::string> words = run.args;
  words.insert(words.begin(), "snapmla");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(SNAPMLA_PROGRAM, argv.data());
  _exit(127);
}

inline ProgramResult run_program(const ProgramRun& run) {
  const TempDir folder;
  write_file(folder.file("in"), run.input);
  const pid_t child = fork();
  if (child == 0) become_program(run, folder.path());
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto limit = std::chrono::seconds(120);
  bool signalled = run.signal_after_ms < 0;
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    const auto elapsed = Clock::now() - start;
    if (!signalled && elapsed > std::chrono::milliseconds(run.signal_after_ms)) {
      kill(child, run.signal);
      signalled = true;
    }
    if (elapsed > limit) kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1,
          .out = read_file(folder.file("out")),
          .err = read_file(folder.file("err"))};
}

}  // namespace snapmla::testing
