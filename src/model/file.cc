#include "model/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "core/check.h"

namespace snapmla {

InputFile::InputFile(const char* op, std::string path) : op_(op), path_(std::move(path)) {
  do {
    // Without O_NONBLOCK, a named pipe would wait for a writer.
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) {
    const bool missing = errno == ENOENT || errno == ENOTDIR;
    fail(missing ? ErrorCode::kNotFound : ErrorCode::kIo, op_, path_,
         ": cannot be opened: ", std::strerror(errno));
  }
  struct stat status {};
  const bool examined = ::fstat(fd_, &status) == 0;
  if (!examined || !S_ISREG(status.st_mode)) {
    const std::string rule = examined ? "is not a regular file" : std::strerror(errno);
    ::close(fd_);
    fail(ErrorCode::kIo, op_, path_, ": ", rule);
  }
  size_ = status.st_size;
}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : op_(other.op_), path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(op_, other.op_);
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  return *this;
}

void InputFile::read_at(void* dst, std::int64_t bytes, std::int64_t offset) const {
  constexpr std::int64_t kMostAtOnce = std::int64_t{1} << 30;  // Linux moves at most 2 GiB a call
  auto* to = static_cast<std::byte*>(dst);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd_, to, static_cast<std::size_t>(std::min(bytes, kMostAtOnce)), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(ErrorCode::kIo, op_, path_, ": read failed: ", std::strerror(errno));
    if (got == 0) {
      fail(ErrorCode::kIo, op_, path_, ": ends at byte ", offset, "; ", bytes, " more bytes must follow");
    }
    to += got;
    offset += got;
    bytes -= got;
  }
}

void InputFile::expect(std::int64_t bytes, std::int64_t offset) const noexcept {
  static_cast<void>(::posix_fadvise(fd_, offset, bytes, POSIX_FADV_WILLNEED));  // nothing is lost if it fails
}

std::string read_whole_file(const char* op, const std::string& path, std::int64_t most) {
  const InputFile file(op, path);
  if (file.size() > most) {
    fail(ErrorCode::kCorruptFile, op, path, ": must be at most ", most, " bytes; got ", file.size());
  }
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read_at(text.data(), file.size(), 0);
  return text;
}

bool file_exists(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0;
}

}  // namespace snapmla
