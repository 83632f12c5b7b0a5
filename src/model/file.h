// A regular file, open for reading: errors that name it, and no waiting for what is no file.
#pragma once

#include <cstdint>
#include <string>

namespace snapmla {

/// Movable, not copyable. read_at() may run on several threads.
class InputFile {
 public:
  /// `op` begins the text of every error. Throws Error kNotFound, or kIo: it may not be read, or is not a
  /// regular file.
  InputFile(const char* op, std::string path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::int64_t size() const { return size_; }  ///< when it was opened

  /// Reads bytes from an offset on. Throws kIo, also if the file ends before.
  void read_at(void* dst, std::int64_t bytes, std::int64_t offset) const;

  /// Tells the system that these bytes are read soon: it begins to fetch them and does not wait.
  void expect(std::int64_t bytes, std::int64_t offset) const noexcept;

 private:
  const char* op_;
  std::string path_;
  int fd_ = -1;
  std::int64_t size_ = 0;
};

/// The whole text of a file. Throws as above, and kCorruptFile for a file of more than `most` bytes.
[[nodiscard]] std::string read_whole_file(const char* op, const std::string& path, std::int64_t most);

/// Whether there is anything of this name; it may be unreadable.
[[nodiscard]] bool file_exists(const std::string& path);

}  // namespace snapmla
