#include "engine/jinja/interpreter.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/jinja/builtins.h"
#include "engine/jinja/runtime.h"
#include "engine/utf8.h"

namespace snapmla::jinja {

/// Variables of a template, loop round or macro call; names not here are the parent's.
struct Scope {
  Fields variables{};
  std::shared_ptr<Scope> parent{};
};
using ScopePtr = std::shared_ptr<Scope>;

namespace {

using Kind = Expression::Kind;

/// Bounds the recursion below: a template's own nesting times that of its macro calls.
constexpr int kMaxDepth = 600;

std::size_t json_bytes(const nlohmann::ordered_json& json) {
  std::size_t bytes = 16;
  if (json.is_string()) bytes += json.get_ref<const std::string&>().size();
  if (json.is_structured())
    for (const auto& part : json) bytes += json_bytes(part);
  return bytes;
}

Value from_json(Runtime& run, const nlohmann::ordered_json& json) {
  if (json.is_string()) return run.text(replace_invalid_utf8(json.get_ref<const std::string&>()));
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_number_unsigned() && json.get<std::uint64_t>() > INT64_MAX)
    run.refuse("a whole number of more than 63 bits");
  if (json.is_number()) return json.get<std::int64_t>();
  if (json.is_array()) {
    List items;
    for (const auto& item : json) items.push_back(from_json(run, item));
    return run.list(std::move(items));
  }
  if (!json.is_object()) return None{};
  Fields fields;
  for (const auto& [key, value] : json.items())
    fields.emplace_back(replace_invalid_utf8(key), from_json(run, value));
  return run.dict(std::move(fields));
}

/// Whether arrays and objects lie more than kMaxNesting deep; by a list of its own, since the depth is not known yet.
bool too_deep(const nlohmann::ordered_json& json) {
  std::vector<std::pair<const nlohmann::ordered_json*, int>> open{{&json, 0}};
  while (!open.empty()) {
    const auto [value, depth] = open.back();
    open.pop_back();
    if (depth > kMaxNesting) return true;
    if (value->is_structured())
      for (const auto& part : *value) open.emplace_back(&part, depth + 1);
  }
  return false;
}

class Interpreter {
 public:
  Interpreter(const std::string& name, std::size_t input_bytes) : run_(name, input_bytes) {}

  std::string render(const Body& body, const nlohmann::ordered_json& variables) {
    scope_ = std::make_shared<Scope>();
    for (const auto& [key, value] : variables.items())
      scope_->variables.emplace_back(key, from_json(run_, value));
    execute(body);
    return std::move(out_);
  }

 private:
  enum class Flow { kOn, kBreak, kContinue };

  /// One level of recursion.
  class Level {
   public:
    explicit Level(Interpreter& interpreter) : interpreter_(&interpreter) {
      interpreter_->run_.step();
      if (++interpreter_->depth_ > kMaxDepth)
        interpreter_->run_.refuse("the template nests or recurses too deeply");
    }
    ~Level() { --interpreter_->depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Interpreter* interpreter_;
  };

  /// A scope of its own while it lives.
  class Inner {
   public:
    Inner(Interpreter& interpreter, ScopePtr parent)
        : interpreter_(&interpreter), outer_(std::move(interpreter.scope_)) {
      interpreter_->scope_ = std::make_shared<Scope>(Scope{.parent = std::move(parent)});
    }
    ~Inner() { interpreter_->scope_ = std::move(outer_); }
    Inner(const Inner&) = delete;
    Inner& operator=(const Inner&) = delete;

   private:
    Interpreter* interpreter_;
    ScopePtr outer_;
  };

  // Variables

  [[nodiscard]] Value look_up(const std::string& name) {
    for (const Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
      run_.charge(scope->variables.size() / 16);
      if (const Value* found = find(scope->variables, name)) return *found;
    }
    if (is_function(name)) return std::make_shared<const Function>(Function{.name = name});
    return Undefined{.what = name};
  }

