// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The tests: what stands after "is".

#include "Interpreter.h"

#include "Text.h"

#include <cmath>
#include <unordered_map>

namespace sluice::runtime::jinja {

namespace {

/// A test of a kind of value, without arguments.
template <bool (*Is)(const Value &)>
bool plain(Interpreter &, const Value &value, const Arguments &arguments) {
  bind(arguments, "the test", {});
  return Is(value);
}

/// A test that compares with its argument.
template <Comparison::Op Op>
bool compared(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  return interpreter.compare(Op, value, *bind(arguments, "the test", {"other"}, 1)[0]);
}

bool isDefined(const Value &value) { return !value.isUndefined(); }
bool isUndefined(const Value &value) { return value.isUndefined(); }
bool isNone(const Value &value) { return value.isNone(); }
bool isString(const Value &value) { return value.isString(); }
bool isMapping(const Value &value) { return value.isDict(); }
bool isNumber(const Value &value) { return value.isNumber(); }
bool isBoolean(const Value &value) { return value.kind() == Value::Kind::Boolean; }
bool isInteger(const Value &value) { return value.kind() == Value::Kind::Integer; }
bool isFloat(const Value &value) { return value.kind() == Value::Kind::Float; }
bool isTrue(const Value &value) { return isBoolean(value) && value.asBoolean(); }
bool isFalse(const Value &value) { return isBoolean(value) && !value.asBoolean(); }
bool isCallable(const Value &value) {
  return value.kind() == Value::Kind::Object && value.asObject()->isCallable();
}
/// Has a length and elements by number or key, which undefined has, too.
bool isSequence(const Value &value) {
  return value.isString() || value.isDict() || value.isUndefined() ||
         (value.isList() && value.asList().kind != List::Kind::Iterator);
}
bool isIterable(const Value &value) {
  return value.isString() || value.isDict() || value.isUndefined() || value.isList();
}
bool isUpperCase(const Value &value) { return isUpper(value.str()); }
bool isLowerCase(const Value &value) { return isLower(value.str()); }

bool isDivisible(const Value &value, int64_t divisor) {
  if (value.isUndefined())
    throw Failure{value.why()};
  if (!value.isNumber())
    throw Failure{"divisibility of a value of type " + value.typeName() + ", expected a number"};
  if (divisor == 0)
    throw Failure{"division by zero"};
  if (value.isInteger())
    return divisor == -1 || value.asInteger() % divisor == 0;
  return std::fmod(value.asDouble(), static_cast<double>(divisor)) == 0;
}
bool isEven(const Value &value) { return isDivisible(value, 2); }
bool isOdd(const Value &value) {
  if (value.kind() == Value::Kind::Float)
    return std::fabs(std::fmod(value.asDouble(), 2)) == 1;
  return !isDivisible(value, 2);
}

bool divisibleBy(Interpreter &, const Value &value, const Arguments &arguments) {
  return isDivisible(value, integerArgument(bind(arguments, "divisibleby", {"num"}, 1)[0],
                                            "the argument of divisibleby", 0));
}

bool isIn(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  return interpreter.contains(value, *bind(arguments, "in", {"seq"}, 1)[0]);
}

/// Is the same object, which of plain values only the constants are for sure.
bool sameAs(Interpreter &, const Value &value, const Arguments &arguments) {
  const Value &other = *bind(arguments, "sameas", {"other"}, 1)[0];
  return value.kind() == other.kind() && equal(value, other);
}

} // namespace

TestFunction findTest(std::string_view name) {
  using Op = Comparison::Op;
  static const std::unordered_map<std::string_view, TestFunction> tests = {
      {"boolean", plain<isBoolean>},
      {"callable", plain<isCallable>},
      {"defined", plain<isDefined>},
      {"divisibleby", divisibleBy},
      {"eq", compared<Op::Equal>},
      {"equalto", compared<Op::Equal>},
      {"==", compared<Op::Equal>},
      {"even", plain<isEven>},
      {"false", plain<isFalse>},
      {"float", plain<isFloat>},
      {"ge", compared<Op::GreaterOrEqual>},
      {">=", compared<Op::GreaterOrEqual>},
      {"greaterthan", compared<Op::Greater>},
      {"gt", compared<Op::Greater>},
      {">", compared<Op::Greater>},
      {"in", isIn},
      {"integer", plain<isInteger>},
      {"iterable", plain<isIterable>},
      {"le", compared<Op::LessOrEqual>},
      {"<=", compared<Op::LessOrEqual>},
      {"lessthan", compared<Op::Less>},
      {"lower", plain<isLowerCase>},
      {"lt", compared<Op::Less>},
      {"<", compared<Op::Less>},
      {"mapping", plain<isMapping>},
      {"ne", compared<Op::NotEqual>},
      {"!=", compared<Op::NotEqual>},
      {"none", plain<isNone>},
      {"number", plain<isNumber>},
      {"odd", plain<isOdd>},
      {"sameas", sameAs},
      {"sequence", plain<isSequence>},
      {"string", plain<isString>},
      {"true", plain<isTrue>},
      {"undefined", plain<isUndefined>},
      {"upper", plain<isUpperCase>},
  };
  auto it = tests.find(name);
  return it == tests.end() ? nullptr : it->second;
}

} // namespace sluice::runtime::jinja
