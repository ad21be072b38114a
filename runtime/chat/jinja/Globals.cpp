// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The functions that every template has.

#include "Interpreter.h"

#include "sluice-support/Text.h"

#include <algorithm>

namespace sluice::runtime::jinja {

namespace {

/// As Jinja's sandbox limits range.
constexpr int64_t maxRange = 100'000;

Value range(Interpreter &interpreter, const Arguments &arguments) {
  auto bound = bind(arguments, "range", {"start", "stop", "step"}, 1);
  int64_t start = integerArgument(bound[0], "the argument of range", 0), stop = start;
  if (bound[1])
    stop = integerArgument(bound[1], "the argument of range", 0);
  else
    start = 0;
  int64_t step = integerArgument(bound[2], "the step of range", 1);
  if (step == 0)
    throw Failure{"the step of range is 0"};
  Values items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (items.size() >= maxRange)
      throw Failure{"range has more than " + std::to_string(maxRange) + " numbers"};
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i))
      break;
  }
  return interpreter.list(std::move(items));
}

/// The members that dict() and namespace() make of their arguments.
std::vector<std::pair<Value, Value>> members(Interpreter &interpreter, const Arguments &arguments,
                                             const char *function) {
  if (arguments.positional.size() > 1)
    throw Failure{std::string(function) + " has " + std::to_string(arguments.positional.size()) +
                  " arguments without a name, expected at most one"};
  std::vector<std::pair<Value, Value>> items;
  if (!arguments.positional.empty()) {
    const Value &dict = arguments.positional.front();
    if (!dict.isDict())
      throw Failure{std::string(function) + " of a value of type " + dict.typeName() +
                    ", expected a dict"};
    items = dict.asDict().items;
  }
  for (const auto &[name, value] : arguments.named) {
    interpreter.charge(1 + items.size() / 4);
    auto known = std::find_if(items.begin(), items.end(), [&](const auto &item) {
      return item.first.isString() && item.first.asString() == name;
    });
    if (known == items.end())
      items.emplace_back(Value(name), value);
    else
      known->second = value;
  }
  interpreter.chargeBytes((items.size() + 1) * 2 * sizeof(Value));
  return items;
}

Value dict(Interpreter &interpreter, const Arguments &arguments) {
  return Value::dict(members(interpreter, arguments, "dict"));
}

Value makeNamespace(Interpreter &interpreter, const Arguments &arguments) {
  auto space = interpreter.makeObject<Namespace>();
  for (auto &[key, value] : members(interpreter, arguments, "namespace"))
    space->attributes.insert_or_assign(stringArgument(&key, "a key of namespace"),
                                       std::move(value));
  return std::shared_ptr<Object>(std::move(space));
}

Value raiseException(Interpreter &interpreter, const Arguments &arguments) {
  auto bound = bind(arguments, "raise_exception", {"message"}, 1);
  throw Failure{"the template refuses the conversation: " +
                support::printable(interpreter.str(*bound[0]), 1000)};
}

Value strftimeNow(Interpreter &interpreter, const Arguments &arguments) {
  const std::string &format = stringArgument(bind(arguments, "strftime_now", {"format"}, 1)[0],
                                             "the argument of strftime_now");
  if (format.size() > 1000)
    throw Failure{"the argument of strftime_now has " + std::to_string(format.size()) +
                  " bytes, expected at most 1000"};
  if (format.empty())
    return "";
  std::time_t now = interpreter.now();
  std::tm local{};
  if (!localtime_r(&now, &local))
    throw Failure{"the local time is not known"};
  // With a character of its own, so that an empty result is not taken for a buffer too small.
  std::string pattern = format + "x", result(1 << 16, '\0');
  size_t length = std::strftime(result.data(), result.size(), pattern.c_str(), &local);
  if (length == 0)
    throw Failure{"strftime_now can not format " + support::quote(format)};
  result.resize(length - 1);
  return interpreter.text(std::move(result));
}

Value joiner(Interpreter &interpreter, const Arguments &arguments) {
  auto bound = bind(arguments, "joiner", {"sep"});
  std::string separator = bound[0] ? interpreter.str(*bound[0]) : ", ";
  return std::shared_ptr<Object>(interpreter.makeObject<Function>(
      [separator, used = false](Interpreter &, const Arguments &) mutable {
        return Value(std::exchange(used, true) ? separator : std::string());
      }));
}

} // namespace

void addGlobals(Interpreter &interpreter, Scope &scope) {
  auto add = [&](const char *name, Value (*body)(Interpreter &, const Arguments &)) {
    scope.variables.insert_or_assign(
        name, Value(std::shared_ptr<Object>(interpreter.makeObject<Function>(body))));
  };
  add("dict", dict);
  add("joiner", joiner);
  add("namespace", makeNamespace);
  add("raise_exception", raiseException);
  add("range", range);
  add("strftime_now", strftimeNow);
}

} // namespace sluice::runtime::jinja
