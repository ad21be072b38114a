// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The filters: Jinja's own, and tojson as transformers has it.

#include "Interpreter.h"

#include "Text.h"

#include "sluice-support/Text.h"

#include <algorithm>
#include <cfloat>
#include <charconv>
#include <cmath>
#include <unordered_map>

namespace sluice::runtime::jinja {

namespace {

bool isSet(const Value *value) { return value && value->isTrue(); }

/// The lines of a text with `fill` before all of them but the first and empty ones.
std::string indented(std::string_view text, std::string_view fill, bool first, bool blank) {
  std::string withEnd(text);
  withEnd += '\n';
  std::vector<std::string_view> lines = splitLines(withEnd);
  std::string result;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0)
      result += '\n';
    if (i > 0 && (blank || !lines[i].empty()))
      result += fill;
    result += lines[i];
  }
  return first ? std::string(fill) + result : result;
}

/// Follows a path such as "function.name" or an index.
Value follow(Interpreter &interpreter, Value value, const Value &path, const Value *otherwise) {
  auto step = [&](const Value &key) {
    value = interpreter.item(value, key);
    if (otherwise && !otherwise->isNone() && value.isUndefined())
      value = *otherwise;
  };
  if (!path.isString()) {
    step(path);
    return value;
  }
  std::string_view rest = path.asString();
  while (true) {
    size_t dot = std::min(rest.find('.'), rest.size());
    std::string_view part = rest.substr(0, dot);
    int64_t index = 0;
    bool isIndex = !part.empty() &&
                   part.find_first_not_of("0123456789") == std::string_view::npos &&
                   std::from_chars(part.data(), part.data() + part.size(), index).ec == std::errc();
    step(isIndex ? Value(index) : Value(part));
    if (dot == rest.size())
      return value;
    rest.remove_prefix(dot + 1);
  }
}

/// What values are sorted and told apart by.
Value sortKey(Interpreter &interpreter, const Value &value, const Value *attribute,
              bool caseSensitive) {
  Value key = value;
  if (attribute && !attribute->isNone())
    key = follow(interpreter, value, *attribute, nullptr);
  if (key.isString() && !caseSensitive)
    key = interpreter.text(toLower(key.asString()));
  return key;
}

template <typename T>
void sortByKey(Interpreter &interpreter, std::vector<std::pair<Value, T>> &items, bool reverse) {
  uint64_t weight = 1;
  for (const auto &[key, item] : items)
    weight = std::max(weight, key.weight() / 16);
  interpreter.charge(items.size() * weight * 8);
  // Equal ones keep their order, also in reverse.
  if (reverse)
    std::reverse(items.begin(), items.end());
  stableSort(items, [](const auto &a, const auto &b) { return less(a.first, b.first); });
  if (reverse)
    std::reverse(items.begin(), items.end());
}

const Dict &requireDict(const Value &value, const char *filter) {
  if (value.isUndefined())
    throw Failure{value.why()};
  if (!value.isDict())
    throw Failure{std::string(filter) + " of a value of type " + value.typeName() +
                  ", expected a dict"};
  return value.asDict();
}

double requireNumber(const Value &value, const char *filter) {
  if (value.isUndefined())
    throw Failure{value.why()};
  if (!value.isNumber())
    throw Failure{std::string(filter) + " of a value of type " + value.typeName() +
                  ", expected a number"};
  return value.asDouble();
}

Value abs(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "abs", {});
  double number = requireNumber(value, "abs");
  if (!value.isInteger())
    return std::fabs(number);
  return value.asInteger() < 0
             ? interpreter.binary(Binary::Op::Subtract, int64_t(0), value.asInteger())
             : Value(value.asInteger());
}

Value attr(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "attr", {"name"}, 1);
  const std::string &name = stringArgument(bound[0], "the name of attr");
  // Members of a dict are no attributes.
  if (value.isDict() && !findMethod(value, name))
    return Value::undefined("'dict object' has no attribute " + support::quote(name));
  return interpreter.attribute(value, name);
}

