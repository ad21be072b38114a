// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Interpreter.h"

#include "Text.h"

#include "sluice-support/Text.h"

#include <algorithm>
#include <cmath>

namespace sluice::runtime::jinja {

// ---- Objects ----

std::optional<Value> Namespace::attribute(Interpreter &, std::string_view name) {
  auto it = attributes.find(name);
  return it == attributes.end() ? std::nullopt : std::optional(it->second);
}

/// The variable "loop". Elements are looked at as late as Jinja does it, since a condition may
/// depend on what the body does.
class Interpreter::LoopObject : public ScriptObject {
public:
  LoopObject(Values items, std::function<bool(const Value &)> accepts)
      : items(std::move(items)), accepts(std::move(accepts)) {}

  std::string typeName() const override { return "LoopContext"; }
  void release() override {
    items.clear();
    taken.clear();
    accepts = nullptr;
    lastChanged.reset();
  }

  /// Goes to the next element that is accepted; null at the end.
  const Value *advance() {
    ++index;
    return get(index);
  }

  std::optional<Value> attribute(Interpreter &interpreter, std::string_view name) override {
    auto length = [&] {
      while (fetch())
        ;
      return static_cast<int64_t>(taken.size());
    };
    auto neighbour = [&](int64_t at, const char *message) {
      const Value *value = get(at);
      return value ? *value : Value::undefined(message);
    };
    if (name == "index")
      return Value(index + 1);
    if (name == "index0")
      return Value(index);
    if (name == "first")
      return Value(index == 0);
    if (name == "last")
      return Value(get(index + 1) == nullptr);
    if (name == "length")
      return Value(length());
    if (name == "revindex")
      return Value(length() - index);
    if (name == "revindex0")
      return Value(length() - index - 1);
    // Which only loops that call themselves count.
    if (name == "depth")
      return Value(int64_t(1));
    if (name == "depth0")
      return Value(int64_t(0));
    if (name == "previtem")
      return neighbour(index - 1, "there is no previous item");
    if (name == "nextitem")
      return neighbour(index + 1, "there is no next item");
    // They go with the loop, whose name is their only one.
    if (name == "cycle")
      return Value(std::shared_ptr<Object>(
          interpreter.makeObject<Function>([at = index](Interpreter &, const Arguments &arguments) {
            const Values &choices = arguments.positional;
            if (choices.empty())
              throw Failure{"loop.cycle has nothing to choose from"};
            return choices[static_cast<size_t>(at) % choices.size()];
          })));
    if (name == "changed")
      return Value(std::shared_ptr<Object>(
          interpreter.makeObject<Function>([this](Interpreter &, const Arguments &arguments) {
            Value now = Value::list(arguments.positional);
            bool changed = !lastChanged || !equal(*lastChanged, now);
            lastChanged = std::move(now);
            return Value(changed);
          })));
    return std::nullopt;
  }

private:
  bool fetch() {
    while (next < items.size()) {
      const Value &item = items[next++];
      if (!accepts || accepts(item)) {
        taken.push_back(next - 1);
        return true;
      }
    }
    return false;
  }
  const Value *get(int64_t at) {
    if (at < 0)
      return nullptr;
    while (taken.size() <= static_cast<size_t>(at))
      if (!fetch())
        return nullptr;
    return &items[taken[static_cast<size_t>(at)]];
  }

