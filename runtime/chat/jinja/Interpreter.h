// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Walks a syntax tree. Whatever the template is, it ends: steps, memory and depth are counted.

#ifndef SLUICE_RUNTIME_CHAT_JINJA_INTERPRETER_H
#define SLUICE_RUNTIME_CHAT_JINJA_INTERPRETER_H

#include "Lexer.h"
#include "Syntax.h"
#include "Template.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime::jinja {

/// Variables, and those around them.
struct Scope {
  std::shared_ptr<Scope> parent;
  std::map<std::string, Value, std::less<>> variables;
};

class Interpreter {
public:
  explicit Interpreter(const RenderOptions &options);
  ~Interpreter();
  Interpreter(const Interpreter &) = delete;
  Interpreter &operator=(const Interpreter &) = delete;

  /// Throws LineFailure.
  std::string run(const Statements &statements, const nlohmann::ordered_json &variables);

  // ---- For filters, tests, methods and functions, which throw Failure ----

  /// Counts steps or bytes; throws Failure beyond the limit.
  void charge(uint64_t steps);
  void chargeBytes(uint64_t bytes);
  /// A string whose bytes are counted.
  Value text(std::string text);
  Value text(std::string_view text) { return this->text(std::string(text)); }
  /// str(value), counted.
  std::string str(const Value &value);
  /// Containers whose elements are counted.
  Value list(Values items);
  Value iterator(Values items);

  /// What a loop over the value goes through; throws Failure if nothing can.
  Values iterate(const Value &value);
  /// value.name and value[key]: undefined if there is no such thing.
  Value attribute(const Value &value, std::string_view name);
  Value item(const Value &value, const Value &key);
  bool contains(const Value &value, const Value &container);
  Value call(const Value &function, const Arguments &arguments);
  Value filter(std::string_view name, const Value &operand, const Arguments &arguments);
  bool test(std::string_view name, const Value &operand, const Arguments &arguments);
  Value binary(Binary::Op op, const Value &left, const Value &right);
  bool compare(Comparison::Op op, const Value &left, const Value &right);

  /// Makes an object that lives until the template's end: what it holds is dropped there, so that
  /// objects may refer to each other in circles and chains.
  template <typename T, typename... Args> std::shared_ptr<T> makeObject(Args &&...args);

  std::time_t now() const { return options.now; }

private:
  enum class Flow : uint8_t { Next, Break, Continue };
  class LoopObject;
  class MacroObject;
  class Descent;

  Value evaluate(const Expression &expression);
  Value evaluate(const ExpressionPointer &expression) { return evaluate(*expression); }
  Value evaluateNode(const Literal &node) { return node.value; }
  Value evaluateNode(const Name &node);
  Value evaluateNode(const ListLiteral &node);
  Value evaluateNode(const DictLiteral &node);
  Value evaluateNode(const Attribute &node);
  Value evaluateNode(const Item &node);
  Value evaluateNode(const Slice &node);
  Value evaluateNode(const Call &node);
  Value evaluateNode(const Filter &node);
  Value evaluateNode(const Test &node);
  Value evaluateNode(const Unary &node);
  Value evaluateNode(const Binary &node);
  Value evaluateNode(const Concatenation &node);
  Value evaluateNode(const Logical &node);
  Value evaluateNode(const Comparison &node);
  Value evaluateNode(const Conditional &node);
  Arguments evaluateArguments(const CallArguments &arguments);

  Flow execute(const Statements &statements);
  Flow executeNode(const Text &node);
  Flow executeNode(const Output &node);
  Flow executeNode(const If &node);
  Flow executeNode(const For &node);
  Flow executeNode(const Set &node);
  Flow executeNode(const SetBlock &node);
  Flow executeNode(const Macro &node);
  Flow executeNode(const FilterBlock &node);
  Flow executeNode(const Block &node);
  Flow executeNode(const Break &) { return Flow::Break; }
  Flow executeNode(const Continue &) { return Flow::Continue; }

  void emit(std::string_view text);
  void assign(const Target &target, const Value &value);
  /// Runs `body` in a scope inside of `parent`.
  template <typename F> auto inScope(std::shared_ptr<Scope> parent, F &&body);
  /// What the body writes; `flow` is how it ended.
  std::string capture(const Statements &body, Flow &flow);
  /// Applies a chain of filters to a text.
  Value filterText(const Expression &filter, Value text);

  const RenderOptions &options;
  uint64_t steps = 0, bytes = 0;
  int depth = 0;
  std::shared_ptr<Scope> scope;
  std::string *out = nullptr;
  /// What is filtered by a filter without operand.
  Value blockText;
  std::vector<std::shared_ptr<Object>> objects;
};

/// An object of a template: it can drop what it holds.
class ScriptObject : public Object {
public:
  virtual void release() = 0;
};

class Namespace : public ScriptObject {
public:
  std::string typeName() const override { return "Namespace"; }
  std::optional<Value> attribute(Interpreter &, std::string_view name) override;
  void release() override { attributes.clear(); }

  std::map<std::string, Value, std::less<>> attributes;
};

class Function : public ScriptObject {
public:
  using Body = std::function<Value(Interpreter &, const Arguments &)>;
  explicit Function(Body body) : body(std::move(body)) {}
  std::string typeName() const override { return "function"; }
  bool isCallable() const override { return true; }
  Value call(Interpreter &interpreter, const Arguments &arguments) override {
    return body(interpreter, arguments);
  }
  void release() override { body = nullptr; }

private:
  Body body;
};

template <typename T, typename... Args> std::shared_ptr<T> Interpreter::makeObject(Args &&...args) {
  chargeBytes(sizeof(T) + 64);
  auto object = std::make_shared<T>(std::forward<Args>(args)...);
  objects.push_back(object);
  return object;
}

/// The arguments of a function in the order of its parameters; null where none was given. Throws
/// Failure if there are others, or one of the first `required` is missing.
std::vector<const Value *> bind(const Arguments &arguments, std::string_view function,
                                std::initializer_list<std::string_view> parameters,
                                size_t required = 0);
int64_t integerArgument(const Value *value, std::string_view what, int64_t otherwise);
const std::string &stringArgument(const Value *value, std::string_view what);

/// A filter, test or method by its name; null if there is none.
using FilterFunction = Value (*)(Interpreter &, const Value &, const Arguments &);
using TestFunction = bool (*)(Interpreter &, const Value &, const Arguments &);
FilterFunction findFilter(std::string_view name);
TestFunction findTest(std::string_view name);
FilterFunction findMethod(const Value &self, std::string_view name);
/// Adds range, namespace and the other functions that every template has.
void addGlobals(Interpreter &interpreter, Scope &scope);

} // namespace sluice::runtime::jinja

#endif // SLUICE_RUNTIME_CHAT_JINJA_INTERPRETER_H
