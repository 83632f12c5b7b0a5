#include "terminal.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/check.h"

namespace snapmla::apps {
namespace {

volatile std::sig_atomic_t g_signal = 0;

extern "C" void note_signal(int signal) {
  g_signal = signal;
}

bool environment_says(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0';
}

bool utf8_locale() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    if (!environment_says(name)) continue;
    const std::string_view value = std::getenv(name);
    return value.find("UTF-8") != std::string_view::npos || value.find("utf8") != std::string_view::npos;
  }
  return false;
}

std::string padding(int width) {
  return std::string(static_cast<std::size_t>(std::max(width, 0)), ' ');
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = note_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // a second Ctrl-C must work even in a long step
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a file at its limit is then a write that fails
}

int pending_signal() noexcept {
  return g_signal;
}

void stop_if_asked() {
  if (g_signal != 0) throw Stop{.exit_code = 128 + g_signal};
}

void write_stdout(std::string_view text) {
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw Stop{};
  fail(ErrorCode::kIo, "stdout", "cannot write: ", std::strerror(errno));
}

std::string without_controls(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n' || c == '\t' || (byte >= 0x20U && byte != 0x7fU)) out += c;
  }
  return out;
}

std::string Style::wrap(std::string_view code, std::string_view text) const {
  if (!color_) return std::string(text);
  std::string out = "\x1b[";
  out.append(code).append("m").append(text).append("\x1b[0m");
  return out;
}

std::string Style::rule(int width) const {
  std::string line;
  for (int i = 0; i < width; ++i) line += unicode_ ? "─" : "-";
  return dim(line);
}

Style make_style(int file_descriptor, std::string_view color) {
  const bool terminal = isatty(file_descriptor) == 1;
  const bool automatic = terminal && !environment_says("NO_COLOR");
  return {color == "always" || (color == "auto" && automatic),
          (terminal || color == "always") && utf8_locale()};
}

int display_width(std::string_view text) {
  return static_cast<int>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }));
}

std::vector<int> Table::widths() const {
  std::vector<int> width(header_.size(), 0);
  const auto widen = [&width](const std::vector<std::string>& row) {
    for (std::size_t i = 0; i < width.size(); ++i) width[i] = std::max(width[i], display_width(row[i]));
  };
  widen(header_);
  for (const auto& row : rows_) widen(row);
  return width;
}

std::string Table::text(const Style& style) const {
  const std::vector<int> width = widths();
  const auto line = [&width](const std::vector<std::string>& row) {
    std::string out = row[0] + padding(width[0] - display_width(row[0]));
    for (std::size_t i = 1; i < width.size(); ++i) {
      out += "  " + padding(width[i] - display_width(row[i])) + row[i];
    }
    return out;
  };
  int total = 2 * static_cast<int>(width.size() - 1);
  for (const int w : width) total += w;
  std::string out = style.bold(line(header_)) + "\n" + style.rule(total) + "\n";
  for (const auto& row : rows_) out += line(row) + "\n";
  return out;
}

std::string Table::markdown() const {
  const auto line = [](const std::vector<std::string>& row) {
    std::string out = "|";
    for (const std::string& cell : row) out += " " + cell + " |";
    return out + "\n";
  };
  std::string out = line(header_) + "|---|";
  for (std::size_t i = 1; i < header_.size(); ++i) out += "---:|";
  out += "\n";
  for (const auto& row : rows_) out += line(row);
  return out;
}

}  // namespace snapmla::apps
