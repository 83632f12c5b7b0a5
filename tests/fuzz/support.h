// What the targets share: a folder in memory for readers that take paths, and a check that ends the program.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "support/temp_dir.h"

namespace snapmla::fuzz {

inline void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

/// A folder that lives as long as the program: where tests put theirs, so TMPDIR=/dev/shm keeps it in memory.
class Scratch {
 public:
  [[nodiscard]] const std::string& path() const { return dir_.path(); }
  void write(const char* name, std::string_view data) const { testing::write_file(dir_.file(name), data); }

 private:
  testing::TempDir dir_;
};

}  // namespace snapmla::fuzz
