// What the program writes and when it must stop: styled text, tables, standard output, signals.
//
// Colour and line-drawing characters appear on a terminal only (and not where NO_COLOR is set); elsewhere the
// output is plain ASCII around the model's own text. A reader that goes away (a closed pipe) and Ctrl-C both
// end a command through Stop, so that engines are always torn down in order.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace snapmla::apps {

/// Leaves a command early without an error: 0 for a closed pipe, 128 + the signal's number for a signal.
struct Stop {
  int exit_code = 0;
};

/// SIGINT and SIGTERM set a flag (a second one kills), SIGPIPE is ignored.
void install_signal_handlers();
/// The signal that came, or 0.
int pending_signal() noexcept;
/// Throws Stop if a signal came.
void stop_if_asked();

/// Writes and flushes. Throws Stop{0} if the reader has gone, Error(kIo) if the write failed otherwise.
void write_stdout(std::string_view text);

/// Text of a model, safe to show on a terminal: control characters but line breaks and tabs are dropped, so
/// that no escape sequence gets through.
std::string without_controls(std::string_view text);

class Style {
 public:
  Style() = default;
  Style(bool color, bool unicode) : color_(color), unicode_(unicode) {}

  [[nodiscard]] std::string bold(std::string_view text) const { return wrap("1", text); }
  [[nodiscard]] std::string dim(std::string_view text) const { return wrap("2", text); }
  [[nodiscard]] std::string green(std::string_view text) const { return wrap("32", text); }
  [[nodiscard]] std::string red(std::string_view text) const { return wrap("31", text); }
  [[nodiscard]] std::string accent(std::string_view text) const { return wrap("1;36", text); }
  [[nodiscard]] std::string rule(int width) const;  ///< a horizontal line
  [[nodiscard]] std::string_view dot() const { return unicode_ ? " · " : " | "; }
  [[nodiscard]] bool color() const { return color_; }
  [[nodiscard]] bool unicode() const { return unicode_; }

 private:
  [[nodiscard]] std::string wrap(std::string_view code, std::string_view text) const;
  bool color_ = false;
  bool unicode_ = false;
};

/// `color`: "always", "never", or "auto" (a terminal, and NO_COLOR unset or empty).
Style make_style(int file_descriptor, std::string_view color);

/// Characters of UTF-8 text, taken as one column each.
int display_width(std::string_view text);

/// A table: first column left-aligned, the others right-aligned.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void add_row(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  [[nodiscard]] std::string text(const Style& style) const;
  [[nodiscard]] std::string markdown() const;

 private:
  [[nodiscard]] std::vector<int> widths() const;
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace snapmla::apps