  void assign(const std::string& name, Value value) {
    run_.charge(scope_->variables.size() / 16);
    const auto found = std::find_if(scope_->variables.begin(), scope_->variables.end(),
                                    [&](const auto& variable) { return variable.first == name; });
    if (found != scope_->variables.end()) {
      found->second = std::move(value);
      return;
    }
    run_.charge(name.size() + sizeof(Fields::value_type));
    scope_->variables.emplace_back(name, std::move(value));
  }

  void assign_all(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) return assign(names[0], value);
    const List parts = iterate(run_, value);
    if (parts.size() != names.size())
      run_.error(names.size(), " values are needed to unpack; got ", parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i) assign(names[i], parts[i]);
  }

  void assign_attribute(const std::string& object, const std::string& name, Value value) {
    const Value target = look_up(object);
    if (!target.is_namespace())
      run_.error("attributes can be set on a namespace only; ", quote_text(object), " is ",
                 target.type_name());
    run_.check_nesting(value.nesting());
    Fields& fields = target.space();
    run_.charge(fields.size() / 8);
    const auto found =
        std::find_if(fields.begin(), fields.end(), [&](const auto& f) { return f.first == name; });
    if (found != fields.end()) {
      found->second = std::move(value);
      return;
    }
    run_.charge(name.size() + sizeof(Fields::value_type));
    fields.emplace_back(name, std::move(value));
  }

  // Statements

  void print(std::string_view text) {
    run_.charge(text.size());
    out_ += text;
  }

  /// What `body` prints.
  Value captured(const Body& body) {
    const std::string outer = std::exchange(out_, {});
    execute(body);
    return run_.text(std::exchange(out_, outer));
  }

  Flow execute(const Body& body) {
    const Level level(*this);
    for (const Statement& statement : body) {
      run_.step();
      run_.at_line(statement.line);
      if (const Flow flow = execute(statement); flow != Flow::kOn) return flow;
    }
    return Flow::kOn;
  }

