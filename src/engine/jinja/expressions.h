// The expressions of Jinja, with its precedence, and the cursor over the tokens that the statements share.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "engine/jinja/lexer.h"
#include "engine/jinja/syntax.h"
#include "engine/utf8.h"

namespace snapmla::jinja {

class ExpressionParser {
 protected:
  using Kind = Expression::Kind;
  using Word = Token::Kind;

  ExpressionParser(std::string_view source, const std::string& name)
      : tokens_(tokenize(source, name)), name_(&name) {}

  template <class... Parts>
  [[noreturn]] void fail_here(const Parts&... parts) const {
    fail(ErrorCode::kCorruptFile, "chat template", *name_, ", line ", now().line, ": ", parts...);
  }
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    fail(ErrorCode::kUnsupported, "chat template", *name_, ", line ", now().line, ": ", parts...,
         " is not supported");
  }

  [[nodiscard]] const Token& now() const { return tokens_[at_]; }
  [[nodiscard]] const Token& after() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() { return std::move(tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]); }
  [[nodiscard]] bool is(Word kind, std::string_view text) const {
    return now().kind == kind && now().text == text;
  }
  [[nodiscard]] bool is_op(std::string_view text) const { return is(Word::kOperator, text); }
  [[nodiscard]] bool is_name(std::string_view text) const { return is(Word::kName, text); }
  bool skip_op(std::string_view text) { return is_op(text) && (++at_, true); }
  bool skip_name(std::string_view text) { return is_name(text) && (++at_, true); }
  void expect_op(std::string_view text) {
    if (!skip_op(text)) fail_here("expected ", quote_text(text), ", got ", shown());
  }
  std::string expect_name() {
    if (now().kind != Word::kName) fail_here("expected a name, got ", shown());
    return take().text;
  }
  void expect(Word kind) {
    if (now().kind != kind) fail_here("expected the end of the tag, got ", shown());
    ++at_;
  }
  [[nodiscard]] std::string shown() const {
    switch (now().kind) {
      case Word::kEnd:
        return "the end of the template";
      case Word::kOutputEnd:
      case Word::kTagEnd:
        return "the end of the tag";
      default:
        return quote_text(now().text);
    }
  }

  /// Counts nesting while a statement or expression is being read.
  class Level {
   public:
    explicit Level(ExpressionParser& parser) : parser_(&parser) {
      if (++parser_->level_ > kMaxHeight) parser_->refuse("nesting more than ", kMaxHeight, " deep");
    }
    ~Level() { --parser_->level_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    ExpressionParser* parser_;
  };

  ExpressionPtr expression();
  /// An expression that an `if` ends.
  ExpressionPtr disjunction();
  /// One expression, or several with commas between, which are a tuple.
  ExpressionPtr tuple(bool with_condition);

 private:
  ExpressionPtr make(Kind kind, std::string name, std::vector<ExpressionPtr> parts);
  void add_part(Expression& out, ExpressionPtr part);
  void grow(Expression& out, const ExpressionPtr& part) const;
  ExpressionPtr conjunction();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr concatenation();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filter);
  ExpressionPtr literal(Value value);
  ExpressionPtr primary();
  ExpressionPtr name();
  ExpressionPtr items(ExpressionPtr list, std::string_view close);
  ExpressionPtr dict();
  ExpressionPtr postfix(ExpressionPtr out);
  ExpressionPtr subscript(ExpressionPtr object);
  void arguments(Expression& out);
  ExpressionPtr filters(ExpressionPtr out);
  ExpressionPtr test(ExpressionPtr object);
  template <class... Parts>
  ExpressionPtr node(Kind kind, std::string name, Parts... parts) {
    std::vector<ExpressionPtr> list;
    (list.push_back(std::move(parts)), ...);
    return make(kind, std::move(name), std::move(list));
  }

  /// Left-associative operators of one precedence.
  template <class Next>
  ExpressionPtr chain(std::initializer_list<std::string_view> ops, const Next& next) {
    ExpressionPtr out = next();
    while (now().kind == Word::kOperator && std::find(ops.begin(), ops.end(), now().text) != ops.end()) {
      std::string op = take().text;
      out = node(Kind::kBinary, std::move(op), std::move(out), next());
    }
    return out;
  }

 protected:
  std::vector<Token> tokens_;
  const std::string* name_;
  std::size_t at_ = 0;
  int level_ = 0;
};

}  // namespace snapmla::jinja
