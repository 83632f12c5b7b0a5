// Runs a template's tree over its variables and collects what it prints.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "engine/jinja/syntax.h"

namespace snapmla::jinja {

/// `variables` is an object, `name` for error texts. Throws kInvalidArgument where the template meets what it cannot use
/// (or says so itself), kUnsupported for Jinja we do not have and for a template that asks for too much.
[[nodiscard]] std::string render(const Body& body, const nlohmann::ordered_json& variables,
                                 const std::string& name);

}  // namespace snapmla::jinja