  Values items;
  std::function<bool(const Value &)> accepts;
  /// The next of the items to look at, and those that were accepted.
  size_t next = 0;
  std::vector<size_t> taken;
  int64_t index = -1;
  std::optional<Value> lastChanged;
};

class Interpreter::MacroObject : public ScriptObject {
public:
  MacroObject(const Macro &macro, std::shared_ptr<Scope> scope)
      : macro(macro), scope(std::move(scope)) {}
  std::string typeName() const override { return "macro"; }
  bool isCallable() const override { return true; }
  void release() override { scope.reset(); }
  std::optional<Value> attribute(Interpreter &, std::string_view name) override {
    return name == "name" ? std::optional(Value(macro.name)) : std::nullopt;
  }
  Value call(Interpreter &interpreter, const Arguments &arguments) override;

private:
  const Macro &macro;
  std::shared_ptr<Scope> scope;
};

/// Counts what is in each other, and that there was one more.
class Interpreter::Descent {
public:
  explicit Descent(Interpreter &interpreter) : interpreter(interpreter) {
    if (interpreter.depth >= interpreter.options.maxDepth)
      throw Failure{"expressions, blocks and macros are nested deeper than " +
                    std::to_string(interpreter.options.maxDepth) + " levels"};
    ++interpreter.depth;
  }
  ~Descent() { --interpreter.depth; }

private:
  Interpreter &interpreter;
};

// ---- Limits ----

Interpreter::Interpreter(const RenderOptions &options) : options(options) {}

Interpreter::~Interpreter() {
  for (const auto &object : objects)
    static_cast<ScriptObject &>(*object).release();
}

void Interpreter::charge(uint64_t count) {
  steps += count;
  if (steps > options.maxSteps)
    throw Failure{"the template takes more than " + std::to_string(options.maxSteps) + " steps"};
}

void Interpreter::chargeBytes(uint64_t count) {
  bytes += count;
  if (bytes > options.maxBytes)
    throw Failure{"the template makes more than " + std::to_string(options.maxBytes) +
                  " bytes of text and lists"};
}

Value Interpreter::text(std::string text) {
  chargeBytes(text.size() + 64);
  return Value(std::move(text));
}

std::string Interpreter::str(const Value &value) {
  chargeBytes(value.weight());
  return value.str();
}

Value Interpreter::list(Values items) {
  chargeBytes((items.size() + 2) * sizeof(Value));
  return Value::list(std::move(items));
}

Value Interpreter::iterator(Values items) {
  chargeBytes((items.size() + 2) * sizeof(Value));
  return Value::iterator(std::move(items));
}

// ---- Values ----

Values Interpreter::iterate(const Value &value) {
  Values items;
  switch (value.kind()) {
  case Value::Kind::Undefined:
    break;
  case Value::Kind::String: {
    const std::string &text = value.asString();
    chargeBytes(text.size() * (sizeof(Value) + sizeof(std::string)));
    std::vector<size_t> offsets = characterOffsets(text);
    for (size_t i = 0; i + 1 < offsets.size(); ++i)
      items.emplace_back(text.substr(offsets[i], offsets[i + 1] - offsets[i]));
    break;
  }
  case Value::Kind::List:
    items = value.asList().items;
    break;
  case Value::Kind::Dict:
    for (const auto &[key, member] : value.asDict().items)
      items.push_back(key);
    break;
  default:
    throw Failure{"'" + value.typeName() + "' object is not iterable"};
  }
  charge(items.size() / 8);
  chargeBytes(items.size() * sizeof(Value));
  return items;
}

/// Jinja's name for a value in messages about what it lacks.
static std::string objectName(const Value &value) {
  return value.isNone() ? "None" : value.typeName() + " object";
}

Value Interpreter::attribute(const Value &value, std::string_view name) {
  if (value.isUndefined())
    throw Failure{value.why()};
  if (value.kind() == Value::Kind::Object)
    if (std::optional<Value> found = value.asObject()->attribute(*this, name))
      return *found;
  if (FilterFunction method = findMethod(value, name))
    return std::shared_ptr<Object>(
        makeObject<Function>([value, method](Interpreter &interpreter, const Arguments &arguments) {
          return method(interpreter, value, arguments);
        }));
  if (value.isDict()) {
    charge(value.asDict().items.size() / 8);
    if (const Value *found = value.asDict().find(name))
      return *found;
  }
  return Value::undefined("'" + objectName(value) + "' has no attribute " + support::quote(name));
}

/// An index as Python counts it, from the end if it is negative.
static std::optional<size_t> position(int64_t index, size_t size) {
  if (index < 0)
    index += static_cast<int64_t>(size);
  if (index < 0 || index >= static_cast<int64_t>(size))
    return std::nullopt;
  return static_cast<size_t>(index);
}

Value Interpreter::item(const Value &value, const Value &key) {
  if (value.isUndefined())
    throw Failure{value.why()};
  if (value.isDict()) {
    charge(value.asDict().items.size() / 8 + key.weight() / 16);
    if (const Value *found = value.asDict().find(key))
      return *found;
  } else if (key.isInteger() && value.isList() && value.asList().kind != List::Kind::Iterator) {
    const Values &items = value.asList().items;
    if (auto at = position(key.asInteger(), items.size()))
      return items[*at];
  } else if (key.isInteger() && value.isString()) {
    const std::string &string = value.asString();
    charge(string.size() / 16);
    std::vector<size_t> offsets = characterOffsets(string);
    if (auto at = position(key.asInteger(), offsets.size() - 1))
      return text(string.substr(offsets[*at], offsets[*at + 1] - offsets[*at]));
  }
  if (key.isString() && (findMethod(value, key.asString()) || value.kind() == Value::Kind::Object))
    return attribute(value, key.asString());
  return Value::undefined(
      key.isString()
          ? "'" + objectName(value) + "' has no attribute " + support::quote(key.asString())
          : objectName(value) + " has no element " + support::printable(key.repr()));
}

bool Interpreter::contains(const Value &value, const Value &container) {
  charge(container.weight() / 16);
  switch (container.kind()) {
  case Value::Kind::Undefined:
    return false;
  case Value::Kind::String:
    if (!value.isString())
      throw Failure{"'in <string>' requires a string as its left operand, not " + value.typeName()};
    return container.asString().find(value.asString()) != std::string::npos;
  case Value::Kind::List: {
    const Values &items = container.asList().items;
    return std::any_of(items.begin(), items.end(),
                       [&](const Value &item) { return equal(item, value); });
  }
  case Value::Kind::Dict:
    return container.asDict().find(value) != nullptr;
  default:
    throw Failure{"argument of type '" + container.typeName() + "' is not iterable"};
  }
}

Value Interpreter::call(const Value &function, const Arguments &arguments) {
  if (function.isUndefined())
    throw Failure{function.why()};
  if (function.kind() != Value::Kind::Object || !function.asObject()->isCallable())
    throw Failure{"'" + function.typeName() + "' object is not callable"};
  Descent descent(*this);
  return function.asObject()->call(*this, arguments);
}

Value Interpreter::filter(std::string_view name, const Value &operand, const Arguments &arguments) {
  FilterFunction function = findFilter(name);
  if (!function)
    throw Failure{"there is no filter " + support::quote(name)};
  return function(*this, operand, arguments);
}

bool Interpreter::test(std::string_view name, const Value &operand, const Arguments &arguments) {
  TestFunction function = findTest(name);
  if (!function)
    throw Failure{"there is no test " + support::quote(name)};
  return function(*this, operand, arguments);
}

static const char *symbol(Binary::Op op) {
  static const char *const symbols[] = {"+", "-", "*", "/", "//", "%", "**"};
  return symbols[static_cast<int>(op)];
}

[[noreturn]] static void failOverflow() { throw Failure{"a number does not fit in 64 bits"}; }

static Value integerBinary(Binary::Op op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
  case Binary::Op::Add:
    overflow = __builtin_add_overflow(a, b, &result);
    break;
  case Binary::Op::Subtract:
    overflow = __builtin_sub_overflow(a, b, &result);
    break;
  case Binary::Op::Multiply:
    overflow = __builtin_mul_overflow(a, b, &result);
    break;
  case Binary::Op::Divide:
    if (b == 0)
      throw Failure{"division by zero"};
    return static_cast<double>(a) / static_cast<double>(b);
  case Binary::Op::FloorDivide:
  case Binary::Op::Modulo: {
    if (b == 0)
      throw Failure{"division by zero"};
    if (b == -1) { // the one divisor whose quotient may be too large
      if (op == Binary::Op::Modulo)
        return int64_t(0);
      overflow = __builtin_sub_overflow(int64_t(0), a, &result);
      break;
    }
    // Python rounds down, C++ towards zero.
    int64_t quotient = a / b, rest = a % b;
    if (rest != 0 && (rest < 0) != (b < 0)) {
      --quotient;
      rest += b;
    }
    return op == Binary::Op::Modulo ? rest : quotient;
  }
  case Binary::Op::Power: {
    if (b < 0) {
      if (a == 0)
        throw Failure{"division by zero"};
      return std::pow(static_cast<double>(a), static_cast<double>(b));
    }
    result = 1;
    // Beyond 64 factors only -1, 0 and 1 fit.
    int64_t factors = b > 64 ? 64 + (b & 1) : b;
    if (b > 64 && (a < -1 || a > 1))
      failOverflow();
    for (int64_t i = 0; i < factors; ++i)
      overflow |= __builtin_mul_overflow(result, a, &result);
    break;
  }
  }
  if (overflow)
    failOverflow();
  return result;
}

