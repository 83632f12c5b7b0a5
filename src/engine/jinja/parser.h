// Tokens to a tree: the statements and expressions of Jinja that chat templates use, with Jinja's precedence.
#pragma once

#include <string>
#include <string_view>

#include "engine/jinja/syntax.h"

namespace snapmla::jinja {

/// Throws kCorruptFile where the source is no Jinja, kUnsupported where it is Jinja we do not have; both name the line.
[[nodiscard]] Body parse(std::string_view source, const std::string& name);

}  // namespace snapmla::jinja
