#include "engine/jinja/expressions.h"

#include <array>
#include <charconv>

namespace snapmla::jinja {

ExpressionPtr ExpressionParser::make(Kind kind, std::string name, std::vector<ExpressionPtr> parts) {
  auto out = std::make_unique<Expression>();
  out->kind = kind;
  out->line = now().line;
  out->name = std::move(name);
  for (ExpressionPtr& part : parts) add_part(*out, std::move(part));
  return out;
}
void ExpressionParser::add_part(Expression& out, ExpressionPtr part) {
  grow(out, part);
  out.parts.push_back(std::move(part));
}
void ExpressionParser::grow(Expression& out, const ExpressionPtr& part) const {
  if (part != nullptr) out.height = std::max(out.height, part->height + 1);
  if (out.height > kMaxHeight) refuse("an expression of more than ", kMaxHeight, " steps");
}
/// One expression, or several with commas between, which are a tuple.
ExpressionPtr ExpressionParser::tuple(bool with_condition) {
  const auto one = [&] { return with_condition ? expression() : disjunction(); };
  ExpressionPtr first = one();
  if (!is_op(",")) return first;
  ExpressionPtr list = node(Kind::kTuple, "", std::move(first));
  while (skip_op(","))
    if (now().kind != Word::kTagEnd && now().kind != Word::kOutputEnd) add_part(*list, one());
  return list;
}

ExpressionPtr ExpressionParser::expression() {
  const Level level(*this);
  ExpressionPtr out = disjunction();
  while (skip_name("if")) {
    ExpressionPtr condition = disjunction();
    ExpressionPtr otherwise = skip_name("else") ? expression() : nullptr;
    out = node(Kind::kCondition, "", std::move(out), std::move(condition), std::move(otherwise));
  }
  return out;
}

ExpressionPtr ExpressionParser::disjunction() {
  ExpressionPtr out = conjunction();
  while (skip_name("or")) out = node(Kind::kBinary, "or", std::move(out), conjunction());
  return out;
}

ExpressionPtr ExpressionParser::conjunction() {
  ExpressionPtr out = negation();
  while (skip_name("and")) out = node(Kind::kBinary, "and", std::move(out), negation());
  return out;
}

ExpressionPtr ExpressionParser::negation() {
  const Level level(*this);
  if (skip_name("not")) return node(Kind::kUnary, "not", negation());
  return comparison();
}

ExpressionPtr ExpressionParser::comparison() {
  ExpressionPtr first = sum();
  ExpressionPtr out;
  while (true) {
    std::string op;
    if (now().kind == Word::kOperator && (now().text == "==" || now().text == "!=" || now().text == "<" ||
                                          now().text == "<=" || now().text == ">" || now().text == ">=")) {
      op = take().text;
    } else if (skip_name("in")) {
      op = "in";
    } else if (is_name("not") && after().kind == Word::kName && after().text == "in") {
      at_ += 2;
      op = "not in";
    } else {
      return out == nullptr ? std::move(first) : std::move(out);
    }
    if (out == nullptr) out = node(Kind::kCompare, "", std::move(first));
    out->ops.push_back(std::move(op));
    add_part(*out, sum());
  }
}

ExpressionPtr ExpressionParser::sum() {
  return chain({"+", "-"}, [this] { return concatenation(); });
}
ExpressionPtr ExpressionParser::concatenation() {
  return chain({"~"}, [this] { return product(); });
}
ExpressionPtr ExpressionParser::product() {
  return chain({"*", "/", "//", "%"}, [this] { return power(); });
}
ExpressionPtr ExpressionParser::power() {
  return chain({"**"}, [this] { return unary(true); });
}

ExpressionPtr ExpressionParser::unary(bool with_filter) {
  const Level level(*this);
  ExpressionPtr out;
  if (is_op("-") || is_op("+")) {
    std::string op = take().text;
    out = node(Kind::kUnary, std::move(op), unary(false));
  } else {
    out = primary();
  }
  out = postfix(std::move(out));
  return with_filter ? filters(std::move(out)) : std::move(out);
}

ExpressionPtr ExpressionParser::literal(Value value) {
  ExpressionPtr out = node(Kind::kLiteral, "");
  out->literal = std::move(value);
  return out;
}

ExpressionPtr ExpressionParser::primary() {
  switch (now().kind) {
    case Word::kString: {
      std::string text = take().text;
      while (now().kind == Word::kString) text += take().text;
      return literal(std::move(text));
    }
    case Word::kInt: {
      const std::string text = take().text;
      std::int64_t number = 0;
      if (std::from_chars(text.data(), text.data() + text.size(), number).ec != std::errc{})
        refuse("a whole number of more than 63 bits");
      return literal(number);
    }
    case Word::kFloat: {
      const std::string text = take().text;
      double number = 0;
      if (std::from_chars(text.data(), text.data() + text.size(), number).ec != std::errc{})
        refuse("a number out of range");
      return literal(number);
    }
    case Word::kName:
      return name();
    default:
      break;
  }
  if (skip_op("(")) {
    if (skip_op(")")) return node(Kind::kTuple, "");
    ExpressionPtr inner = expression();
    if (!is_op(",")) {
      expect_op(")");
      return inner;
    }
    return items(node(Kind::kTuple, "", std::move(inner)), ")");
  }
  if (skip_op("[")) return items(node(Kind::kList, ""), "]");
  if (skip_op("{")) return dict();
  fail_here("expected an expression, got ", shown());
}

ExpressionPtr ExpressionParser::name() {
  const std::string text = take().text;
  if (text == "true" || text == "True") return literal(true);
  if (text == "false" || text == "False") return literal(false);
  if (text == "none" || text == "None") return literal(None{});
  return node(Kind::kName, text);
}

/// The rest of a list or tuple, `list` having the first part or none.
ExpressionPtr ExpressionParser::items(ExpressionPtr list, std::string_view close) {
  while (!skip_op(close)) {
    if (!list->parts.empty()) {
      expect_op(",");
      if (skip_op(close)) break;
    }
    add_part(*list, expression());
  }
  return list;
}

ExpressionPtr ExpressionParser::dict() {
  ExpressionPtr out = node(Kind::kDict, "");
  while (!skip_op("}")) {
    if (!out->parts.empty()) {
      expect_op(",");
      if (skip_op("}")) break;
    }
    add_part(*out, expression());
    expect_op(":");
    add_part(*out, expression());
  }
  return out;
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr out) {
  while (true) {
    if (skip_op(".")) {
      if (now().kind == Word::kInt) {
        out = node(Kind::kItem, "", std::move(out), primary());
      } else {
        std::string attribute = expect_name();
        out = node(Kind::kAttribute, std::move(attribute), std::move(out));
      }
    } else if (skip_op("[")) {
      out = subscript(std::move(out));
    } else if (skip_op("(")) {
      out = node(Kind::kCall, "", std::move(out));
      arguments(*out);
    } else {
      return out;
    }
  }
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr object) {
  std::array<ExpressionPtr, 3> bounds;
  bool slice = false;
  for (std::size_t i = 0; i < bounds.size() && !is_op("]"); ++i) {
    if (!is_op(":")) bounds[i] = expression();
    if (!skip_op(":")) break;
    slice = true;
  }
  if (!slice && bounds[0] == nullptr) fail_here("an empty subscript");
  expect_op("]");
  if (!slice) return node(Kind::kItem, "", std::move(object), std::move(bounds[0]));
  return node(Kind::kSlice, "", std::move(object), std::move(bounds[0]), std::move(bounds[1]),
              std::move(bounds[2]));
}

/// After the opening parenthesis.
void ExpressionParser::arguments(Expression& out) {
  bool first = true;
  while (!skip_op(")")) {
    if (!std::exchange(first, false)) {
      expect_op(",");
      if (skip_op(")")) return;
    }
    if (is_op("*") || is_op("**")) refuse("an unpacked argument");
    if (now().kind == Word::kName && after().kind == Word::kOperator && after().text == "=") {
      std::string name = take().text;
      ++at_;
      ExpressionPtr value = expression();
      grow(out, value);
      out.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!out.named.empty()) fail_here("a positional argument after a named one");
      add_part(out, expression());
    }
  }
}