static Value floatBinary(Binary::Op op, double a, double b) {
  switch (op) {
  case Binary::Op::Add:
    return a + b;
  case Binary::Op::Subtract:
    return a - b;
  case Binary::Op::Multiply:
    return a * b;
  case Binary::Op::Divide:
  case Binary::Op::FloorDivide:
  case Binary::Op::Modulo: {
    if (b == 0)
      throw Failure{"division by zero"};
    if (op == Binary::Op::Divide)
      return a / b;
    double rest = std::fmod(a, b);
    if (rest != 0 && (rest < 0) != (b < 0))
      rest += b;
    return op == Binary::Op::Modulo ? rest : std::floor((a - rest) / b + 0.5);
  }
  case Binary::Op::Power:
    return std::pow(a, b);
  }
  return 0.0;
}

Value Interpreter::binary(Binary::Op op, const Value &left, const Value &right) {
  if (left.isNumber() && right.isNumber()) {
    if (left.isInteger() && right.isInteger())
      return integerBinary(op, left.asInteger(), right.asInteger());
    return floatBinary(op, left.asDouble(), right.asDouble());
  }
  for (const Value *side : {&left, &right})
    if (side->isUndefined())
      throw Failure{side->why()};
  if (op == Binary::Op::Add && left.isString() && right.isString()) {
    chargeBytes(left.asString().size() + right.asString().size());
    return left.asString() + right.asString();
  }
  if (op == Binary::Op::Add && left.isList() && right.isList() &&
      left.asList().kind == right.asList().kind && left.asList().kind != List::Kind::Iterator) {
    const Values &a = left.asList().items, &b = right.asList().items;
    chargeBytes((a.size() + b.size()) * sizeof(Value));
    Values items = a;
    items.insert(items.end(), b.begin(), b.end());
    return left.asList().kind == List::Kind::Tuple ? Value::tuple(std::move(items))
                                                   : Value::list(std::move(items));
  }
  if (op == Binary::Op::Multiply && (left.isInteger() || right.isInteger())) {
    const Value &sequence = left.isInteger() ? right : left;
    auto count =
        static_cast<uint64_t>(std::max<int64_t>(0, (left.isInteger() ? left : right).asInteger()));
    auto checked = [&](uint64_t size) {
      if (size > 0 && count > options.maxBytes / size)
        chargeBytes(options.maxBytes + 1);
      chargeBytes(count * size);
    };
    if (sequence.isString()) {
      const std::string &once = sequence.asString();
      checked(once.size());
      std::string all;
      all.reserve(once.size() * count);
      for (uint64_t i = 0; !once.empty() && i < count; ++i)
        all += once;
      return all;
    }
    if (sequence.isList() && sequence.asList().kind != List::Kind::Iterator) {
      const Values &once = sequence.asList().items;
      checked(once.size() * sizeof(Value));
      Values all;
      for (uint64_t i = 0; !once.empty() && i < count; ++i)
        all.insert(all.end(), once.begin(), once.end());
      return sequence.asList().kind == List::Kind::Tuple ? Value::tuple(std::move(all))
                                                         : Value::list(std::move(all));
    }
  }
  if (op == Binary::Op::Modulo && left.isString())
    throw Failure{"formatting a string with % is not supported"};
  throw Failure{"'" + std::string(symbol(op)) + "' is not supported between '" + left.typeName() +
                "' and '" + right.typeName() + "'"};
}

