// What evaluation shares: error texts with file and line, and the budget that keeps a hostile template from hanging or
// filling memory. Every step of the interpreter costs one; everything made costs its bytes. Nothing is given back, so
// the budget bounds memory too.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "engine/jinja/syntax.h"
#include "engine/jinja/value.h"

namespace snapmla::jinja {

/// The arguments of a call.
struct Arguments {
  std::vector<Value> positional{};
  Fields named{};

  /// The one at `index`, or called `name`; null if neither is there.
  [[nodiscard]] const Value* get(std::size_t index, std::string_view name) const {
    return index < positional.size() ? &positional[index] : find(named, name);
  }
};

class Runtime {
 public:
  static constexpr std::int64_t kSteps = 10'000'000;  ///< a second or two
  static constexpr std::int64_t kBytes = 64LL
                                         << 20U;  ///< and 32 times the input: far above what templates need

  Runtime(std::string name, std::size_t input_bytes)
      : name_(std::move(name)), bytes_left_(kBytes + 32 * static_cast<std::int64_t>(input_bytes)) {}

  void at_line(int line) { line_ = line; }
  [[nodiscard]] int line() const { return line_; }

  void step() {
    if (--steps_left_ < 0) refuse("the template takes too many steps");
  }
  void charge(std::size_t bytes) {
    bytes_left_ -= static_cast<std::int64_t>(bytes);
    if (bytes_left_ < 0) refuse("the template makes too much text");
  }

  [[nodiscard]] Value text(std::string text) {
    charge(text.size() + sizeof(Value));
    return text;
  }
  [[nodiscard]] Value list(List items, bool tuple = false) {
    int nesting = 0;
    for (const Value& item : items) nesting = std::max(nesting, item.nesting());
    charge((items.size() + 1) * sizeof(Value));
    check_nesting(nesting);
    return std::make_shared<ListObject>(
        ListObject{.items = std::move(items), .nesting = nesting + 1, .tuple = tuple});
  }
  [[nodiscard]] Value dict(Fields fields) {
    int nesting = 0;
    for (const auto& [key, value] : fields) {
      nesting = std::max(nesting, value.nesting());
      charge(key.size() + sizeof(Fields::value_type));
    }
    check_nesting(nesting);
    return std::make_shared<const DictObject>(
        DictObject{.fields = std::move(fields), .nesting = nesting + 1});
  }

  /// Of what a list, dict or namespace is to hold.
  void check_nesting(int nesting) const {
    if (nesting >= kMaxNesting)
      refuse("values nested too deeply, or a namespace or function inside another value, are not supported");
  }

  /// The template asks for what cannot be: kInvalidArgument.
  template <class... Parts>
  [[noreturn]] void error(const Parts&... parts) const {
    fail(ErrorCode::kInvalidArgument, "chat template", name_, ", line ", line_, ": ", parts...);
  }
  /// What Jinja has and we have not, or a limit: kUnsupported.
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(ErrorCode::kUnsupported, "chat template", name_, ", line ", line_, ": ", parts...);
  }

 private:
  std::string name_;
  int line_ = 0;
  std::int64_t steps_left_ = kSteps;
  std::int64_t bytes_left_;
};

struct Scope;

/// What can be called: a macro with the scope it was defined in, or a builtin by name with its object, if any.
struct Function {
  std::string name{};
  Value object{};
  const Statement* macro = nullptr;
  std::weak_ptr<Scope> scope{};
};

}  // namespace snapmla::jinja
