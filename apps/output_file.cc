#include "output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/check.h"

namespace snapmla::apps {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kReadWriteAll = 0666;  // less the umask

/// Where a link leads to; the path itself if there is nothing yet.
std::string resolve(const std::string& path) {
  std::error_code error;
  const fs::path target = fs::canonical(path, error);
  return error ? path : target.string();
}

bool in_place(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  return fs::exists(status) && !fs::is_regular_file(status);
}

/// An open file, closed at the end.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags)
      : fd_(::open(path.c_str(), O_WRONLY | O_CLOEXEC | flags, kReadWriteAll)) {}
  ~Descriptor() { close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  [[nodiscard]] bool ok() const { return fd_ >= 0; }
  [[nodiscard]] bool write(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t count = ::write(fd_, text.data(), text.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return false;
      text.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }
  [[nodiscard]] bool sync() const { return ::fsync(fd_) == 0; }
  bool close() { return fd_ < 0 || ::close(std::exchange(fd_, -1)) == 0; }

 private:
  int fd_;
};

std::string name_beside(const std::string& path) {
  return path + ".tmp-" + std::to_string(::getpid());
}

}  // namespace

OutputFile::OutputFile(std::string flag, std::string path) : flag_(std::move(flag)), path_(std::move(path)) {
  if (path_.empty()) return;
  path_ = resolve(path_);
  const std::string trial = in_place(path_) ? path_ : name_beside(path_);
  const Descriptor file(trial, in_place(path_) ? 0 : O_CREAT | O_EXCL);
  if (!file.ok()) {
    fail(ErrorCode::kIo, "file", flag_, " must be a file that can be written; got ", path_, ": ",
         std::strerror(errno));
  }
  if (trial != path_) ::unlink(trial.c_str());
}

void OutputFile::replace(std::string_view text) const {
  if (path_.empty()) return;
  const bool direct = in_place(path_);
  const std::string target = direct ? path_ : name_beside(path_);
  Descriptor file(target, direct ? 0 : O_CREAT | O_TRUNC);
  if (file.ok() && file.write(text) && (direct || file.sync()) && file.close() &&
      (direct || std::rename(target.c_str(), path_.c_str()) == 0)) {
    return;
  }
  const int error = errno;
  if (!direct) ::unlink(target.c_str());
  fail(ErrorCode::kIo, "file", flag_, ": writing ", path_, " failed: ", std::strerror(error));
}

}  // namespace snapmla::apps