bool Interpreter::compare(Comparison::Op op, const Value &left, const Value &right) {
  using Op = Comparison::Op;
  charge(std::min(left.weight(), right.weight()) / 16);
  if (left.isDict() && right.isDict()) {
    uint64_t keys = left.asDict().items.size();
    charge(keys * keys / 8);
  }
  switch (op) {
  case Op::Equal:
    return equal(left, right);
  case Op::NotEqual:
    return !equal(left, right);
  case Op::Less:
    return less(left, right);
  case Op::Greater:
    return less(right, left, ">");
  case Op::LessOrEqual:
    return less(left, right, "<=") || equal(left, right);
  case Op::GreaterOrEqual:
    return less(right, left, ">=") || equal(left, right);
  case Op::In:
    return contains(left, right);
  case Op::NotIn:
    return !contains(left, right);
  }
  return false;
}

// ---- Expressions ----

Value Interpreter::evaluate(const Expression &expression) {
  try {
    Descent descent(*this);
    charge(1);
    return std::visit([&](const auto &node) { return evaluateNode(node); }, expression.node);
  } catch (const Failure &failure) {
    throw LineFailure{expression.line, failure.message};
  }
}

Value Interpreter::evaluateNode(const Name &node) {
  for (const Scope *s = scope.get(); s; s = s->parent.get())
    if (auto it = s->variables.find(node.name); it != s->variables.end())
      return it->second;
  return Value::undefined(support::quote(node.name) + " is undefined");
}