  Flow execute(const Statement& s) {
    switch (s.kind) {
      case Statement::Kind::kText:
        print(s.text);
        return Flow::kOn;
      case Statement::Kind::kOutput:
        print(to_text(run_, evaluate(*s.value)));
        return Flow::kOn;
      case Statement::Kind::kFor:
        loop(s);
        return Flow::kOn;
      case Statement::Kind::kIf:
        for (const Branch& branch : s.branches)
          if (evaluate(*branch.condition).truthy()) return execute(branch.body);
        return execute(s.otherwise);
      case Statement::Kind::kSet:
        if (s.attribute.empty())
          assign_all(s.targets, evaluate(*s.value));
        else
          assign_attribute(s.targets[0], s.attribute, evaluate(*s.value));
        return Flow::kOn;
      case Statement::Kind::kSetBlock: {
        Value text = [&] {
          const Inner inner(*this, scope_);
          return captured(s.body);
        }();
        if (s.attribute.empty())
          assign(s.targets[0], std::move(text));
        else
          assign_attribute(s.targets[0], s.attribute, std::move(text));
        return Flow::kOn;
      }
      case Statement::Kind::kMacro:
        assign(s.targets[0], std::make_shared<const Function>(
                                 Function{.name = s.targets[0], .macro = &s, .scope = scope_}));
        return Flow::kOn;
      case Statement::Kind::kGroup:
        return execute(s.body);
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kOn;
  }

  void loop(const Statement& s) {
    List items = iterate(run_, evaluate(*s.value));
    if (s.condition != nullptr) {
      List chosen;
      for (Value& item : items) {
        run_.step();
        const Inner inner(*this, scope_);
        assign_all(s.targets, item);
        if (evaluate(*s.condition).truthy()) chosen.push_back(std::move(item));
      }
      items = std::move(chosen);
    }
    if (items.empty()) {
      const Inner inner(*this, scope_);
      execute(s.otherwise);
      return;
    }
    for (std::size_t i = 0; i < items.size(); ++i) {
      const Inner inner(*this, scope_);
      assign("loop", loop_value(items, i));
      assign_all(s.targets, items[i]);
      if (execute(s.body) == Flow::kBreak) return;
    }
  }

  /// The variable `loop` of one round.
  Value loop_value(const List& items, std::size_t i) {
    const auto at = static_cast<std::int64_t>(i);
    const auto size = static_cast<std::int64_t>(items.size());
    const Value before = i > 0 ? items[i - 1] : Value(Undefined{.what = "loop.previtem"});
    const Value after = i + 1 < items.size() ? items[i + 1] : Value(Undefined{.what = "loop.nextitem"});
    // A dict, but not of Runtime's: the items around are no deeper than the list they come from.
    return std::make_shared<Namespace>(Namespace{.fields = {{"index", at + 1},
                                                            {"index0", at},
                                                            {"first", i == 0},
                                                            {"last", i + 1 == items.size()},
                                                            {"length", size},
                                                            {"revindex", size - at},
                                                            {"revindex0", size - at - 1},
                                                            {"previtem", before},
                                                            {"nextitem", after}}});
  }

  // Expressions

  Value evaluate(const Expression& e) {
    const Level level(*this);
    run_.at_line(e.line);
    switch (e.kind) {
      case Kind::kLiteral:
        return e.literal;
      case Kind::kName:
        return look_up(e.name);
      case Kind::kList:
      case Kind::kTuple: {
        List items;
        for (const ExpressionPtr& part : e.parts) items.push_back(evaluate(*part));
        return run_.list(std::move(items), e.kind == Kind::kTuple);
      }
      case Kind::kDict:
        return dict(e);
      case Kind::kAttribute:
        return attribute(evaluate(*e.parts[0]), e.name);
      case Kind::kItem:
        return subscript(evaluate(*e.parts[0]), evaluate(*e.parts[1]));
      case Kind::kSlice:
        return slice(run_, evaluate(*e.parts[0]), bound(e.parts[1]), bound(e.parts[2]), bound(e.parts[3]));
      case Kind::kCall:
        return call(evaluate(*e.parts[0]), arguments(e));
      case Kind::kFilter: {
        const Value value = evaluate(*e.parts[0]);
        return apply_filter(run_, e.name, value, arguments(e));
      }
      case Kind::kTest: {
        const Value value = evaluate(*e.parts[0]);
        return apply_test(run_, e.name, value, arguments(e));
      }
      case Kind::kUnary:
        return unary(e.name, evaluate(*e.parts[0]));
      case Kind::kBinary:
        return binary(e);
      case Kind::kCompare:
        return comparison(e);
      case Kind::kCondition:
        if (evaluate(*e.parts[1]).truthy()) return evaluate(*e.parts[0]);
        return e.parts[2] == nullptr ? Value(Undefined{.what = "the inline if without else"})
                                     : evaluate(*e.parts[2]);
    }
    return {};
  }

  Value bound(const ExpressionPtr& part) { return part == nullptr ? Value(None{}) : evaluate(*part); }

  Value dict(const Expression& e) {
    Fields fields;
    for (std::size_t i = 0; i < e.parts.size(); i += 2) {
      const Value key = evaluate(*e.parts[i]);
      if (!key.is_text()) run_.refuse("a dict with a key that is not a string is not supported");
      run_.charge(fields.size() / 8);
      Value value = evaluate(*e.parts[i + 1]);
      const auto found =
          std::find_if(fields.begin(), fields.end(), [&](const auto& f) { return f.first == key.text(); });
      if (found == fields.end())
        fields.emplace_back(key.text(), std::move(value));
      else
        found->second = std::move(value);
    }
    return run_.dict(std::move(fields));
  }

  /// object.name: a method before a field of that name, as Python has it.
  Value attribute(Value object, const std::string& name) {
    if (has_method(object, name))
      return std::make_shared<const Function>(Function{.name = name, .object = std::move(object)});
    return field(run_, object, name);
  }

  /// object[index]: a field before a method.
  Value subscript(const Value& object, const Value& index) {
    Value found = item(run_, object, index);
    if (found.is_undefined() && index.is_text() && has_method(object, index.text()))
      return attribute(object, index.text());
    return found;
  }

  Arguments arguments(const Expression& e) {
    Arguments args;
    for (std::size_t i = 1; i < e.parts.size(); ++i) args.positional.push_back(evaluate(*e.parts[i]));
    for (const auto& [name, value] : e.named) args.named.emplace_back(name, evaluate(*value));
    return args;
  }

  Value call(const Value& callee, const Arguments& args) {
    if (callee.is_undefined()) run_.error(quote_text(callee.undefined()), " is undefined");
    if (!callee.is_function()) run_.error(callee.type_name(), " cannot be called");
    const Function& function = callee.function();
    if (function.macro != nullptr) return call_macro(function, args);
    if (!function.object.is_undefined()) return call_method(run_, function.object, function.name, args);
    return call_function(run_, function.name, args);
  }

  Value call_macro(const Function& function, const Arguments& args) {
    const Level level(*this);
    const Statement& macro = *function.macro;
    const int line = run_.line();
    if (args.positional.size() > macro.parameters.size())
      run_.error("macro ", quote_text(function.name), " takes at most ", macro.parameters.size(),
                 " arguments; got ", args.positional.size());
    for (const auto& [name, value] : args.named)
      if (std::none_of(macro.parameters.begin(), macro.parameters.end(),
                       [&, &key = name](const auto& p) { return p.first == key; }))
        run_.error("macro ", quote_text(function.name), " takes no argument ", quote_text(name));
    ScopePtr home = function.scope.lock();
    if (home == nullptr)
      run_.error("macro ", quote_text(function.name), " is called outside of where it was defined");
    const Inner inner(*this, std::move(home));
    for (std::size_t i = 0; i < macro.parameters.size(); ++i) {
      const auto& [name, otherwise] = macro.parameters[i];
      const Value* given = args.get(i, name);
      assign(name, given != nullptr       ? *given
                   : otherwise != nullptr ? evaluate(*otherwise)
                                          : Value(Undefined{.what = name}));
    }
    Value text = captured(macro.body);
    run_.at_line(line);
    return text;
  }

  Value unary(const std::string& op, const Value& value) {
    if (op == "not") return !value.truthy();
    if (!value.is_number()) run_.error("unary ", op, " does not take ", value.type_name());
    return calculate(run_, op, std::int64_t{0}, value);
  }

  Value binary(const Expression& e) {
    Value left = evaluate(*e.parts[0]);
    if (e.name == "and") return left.truthy() ? evaluate(*e.parts[1]) : left;
    if (e.name == "or") return left.truthy() ? left : evaluate(*e.parts[1]);
    return calculate(run_, e.name, left, evaluate(*e.parts[1]));
  }

  Value comparison(const Expression& e) {
    Value left = evaluate(*e.parts[0]);
    for (std::size_t i = 0; i < e.ops.size(); ++i) {
      Value right = evaluate(*e.parts[i + 1]);
      if (!compare(run_, e.ops[i], left, right)) return false;
      left = std::move(right);
    }
    return true;
  }

  Runtime run_;
  ScopePtr scope_;
  std::string out_;
  int depth_ = 0;
};

}  // namespace

std::string render(const Body& body, const nlohmann::ordered_json& variables, const std::string& name) {
  if (too_deep(variables))
    fail(ErrorCode::kUnsupported, "chat template", name, ": values nested more than ", kMaxNesting, " deep");
  return Interpreter(name, json_bytes(variables)).render(body, variables);
}

}  // namespace snapmla::jinja