Value capitalize(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "capitalize", {});
  return interpreter.text(capitalized(interpreter.str(value)));
}

Value defaultTo(Interpreter &, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "default", {"default_value", "boolean"});
  if (value.isUndefined() || (isSet(bound[1]) && !value.isTrue()))
    return bound[0] ? *bound[0] : Value("");
  return value;
}

Value dictsort(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "dictsort", {"case_sensitive", "by", "reverse"});
  std::string by = bound[1] ? stringArgument(bound[1], "by of dictsort") : "key";
  if (by != "key" && by != "value")
    throw Failure{"by of dictsort is " + support::quote(by) + ", expected 'key' or 'value'"};
  std::vector<std::pair<Value, Value>> items;
  for (const auto &[key, member] : requireDict(value, "dictsort").items)
    items.emplace_back(sortKey(interpreter, by == "key" ? key : member, nullptr, isSet(bound[0])),
                       Value::tuple({key, member}));
  sortByKey(interpreter, items, isSet(bound[2]));
  Values sorted;
  for (auto &[key, item] : items)
    sorted.push_back(std::move(item));
  return interpreter.list(std::move(sorted));
}

Value escape(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "escape", {});
  std::string result;
  for (char c : interpreter.str(value)) {
    switch (c) {
    case '&':
      result += "&amp;";
      break;
    case '<':
      result += "&lt;";
      break;
    case '>':
      result += "&gt;";
      break;
    case '"':
      result += "&#34;";
      break;
    case '\'':
      result += "&#39;";
      break;
    default:
      result += c;
    }
  }
  return interpreter.text(std::move(result));
}

Value first(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "first", {});
  Values items = interpreter.iterate(value);
  return items.empty() ? Value::undefined("an empty sequence has no first item") : items.front();
}

Value last(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "last", {});
  Values items = interpreter.iterate(value);
  return items.empty() ? Value::undefined("an empty sequence has no last item") : items.back();
}

/// A text as Python's float() reads it.
std::optional<double> parseFloat(std::string_view text) {
  text = strip(text, Side::Both);
  if (text.starts_with('+'))
    text.remove_prefix(1);
  double number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty())
    return std::nullopt;
  return number;
}

Value toFloat(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "float", {"default"});
  if (value.isNumber())
    return value.asDouble();
  if (value.isUndefined())
    throw Failure{value.why()};
  interpreter.charge(value.weight() / 16);
  std::optional<double> number;
  if (value.isString())
    number = parseFloat(value.asString());
  return number ? Value(*number) : bound[0] ? *bound[0] : Value(0.0);
}

std::optional<int64_t> truncated(double number) {
  // The least double that does not fit.
  if (!(std::fabs(number) < 9223372036854775808.0))
    return std::nullopt;
  return static_cast<int64_t>(number);
}

Value toInt(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "int", {"default", "base"});
  if (value.isInteger())
    return value.asInteger();
  if (value.isUndefined())
    throw Failure{value.why()};
  interpreter.charge(value.weight() / 16);
  std::optional<int64_t> number;
  if (value.kind() == Value::Kind::Float) {
    number = truncated(value.asDouble());
  } else if (value.isString()) {
    std::string_view text = strip(value.asString(), Side::Both);
    if (text.starts_with('+'))
      text.remove_prefix(1);
    int64_t base = integerArgument(bound[1], "base of int", 10), integer = 0;
    if (base < 2 || base > 36)
      throw Failure{"base of int is " + std::to_string(base) + ", expected 2 to 36"};
    bool negative = text.starts_with('-');
    std::string_view digits = text.substr(negative);
    // With the base's own prefix, as 0x.
    char prefix = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : '\0';
    if (prefix && digits.size() > 2 && digits[0] == '0' && (digits[1] | 0x20) == prefix)
      digits.remove_prefix(2);
    std::string plain = (negative ? "-" : "") + std::string(digits);
    auto [end, error] =
        std::from_chars(plain.data(), plain.data() + plain.size(), integer, static_cast<int>(base));
    if (error == std::errc() && end == plain.data() + plain.size() && !digits.starts_with('-'))
      number = integer;
    else if (std::optional<double> real = parseFloat(text))
      number = truncated(*real);
  }
  return number ? Value(*number) : bound[0] ? *bound[0] : Value(int64_t(0));
}