Value Interpreter::evaluateNode(const ListLiteral &node) {
  Values items;
  items.reserve(node.items.size());
  for (const auto &item : node.items)
    items.push_back(evaluate(item));
  chargeBytes((items.size() + 2) * sizeof(Value));
  return node.isTuple ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

static void checkKey(const Value &key) {
  if (key.isDict() || (key.isList() && key.asList().kind == List::Kind::List))
    throw Failure{"a " + key.typeName() + " can not be the key of a dict"};
}

Value Interpreter::evaluateNode(const DictLiteral &node) {
  std::vector<std::pair<Value, Value>> items;
  for (const auto &[keyNode, valueNode] : node.items) {
    Value key = evaluate(keyNode), value = evaluate(valueNode);
    checkKey(key);
    charge(items.size() / 4);
    auto known = std::find_if(items.begin(), items.end(),
                              [&](const auto &item) { return equal(item.first, key); });
    if (known == items.end())
      items.emplace_back(std::move(key), std::move(value));
    else
      known->second = std::move(value);
  }
  chargeBytes((items.size() + 1) * 2 * sizeof(Value));
  return Value::dict(std::move(items));
}

Value Interpreter::evaluateNode(const Attribute &node) {
  return attribute(evaluate(node.object), node.name);
}

Value Interpreter::evaluateNode(const Item &node) {
  Value object = evaluate(node.object);
  return item(object, evaluate(node.index));
}

Value Interpreter::evaluateNode(const Slice &node) {
  Value object = evaluate(node.object);
  auto bound = [&](const ExpressionPointer &expression) -> std::optional<int64_t> {
    if (!expression)
      return std::nullopt;
    Value value = evaluate(expression);
    if (value.isNone())
      return std::nullopt;
    if (!value.isInteger())
      throw Failure{"a slice's bound is of type " + value.typeName() + ", expected an integer"};
    return value.asInteger();
  };
  std::optional<int64_t> start = bound(node.start), stop = bound(node.stop);
  int64_t step = bound(node.step).value_or(1);
  if (step == 0)
    throw Failure{"the step of a slice is 0"};
  if (object.isUndefined())
    throw Failure{object.why()};
  bool isList = object.isList() && object.asList().kind != List::Kind::Iterator;
  if (!object.isString() && !isList)
    return Value::undefined(objectName(object) + " has no slices");
  std::vector<size_t> offsets;
  if (object.isString()) {
    charge(object.asString().size() / 16);
    offsets = characterOffsets(object.asString());
  }
  auto size = static_cast<int64_t>(isList ? object.asList().items.size() : offsets.size() - 1);
  // As Python's slice.indices.
  int64_t lowest = step < 0 ? -1 : 0, highest = step < 0 ? size - 1 : size;
  auto clamp = [&](std::optional<int64_t> given, int64_t otherwise) {
    if (!given)
      return otherwise;
    int64_t value = *given < 0 ? std::max(*given, -size - 1) + size : *given;
    return std::clamp(value, lowest, highest);
  };
  int64_t from = clamp(start, step < 0 ? highest : lowest),
          to = clamp(stop, step < 0 ? lowest : highest);
  step = std::clamp(step, -size - 1, size + 1);
  Values items;
  std::string string;
  for (int64_t i = from; step < 0 ? i > to : i < to; i += step) {
    auto at = static_cast<size_t>(i);
    if (isList)
      items.push_back(object.asList().items[at]);
    else
      string.append(object.asString(), offsets[at], offsets[at + 1] - offsets[at]);
  }
  if (!isList)
    return text(std::move(string));
  chargeBytes((items.size() + 2) * sizeof(Value));
  return object.asList().kind == List::Kind::Tuple ? Value::tuple(std::move(items))
                                                   : Value::list(std::move(items));
}

Arguments Interpreter::evaluateArguments(const CallArguments &node) {
  Arguments arguments;
  for (const auto &argument : node.positional)
    arguments.positional.push_back(evaluate(argument));
  for (const auto &[name, argument] : node.named)
    arguments.named.emplace_back(name, evaluate(argument));
  if (node.list)
    for (Value &value : iterate(evaluate(node.list)))
      arguments.positional.push_back(std::move(value));
  if (node.dict) {
    Value dict = evaluate(node.dict);
    if (!dict.isDict())
      throw Failure{"the argument after ** is of type " + dict.typeName() + ", expected a dict"};
    for (const auto &[key, value] : dict.asDict().items) {
      if (!key.isString())
        throw Failure{"a key of the argument after ** is of type " + key.typeName() +
                      ", expected a string"};
      arguments.named.emplace_back(key.asString(), value);
    }
  }
  uint64_t named = arguments.named.size();
  charge(named * named / 8);
  chargeBytes((arguments.positional.size() + 2 * named) * sizeof(Value));
  for (size_t i = 0; i < named; ++i)
    for (size_t k = 0; k < i; ++k)
      if (arguments.named[i].first == arguments.named[k].first)
        throw Failure{"argument " + support::quote(arguments.named[i].first) + " is given twice"};
  return arguments;
}

Value Interpreter::evaluateNode(const Call &node) {
  // A method that is called at once needs no object.
  if (const auto *attributeNode = std::get_if<Attribute>(&node.function->node)) {
    Value object = evaluate(attributeNode->object);
    if (FilterFunction method = findMethod(object, attributeNode->name))
      return method(*this, object, evaluateArguments(node.arguments));
    Value function;
    try {
      function = attribute(object, attributeNode->name);
    } catch (const Failure &failure) {
      throw LineFailure{node.function->line, failure.message};
    }
    return call(function, evaluateArguments(node.arguments));
  }
  Value function = evaluate(node.function);
  return call(function, evaluateArguments(node.arguments));
}

Value Interpreter::evaluateNode(const Filter &node) {
  Value operand = node.operand ? evaluate(node.operand) : blockText;
  return filter(node.name, operand, evaluateArguments(node.arguments));
}

Value Interpreter::evaluateNode(const Test &node) {
  Value operand = evaluate(node.operand);
  return test(node.name, operand, evaluateArguments(node.arguments));
}

Value Interpreter::evaluateNode(const Unary &node) {
  Value operand = evaluate(node.operand);
  if (node.op == Unary::Op::Not)
    return !operand.isTrue();
  if (operand.isUndefined())
    throw Failure{operand.why()};
  if (!operand.isNumber())
    throw Failure{std::string("a value of type ") + operand.typeName() + " has no sign"};
  if (!operand.isInteger())
    return node.op == Unary::Op::Minus ? -operand.asDouble() : operand.asDouble();
  return node.op == Unary::Op::Minus ? integerBinary(Binary::Op::Subtract, 0, operand.asInteger())
                                     : Value(operand.asInteger());
}

Value Interpreter::evaluateNode(const Binary &node) {
  Value left = evaluate(node.left);
  return binary(node.op, left, evaluate(node.right));
}

Value Interpreter::evaluateNode(const Concatenation &node) {
  std::string all;
  for (const auto &part : node.parts)
    all += str(evaluate(part));
  return text(std::move(all));
}

Value Interpreter::evaluateNode(const Logical &node) {
  Value value;
  for (const auto &operand : node.operands) {
    value = evaluate(operand);
    if (value.isTrue() != node.isAnd)
      break;
  }
  return value;
}

Value Interpreter::evaluateNode(const Comparison &node) {
  Value left = evaluate(node.first);
  for (const auto &[op, operand] : node.rest) {
    Value right = evaluate(operand);
    if (!compare(op, left, right))
      return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluateNode(const Conditional &node) {
  if (evaluate(node.condition).isTrue())
    return evaluate(node.value);
  return node.otherwise ? evaluate(node.otherwise)
                        : Value::undefined("the 'if' without 'else' is false, so that its value "
                                           "is undefined");
}

// ---- Statements ----

void Interpreter::emit(std::string_view part) {
  chargeBytes(part.size());
  *out += part;
}

Interpreter::Flow Interpreter::execute(const Statements &statements) {
  Flow flow = Flow::Next;
  for (const Statement &statement : statements) {
    try {
      Descent descent(*this);
      charge(1);
      flow = std::visit([&](const auto &node) { return executeNode(node); }, statement.node);
    } catch (const Failure &failure) {
      throw LineFailure{statement.line, failure.message};
    }
    if (flow != Flow::Next)
      break;
  }
  return flow;
}

template <typename F> auto Interpreter::inScope(std::shared_ptr<Scope> parent, F &&body) {
  struct Restore {
    Interpreter &interpreter;
    std::shared_ptr<Scope> outer;
    ~Restore() { interpreter.scope = std::move(outer); }
  } restore{*this, scope};
  scope = std::make_shared<Scope>(Scope{std::move(parent), {}});
  return body();
}

Interpreter::Flow Interpreter::executeNode(const Text &node) {
  emit(node.text);
  return Flow::Next;
}

Interpreter::Flow Interpreter::executeNode(const Output &node) {
  emit(str(evaluate(node.value)));
  return Flow::Next;
}

Interpreter::Flow Interpreter::executeNode(const If &node) {
  for (const If::Branch &branch : node.branches)
    if (evaluate(branch.condition).isTrue())
      return execute(branch.body);
  return execute(node.otherwise);
}

Interpreter::Flow Interpreter::executeNode(const For &node) {
  Values items = iterate(evaluate(node.sequence));
  std::shared_ptr<Scope> outer = scope;
  std::function<bool(const Value &)> accepts;
  if (node.condition)
    accepts = [this, &node, outer](const Value &item) {
      charge(1);
      return inScope(outer, [&] {
        assign(node.target, item);
        return evaluate(node.condition).isTrue();
      });
    };
  auto loop = makeObject<LoopObject>(std::move(items), std::move(accepts));
  bool any = false;
  Flow flow = Flow::Next;
  while (flow != Flow::Break) {
    const Value *item = loop->advance();
    if (!item)
      break;
    any = true;
    charge(1);
    flow = inScope(outer, [&] {
      assign(node.target, *item);
      scope->variables.insert_or_assign("loop", Value(std::shared_ptr<Object>(loop)));
      return execute(node.body);
    });
  }
  if (!any)
    return inScope(outer, [&] { return execute(node.otherwise); });
  return Flow::Next;
}

void Interpreter::assign(const Target &target, const Value &value) {
  if (!target.parts.empty()) {
    Values values = iterate(value);
    if (values.size() != target.parts.size())
      throw Failure{"there are " + std::to_string(values.size()) + " values to assign, expected " +
                    std::to_string(target.parts.size())};
    for (size_t i = 0; i < values.size(); ++i)
      assign(target.parts[i], values[i]);
    return;
  }
  if (!target.attribute) {
    scope->variables.insert_or_assign(target.name, value);
    return;
  }
  Value object = evaluateNode(Name{target.name});
  auto *space = object.kind() == Value::Kind::Object
                    ? dynamic_cast<Namespace *>(object.asObject().get())
                    : nullptr;
  if (!space)
    throw Failure{"can not assign to an attribute of " + support::quote(target.name) +
                  ", which is of type " + object.typeName() + "; expected a namespace"};
  space->attributes.insert_or_assign(*target.attribute, value);
}

Interpreter::Flow Interpreter::executeNode(const Set &node) {
  assign(node.target, evaluate(node.value));
  return Flow::Next;
}

std::string Interpreter::capture(const Statements &body, Flow &flow) {
  struct Restore {
    Interpreter &interpreter;
    std::string *outer;
    ~Restore() { interpreter.out = outer; }
  } restore{*this, out};
  std::string captured;
  out = &captured;
  flow = execute(body);
  return captured;
}

Value Interpreter::filterText(const Expression &filter, Value text) {
  Value outer = std::exchange(blockText, std::move(text));
  Value result = evaluate(filter);
  blockText = std::move(outer);
  return result;
}

Interpreter::Flow Interpreter::executeNode(const SetBlock &node) {
  Flow flow = Flow::Next;
  Value value = inScope(scope, [&] { return Value(capture(node.body, flow)); });
  if (flow != Flow::Next)
    return flow;
  if (node.filter)
    value = filterText(*node.filter, std::move(value));
  assign(node.target, value);
  return Flow::Next;
}

Interpreter::Flow Interpreter::executeNode(const FilterBlock &node) {
  Flow flow = Flow::Next;
  Value value = inScope(scope, [&] { return Value(capture(node.body, flow)); });
  emit(str(filterText(*node.filter, std::move(value))));
  return flow;
}

Interpreter::Flow Interpreter::executeNode(const Block &node) {
  // Values see the variables outside, and not each other.
  Values values;
  for (const auto &[target, value] : node.variables)
    values.push_back(evaluate(value));
  return inScope(scope, [&] {
    for (size_t i = 0; i < values.size(); ++i)
      assign(node.variables[i].first, values[i]);
    return execute(node.body);
  });
}

Interpreter::Flow Interpreter::executeNode(const Macro &node) {
  Value macro(std::shared_ptr<Object>(makeObject<MacroObject>(node, scope)));
  scope->variables.insert_or_assign(node.name, std::move(macro));
  return Flow::Next;
}

Value Interpreter::MacroObject::call(Interpreter &interpreter, const Arguments &arguments) {
  if (!scope)
    throw Failure{"macro " + support::quote(macro.name) + " is called after the template's end"};
  auto find = [&](const std::string &name) -> const Value * {
    for (const auto &[known, value] : arguments.named)
      if (known == name)
        return &value;
    return nullptr;
  };
  for (const auto &[name, value] : arguments.named)
    if (std::none_of(macro.parameters.begin(), macro.parameters.end(),
                     [&](const auto &parameter) { return parameter.name == name; }))
      throw Failure{"macro " + support::quote(macro.name) + " has no parameter " +
                    support::quote(name)};
  if (arguments.positional.size() > macro.parameters.size())
    throw Failure{"macro " + support::quote(macro.name) + " has " +
                  std::to_string(arguments.positional.size()) + " arguments, expected at most " +
                  std::to_string(macro.parameters.size())};
  return interpreter.inScope(scope, [&] {
    auto &variables = interpreter.scope->variables;
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      const Macro::Parameter &parameter = macro.parameters[i];
      const Value *named = find(parameter.name);
      if (named && i < arguments.positional.size())
        throw Failure{"macro " + support::quote(macro.name) + " is given its parameter " +
                      support::quote(parameter.name) + " twice"};
      Value value = i < arguments.positional.size() ? arguments.positional[i]
                    : named                         ? *named
                    : parameter.otherwise
                        ? interpreter.evaluate(parameter.otherwise)
                        : Value::undefined("parameter " + support::quote(parameter.name) +
                                           " was not provided");
      variables.insert_or_assign(parameter.name, std::move(value));
    }
    Flow flow;
    return Value(interpreter.capture(macro.body, flow));
  });
}

std::string Interpreter::run(const Statements &statements,
                             const nlohmann::ordered_json &variables) {
  auto globals = std::make_shared<Scope>();
  addGlobals(*this, *globals);
  scope = std::make_shared<Scope>(Scope{globals, {}});
  for (const auto &[name, value] : variables.items())
    scope->variables.insert_or_assign(name, Value::fromJson(value));
  std::string result;
  out = &result;
  execute(statements);
  out = nullptr;
  return result;
}

// ---- Arguments ----

std::vector<const Value *> bind(const Arguments &arguments, std::string_view function,
                                std::initializer_list<std::string_view> parameters,
                                size_t required) {
  std::vector<const Value *> bound(parameters.size());
  if (arguments.positional.size() > parameters.size())
    throw Failure{std::string(function) + " has " + std::to_string(arguments.positional.size()) +
                  " arguments, expected at most " + std::to_string(parameters.size())};
  for (size_t i = 0; i < arguments.positional.size(); ++i)
    bound[i] = &arguments.positional[i];
  for (const auto &[name, value] : arguments.named) {
    const auto *found = std::find(parameters.begin(), parameters.end(), name);
    if (found == parameters.end())
      throw Failure{std::string(function) + " has no parameter " + support::quote(name)};
    const Value *&place = bound[static_cast<size_t>(found - parameters.begin())];
    if (place)
      throw Failure{std::string(function) + " is given its parameter " + support::quote(name) +
                    " twice"};
    place = &value;
  }
  for (size_t i = 0; i < required; ++i)
    if (!bound[i])
      throw Failure{std::string(function) + " needs its argument " +
                    support::quote(*(parameters.begin() + i))};
  return bound;
}

int64_t integerArgument(const Value *value, std::string_view what, int64_t otherwise) {
  if (!value || value->isNone())
    return otherwise;
  if (!value->isInteger())
    throw Failure{std::string(what) + " is of type " + value->typeName() + ", expected an integer"};
  return value->asInteger();
}

const std::string &stringArgument(const Value *value, std::string_view what) {
  if (!value->isString())
    throw Failure{value->isUndefined() ? value->why()
                                       : std::string(what) + " is of type " + value->typeName() +
                                             ", expected a string"};
  return value->asString();
}

} // namespace sluice::runtime::jinja
