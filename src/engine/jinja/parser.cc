#include "engine/jinja/parser.h"

#include <array>

#include "engine/jinja/expressions.h"

namespace snapmla::jinja {
namespace {

constexpr std::array<std::string_view, 12> kStatementsWeLack = {"include", "import", "from",       "extends",
                                                                "block",   "call",   "filter",     "with",
                                                                "do",      "raw",    "autoescape", "trans"};

class Parser : private ExpressionParser {
 public:
  Parser(std::string_view source, const std::string& name) : ExpressionParser(source, name) {}

  Body run() { return body({}); }

 private:
  /// Up to a tag that begins with one of `ends`, which is left with its name next.
  Body body(std::initializer_list<std::string_view> ends) {
    const Level level(*this);
    Body out;
    while (now().kind != Word::kEnd) {
      if (now().kind == Word::kText) {
        out.push_back({.kind = Statement::Kind::kText, .line = now().line});
        out.back().text = take().text;
      } else if (now().kind == Word::kOutputBegin) {
        ++at_;
        out.push_back({.kind = Statement::Kind::kOutput, .line = now().line, .value = tuple(true)});
        expect(Word::kOutputEnd);
      } else {
        ++at_;
        if (now().kind == Word::kName && std::find(ends.begin(), ends.end(), now().text) != ends.end())
          return out;
        out.push_back(statement());
      }
    }
    if (ends.size() > 0) fail_here("expected {% ", *(ends.end() - 1), " %}, got the end of the template");
    return out;
  }

  /// The end tag whose name is next.
  void end_tag() {
    ++at_;
    expect(Word::kTagEnd);
  }

  Statement statement() {
    Statement out{.line = now().line};
    const std::string name = expect_name();
    if (name == "for") return for_statement(std::move(out));
    if (name == "if") return if_statement(std::move(out));
    if (name == "set") return set_statement(std::move(out));
    if (name == "macro") return macro_statement(std::move(out));
    if (name == "generation") {  // transformers marks the assistant's text with it
      out.kind = Statement::Kind::kGroup;
      expect(Word::kTagEnd);
      out.body = body({"endgeneration"});
      end_tag();
      return out;
    }
    if (name == "break" || name == "continue") {
      out.kind = name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue;
      if (loops_ == 0) fail_here("{% ", name, " %} outside of a loop");
      expect(Word::kTagEnd);
      return out;
    }
    if (std::find(kStatementsWeLack.begin(), kStatementsWeLack.end(), name) != kStatementsWeLack.end())
      refuse("{% ", name, " %}");
    fail_here("unknown statement ", quote_text(name));
  }

  std::vector<std::string> targets() {
    std::vector<std::string> names;
    const bool parenthesis = skip_op("(");
    do {
      names.push_back(expect_name());
    } while (skip_op(","));
    if (parenthesis) expect_op(")");
    return names;
  }

  Statement for_statement(Statement out) {
    out.kind = Statement::Kind::kFor;
    out.targets = targets();
    if (!skip_name("in")) fail_here("expected in, got ", shown());
    out.value = tuple(false);
    if (skip_name("if")) out.condition = expression();
    if (is_name("recursive")) refuse("a recursive loop");
    expect(Word::kTagEnd);
    ++loops_;
    out.body = body({"else", "endfor"});
    --loops_;
    if (skip_name("else")) {
      expect(Word::kTagEnd);
      out.otherwise = body({"endfor"});
    }
    end_tag();
    return out;
  }

  Statement if_statement(Statement out) {
    out.kind = Statement::Kind::kIf;
    while (true) {
      ExpressionPtr condition = tuple(true);
      expect(Word::kTagEnd);
      Body then = body({"elif", "else", "endif"});
      out.branches.push_back({.condition = std::move(condition), .body = std::move(then)});
      if (!skip_name("elif")) break;
    }
    if (skip_name("else")) {
      expect(Word::kTagEnd);
      out.otherwise = body({"endif"});
    }
    end_tag();
    return out;
  }

  Statement set_statement(Statement out) {
    out.kind = Statement::Kind::kSet;
    out.targets = targets();
    if (out.targets.size() == 1 && skip_op(".")) out.attribute = expect_name();
    if (skip_op("=")) {
      out.value = tuple(true);
      expect(Word::kTagEnd);
      return out;
    }
    if (is_op("|")) refuse("a filter on a {% set %} block");
    if (out.targets.size() > 1) fail_here("expected \"=\", got ", shown());
    out.kind = Statement::Kind::kSetBlock;
    expect(Word::kTagEnd);
    out.body = body({"endset"});
    end_tag();
    return out;
  }

  Statement macro_statement(Statement out) {
    out.kind = Statement::Kind::kMacro;
    out.targets.push_back(expect_name());
    expect_op("(");
    while (!skip_op(")")) {
      if (!out.parameters.empty()) {
        expect_op(",");
        if (skip_op(")")) break;
      }
      std::string name = expect_name();
      out.parameters.emplace_back(std::move(name), skip_op("=") ? expression() : nullptr);
    }
    expect(Word::kTagEnd);
    const int loops = std::exchange(loops_, 0);
    out.body = body({"endmacro"});
    loops_ = loops;
    end_tag();
    return out;
  }

  int loops_ = 0;
};

}  // namespace

Body parse(std::string_view source, const std::string& name) {
  return Parser(source, name).run();
}

}  // namespace snapmla::jinja
