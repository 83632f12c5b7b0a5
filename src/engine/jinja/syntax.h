// A template as a tree. Every node knows its line; `height` bounds the recursion that walks and frees it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/jinja/value.h"

namespace snapmla::jinja {

inline constexpr int kMaxHeight = 200;

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    kLiteral,    ///< literal
    kName,       ///< name
    kList,       ///< parts
    kTuple,      ///< parts
    kDict,       ///< parts: key, value, key, value ...
    kAttribute,  ///< parts[0].name
    kItem,       ///< parts[0][parts[1]]
    kSlice,      ///< parts[0][parts[1]:parts[2]:parts[3]], absent ones null
    kCall,       ///< parts[0](parts[1] ..., named)
    kFilter,     ///< parts[0] | name(parts[1] ..., named)
    kTest,       ///< parts[0] is name(parts[1] ..., named)
    kUnary,      ///< name: "-", "+", "not"
    kBinary,     ///< name: "+", "-", "*", "/", "//", "%", "**", "~", "and", "or"
    kCompare,    ///< parts[0] ops[0] parts[1] ops[1] parts[2] ...
    kCondition   ///< parts[0] if parts[1] else parts[2] (null: undefined)
  };
  Kind kind = Kind::kLiteral;
  int line = 0;
  int height = 1;
  std::string name{};
  Value literal{};
  std::vector<ExpressionPtr> parts{};
  std::vector<std::pair<std::string, ExpressionPtr>> named{};
  std::vector<std::string> ops{};
};

struct Statement;
using Body = std::vector<Statement>;

/// {% if condition %} body
struct Branch {
  ExpressionPtr condition;
  Body body;
};

struct Statement {
  enum class Kind {
    kText,      ///< text
    kOutput,    ///< {{ value }}
    kFor,       ///< for targets in value if condition: body, else otherwise
    kIf,        ///< branches: (condition, body); otherwise
    kSet,       ///< targets = value, or targets[0].attribute = value
    kSetBlock,  ///< targets[0] = what body prints
    kMacro,     ///< targets[0](parameters): body
    kGroup,     ///< body: {% generation %}
    kBreak,
    kContinue
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text{};
  std::string attribute{};
  std::vector<std::string> targets{};
  ExpressionPtr value{};
  ExpressionPtr condition{};
  std::vector<Branch> branches{};
  std::vector<std::pair<std::string, ExpressionPtr>> parameters{};  ///< with default or null
  Body body{};
  Body otherwise{};
};

}  // namespace snapmla::jinja