Value indent(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "indent", {"width", "first", "blank"});
  std::string fill;
  if (bound[0] && bound[0]->isString()) {
    fill = bound[0]->asString();
  } else {
    int64_t width = integerArgument(bound[0], "width of indent", 4);
    fill.assign(static_cast<size_t>(std::clamp<int64_t>(width, 0, 1000)), ' ');
  }
  const std::string &text = stringArgument(&value, "the value of indent");
  // Each line gets the fill.
  auto lines = static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n')) + 2;
  interpreter.chargeBytes(text.size() + lines * fill.size());
  return interpreter.text(indented(text, fill, isSet(bound[1]), isSet(bound[2])));
}

Value items(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "items", {});
  Values result;
  if (!value.isUndefined())
    for (const auto &[key, member] : requireDict(value, "items").items)
      result.push_back(Value::tuple({key, member}));
  return interpreter.iterator(std::move(result));
}

Value join(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "join", {"d", "attribute"});
  std::string between = bound[0] ? interpreter.str(*bound[0]) : "", all;
  bool isFirst = true;
  for (const Value &item : interpreter.iterate(value)) {
    if (!std::exchange(isFirst, false)) {
      interpreter.chargeBytes(between.size());
      all += between;
    }
    bool attribute = bound[1] && !bound[1]->isNone();
    all += interpreter.str(attribute ? follow(interpreter, item, *bound[1], nullptr) : item);
  }
  return interpreter.text(std::move(all));
}

Value length(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "length", {});
  if (value.isUndefined())
    return int64_t(0);
  if (value.isString()) {
    interpreter.charge(value.asString().size() / 16);
    return static_cast<int64_t>(characterCount(value.asString()));
  }
  if (value.isList() && value.asList().kind != List::Kind::Iterator)
    return static_cast<int64_t>(value.asList().items.size());
  if (value.isDict())
    return static_cast<int64_t>(value.asDict().items.size());
  throw Failure{"object of type '" + value.typeName() + "' has no length"};
}

Value list(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "list", {});
  return interpreter.list(interpreter.iterate(value));
}

Value lower(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "lower", {});
  return interpreter.text(toLower(interpreter.str(value)));
}

Value upper(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "upper", {});
  return interpreter.text(toUpper(interpreter.str(value)));
}

Value map(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  Values mapped;
  if (arguments.positional.empty()) {
    auto bound = bind(arguments, "map", {"", "attribute", "default"});
    if (!bound[1])
      throw Failure{"map needs the name of a filter, or an attribute"};
    for (const Value &item : interpreter.iterate(value)) {
      interpreter.charge(1);
      mapped.push_back(follow(interpreter, item, *bound[1], bound[2]));
    }
    return interpreter.iterator(std::move(mapped));
  }
  const std::string &name = stringArgument(&arguments.positional[0], "the filter of map");
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  for (const Value &item : interpreter.iterate(value)) {
    interpreter.charge(1);
    mapped.push_back(interpreter.filter(name, item, rest));
  }
  return interpreter.iterator(std::move(mapped));
}

Value extreme(Interpreter &interpreter, const Value &value, const Arguments &arguments,
              const char *name, bool greatest) {
  auto bound = bind(arguments, name, {"case_sensitive", "attribute"});
  Value best = Value::undefined(std::string("an empty sequence has no ") + name), bestKey;
  bool any = false;
  for (const Value &item : interpreter.iterate(value)) {
    Value key = sortKey(interpreter, item, bound[1], isSet(bound[0]));
    interpreter.charge(1 + key.weight() / 16);
    if (!any || (greatest ? less(bestKey, key) : less(key, bestKey))) {
      best = item;
      bestKey = key;
    }
    any = true;
  }
  return best;
}

