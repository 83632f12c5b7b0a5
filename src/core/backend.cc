#include "snapmla/backend.h"

#include "core/check.h"

namespace snapmla {

Backend& backend_by_name(std::string_view name) {
  if (name == "auto") return cuda().supported().ok && cuda().supports_models().ok ? cuda() : reference();
  SNAPMLA_REQUIRE(name == "reference" || name == "cuda", "backend",
                  "name must be auto, reference or cuda; got '", name, "'");
  Backend& backend = name == "cuda" ? cuda() : reference();
  if (const Support support = backend.supported(); !support.ok) {
    fail(ErrorCode::kUnsupported, "backend", name, " cannot run here: ", support.reason);
  }
  return backend;
}

}  // namespace snapmla
