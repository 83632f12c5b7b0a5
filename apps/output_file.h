// A file that a command writes its results to. What stands at its path is whole at every moment: the old text
// or the new one, never a part, whatever stops the program.
#pragma once

#include <string>
#include <string_view>

namespace snapmla::apps {

class OutputFile {
 public:
  /// Tries whether `path` can be written and leaves it as it is, so that a wrong path is known before the work.
  /// Throws Error(kIo) naming `flag`. An empty path: nothing is ever written.
  OutputFile(std::string flag, std::string path);

  /// The file's text is `text` from now on. It is written beside the file, synced and renamed over it; only
  /// what is no regular file (a pipe, /dev/stdout) is written in place. Throws Error(kIo); the old text then
  /// stays.
  void replace(std::string_view text) const;

 private:
  std::string flag_;
  std::string path_;
};

}  // namespace snapmla::apps