Value max(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  return extreme(interpreter, value, arguments, "max", true);
}
Value min(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  return extreme(interpreter, value, arguments, "min", false);
}

Value replace(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "replace", {"old", "new", "count"}, 2);
  Arguments forMethod{{Value(interpreter.str(*bound[0])), Value(interpreter.str(*bound[1]))}, {}};
  if (bound[2] && !bound[2]->isNone())
    forMethod.positional.push_back(*bound[2]);
  Value text = interpreter.text(interpreter.str(value));
  return findMethod(text, "replace")(interpreter, text, forMethod);
}

Value reverse(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "reverse", {});
  Values items = interpreter.iterate(value);
  std::reverse(items.begin(), items.end());
  if (!value.isString())
    return interpreter.iterator(std::move(items));
  std::string text;
  for (const Value &item : items)
    text += item.asString();
  return interpreter.text(std::move(text));
}

Value round(Interpreter &, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "round", {"precision", "method"});
  double number = requireNumber(value, "round");
  int64_t precision = integerArgument(bound[0], "precision of round", 0);
  std::string method = bound[1] ? stringArgument(bound[1], "method of round") : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    throw Failure{"method of round is " + support::quote(method) +
                  ", expected 'common', 'ceil' or 'floor'"};
  if (method == "common" && value.isInteger() && precision >= 0)
    return value.asInteger();
  double scale = std::pow(10.0, static_cast<double>(std::clamp<int64_t>(precision, -300, 300)));
  if (method != "common")
    return (method == "ceil" ? std::ceil(number * scale) : std::floor(number * scale)) / scale;
  if (precision < 0 || precision > 15)
    return std::nearbyint(number * scale) / scale;
  // By the decimal digits of the number, as Python does it, and not of its product.
  char digits[DBL_MAX_10_EXP + 32];
  auto [end, error] = std::to_chars(digits, std::end(digits), number, std::chars_format::fixed,
                                    static_cast<int>(precision));
  double rounded = number;
  if (error == std::errc())
    std::from_chars(digits, end, rounded);
  return rounded;
}

Value safe(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "safe", {});
  return interpreter.text(interpreter.str(value));
}

Value filterItems(Interpreter &interpreter, const Value &value, const Arguments &arguments,
                  const char *name, bool byAttribute, bool wanted) {
  size_t used = byAttribute;
  if (arguments.positional.size() < used)
    throw Failure{std::string(name) + " needs the name of an attribute"};
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(),
                        rest.positional.begin() +
                            static_cast<ptrdiff_t>(std::min(used + 1, rest.positional.size())));
  Values kept;
  for (const Value &item : interpreter.iterate(value)) {
    interpreter.charge(1);
    Value tested = byAttribute ? follow(interpreter, item, arguments.positional[0], nullptr) : item;
    bool result = arguments.positional.size() > used
                      ? interpreter.test(stringArgument(&arguments.positional[used],
                                                        std::string("the test of ") + name),
                                         tested, rest)
                      : tested.isTrue();
    if (result == wanted)
      kept.push_back(item);
  }
  return interpreter.iterator(std::move(kept));
}

Value select(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  return filterItems(interpreter, value, arguments, "select", false, true);
}
Value reject(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  return filterItems(interpreter, value, arguments, "reject", false, false);
}
Value selectattr(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  return filterItems(interpreter, value, arguments, "selectattr", true, true);
}
Value rejectattr(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  return filterItems(interpreter, value, arguments, "rejectattr", true, false);
}

Value sort(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value &item : interpreter.iterate(value))
    keyed.emplace_back(sortKey(interpreter, item, bound[2], isSet(bound[1])), item);
  sortByKey(interpreter, keyed, isSet(bound[0]));
  Values sorted;
  for (auto &[key, item] : keyed)
    sorted.push_back(std::move(item));
  return interpreter.list(std::move(sorted));
}