ExpressionPtr ExpressionParser::filters(ExpressionPtr out) {
  while (true) {
    if (skip_op("|")) {
      std::string name = expect_name();
      out = node(Kind::kFilter, std::move(name), std::move(out));
      if (skip_op("(")) arguments(*out);
    } else if (is_name("is")) {
      ++at_;
      out = test(std::move(out));
    } else if (skip_op("(")) {
      out = node(Kind::kCall, "", std::move(out));
      arguments(*out);
    } else {
      return out;
    }
  }
}

ExpressionPtr ExpressionParser::test(ExpressionPtr object) {
  const bool negated = skip_name("not");
  std::string name = expect_name();
  ExpressionPtr out = node(Kind::kTest, std::move(name), std::move(object));
  const bool word = now().kind == Word::kName && !is_name("else") && !is_name("or") && !is_name("and");
  if (is_name("is")) fail_here("tests cannot be chained");
  if (skip_op("("))
    arguments(*out);
  else if (word || now().kind == Word::kString || now().kind == Word::kInt || now().kind == Word::kFloat ||
           is_op("[") || is_op("{"))
    add_part(*out, postfix(primary()));
  return negated ? node(Kind::kUnary, "not", std::move(out)) : std::move(out);
}

}  // namespace snapmla::jinja