Value string(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "string", {});
  return interpreter.text(interpreter.str(value));
}

Value sum(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "sum", {"attribute", "start"});
  Value total = bound[1] ? *bound[1] : Value(int64_t(0));
  for (const Value &item : interpreter.iterate(value))
    total = interpreter.binary(
        Binary::Op::Add, total,
        bound[0] && !bound[0]->isNone() ? follow(interpreter, item, *bound[0], nullptr) : item);
  return total;
}

Value title(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  bind(arguments, "title", {});
  return interpreter.text(titledByWords(interpreter.str(value)));
}

Value tojson(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensureAscii = isSet(bound[0]);
  if (bound[1] && bound[1]->isString()) {
    style.indent = bound[1]->asString();
  } else if (bound[1] && !bound[1]->isNone()) {
    int64_t width = integerArgument(bound[1], "indent of tojson", 0);
    style.indent = std::string(static_cast<size_t>(std::clamp<int64_t>(width, 0, 1000)), ' ');
  }
  if (bound[2] && !bound[2]->isNone()) {
    Values both = interpreter.iterate(*bound[2]);
    if (both.size() != 2)
      throw Failure{"separators of tojson are " + std::to_string(both.size()) +
                    " values, expected two strings"};
    style.separators = {stringArgument(&both[0], "a separator of tojson"),
                        stringArgument(&both[1], "a separator of tojson")};
  }
  style.sortKeys = isSet(bound[3]);
  interpreter.chargeBytes(value.weight());
  return interpreter.text(toJson(value, style));
}

Value trim(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "trim", {"chars"});
  std::string text = interpreter.str(value);
  std::string_view stripped = strip(text, Side::Both);
  if (bound[0] && !bound[0]->isNone()) {
    const std::string &characters = stringArgument(bound[0], "chars of trim");
    interpreter.charge(characters.size() * text.size() / 16);
    stripped = strip(text, Side::Both, characters);
  }
  return interpreter.text(stripped);
}

Value unique(Interpreter &interpreter, const Value &value, const Arguments &arguments) {
  auto bound = bind(arguments, "unique", {"case_sensitive", "attribute"});
  Values keys, kept;
  for (const Value &item : interpreter.iterate(value)) {
    Value key = sortKey(interpreter, item, bound[1], isSet(bound[0]));
    interpreter.charge(keys.size() * (1 + key.weight() / 64));
    if (std::none_of(keys.begin(), keys.end(),
                     [&](const Value &known) { return equal(known, key); })) {
      keys.push_back(key);
      kept.push_back(item);
    }
  }
  return interpreter.iterator(std::move(kept));
}

} // namespace

FilterFunction findFilter(std::string_view name) {
  static const std::unordered_map<std::string_view, FilterFunction> filters = {
      {"abs", abs},           {"attr", attr},       {"capitalize", capitalize},
      {"count", length},      {"d", defaultTo},     {"default", defaultTo},
      {"dictsort", dictsort}, {"e", escape},        {"escape", escape},
      {"first", first},       {"float", toFloat},   {"indent", indent},
      {"int", toInt},         {"items", items},     {"join", join},
      {"last", last},         {"length", length},   {"list", list},
      {"lower", lower},       {"map", map},         {"max", max},
      {"min", min},           {"reject", reject},   {"rejectattr", rejectattr},
      {"replace", replace},   {"reverse", reverse}, {"round", round},
      {"safe", safe},         {"select", select},   {"selectattr", selectattr},
      {"sort", sort},         {"string", string},   {"sum", sum},
      {"title", title},       {"tojson", tojson},   {"trim", trim},
      {"unique", unique},     {"upper", upper},
  };
  auto it = filters.find(name);
  return it == filters.end() ? nullptr : it->second;
}

} // namespace sluice::runtime::jinja
