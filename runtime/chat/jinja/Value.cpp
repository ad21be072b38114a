// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Value.h"

#include "Text.h"

#include "sluice-support/Text.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace sluice::runtime::jinja {

Object::~Object() = default;
std::optional<Value> Object::attribute(Interpreter &, std::string_view) { return std::nullopt; }
Value Object::call(Interpreter &, const Arguments &) {
  throw Failure{"'" + typeName() + "' object is not callable"};
}

Value Value::none() {
  Value value;
  value.data = NoneValue{};
  return value;
}

Value Value::undefined(std::string why) {
  Value value;
  value.data = UndefinedValue{std::make_shared<const std::string>(std::move(why))};
  return value;
}

uint64_t Value::weight() const {
  if (isString())
    return 16 + asString().size();
  if (isList())
    return asList().extent.weight;
  return isDict() ? asDict().extent.weight : 16;
}

void Extent::add(const Value &item) {
  uint32_t inner = item.isList()   ? item.asList().extent.depth
                   : item.isDict() ? item.asDict().extent.depth
                                   : 0;
  depth = std::max(depth, inner + 1);
  // A container's weight has a limit, so that few sums can not overflow.
  weight = std::min(weight + item.weight(), 2 * Value::maxWeight);
}

void Extent::check() const {
  if (depth > Value::maxDepth)
    throw Failure{"lists and dicts are nested deeper than " + std::to_string(Value::maxDepth) +
                  " levels"};
  if (weight > Value::maxWeight)
    throw Failure{"a list or dict is larger than " + std::to_string(Value::maxWeight >> 20) +
                  " MiB"};
}

Value Value::makeList(Values items, uint8_t kind) {
  auto list = std::make_shared<List>();
  list->kind = static_cast<List::Kind>(kind);
  for (const Value &item : items)
    list->extent.add(item);
  list->extent.check();
  list->items = std::move(items);
  Value value;
  value.data = ListPointer(std::move(list));
  return value;
}

Value Value::list(Values items) {
  return makeList(std::move(items), static_cast<uint8_t>(List::Kind::List));
}
Value Value::tuple(Values items) {
  return makeList(std::move(items), static_cast<uint8_t>(List::Kind::Tuple));
}
Value Value::iterator(Values items) {
  return makeList(std::move(items), static_cast<uint8_t>(List::Kind::Iterator));
}

Value Value::dict(std::vector<std::pair<Value, Value>> items) {
  auto dict = std::make_shared<Dict>();
  for (const auto &[key, item] : items) {
    dict->extent.add(key);
    dict->extent.add(item);
  }
  dict->extent.check();
  dict->items = std::move(items);
  Value value;
  value.data = DictPointer(std::move(dict));
  return value;
}

Value Value::fromJson(const nlohmann::ordered_json &json) {
  switch (json.type()) {
  case nlohmann::json::value_t::null:
    return none();
  case nlohmann::json::value_t::boolean:
    return json.get<bool>();
  case nlohmann::json::value_t::number_integer:
    return json.get<int64_t>();
  case nlohmann::json::value_t::number_unsigned:
    if (json.get<uint64_t>() > INT64_MAX)
      throw Failure{"number " + json.dump() + " does not fit in 64 bits"};
    return json.get<int64_t>();
  case nlohmann::json::value_t::number_float:
    return json.get<double>();
  case nlohmann::json::value_t::string:
    return json.get<std::string>();
  case nlohmann::json::value_t::array: {
    Values items;
    for (const auto &item : json)
      items.push_back(fromJson(item));
    return list(std::move(items));
  }
  case nlohmann::json::value_t::object: {
    std::vector<std::pair<Value, Value>> items;
    for (const auto &[key, item] : json.items())
      items.emplace_back(Value(key), fromJson(item));
    return dict(std::move(items));
  }
  default:
    throw Failure{"JSON value of a kind that templates do not have"};
  }
}

bool Value::isNumber() const {
  return kind() == Kind::Boolean || kind() == Kind::Integer || kind() == Kind::Float;
}

int64_t Value::asInteger() const {
  return kind() == Kind::Boolean ? int64_t(std::get<bool>(data)) : std::get<int64_t>(data);
}

double Value::asDouble() const {
  return kind() == Kind::Float ? std::get<double>(data) : static_cast<double>(asInteger());
}

std::string Value::why() const {
  const auto &reason = std::get<UndefinedValue>(data).why;
  return reason ? *reason : "a value is undefined";
}

bool Value::isTrue() const {
  switch (kind()) {
  case Kind::Undefined:
  case Kind::None:
    return false;
  case Kind::Boolean:
  case Kind::Integer:
    return asInteger() != 0;
  case Kind::Float:
    return asDouble() != 0;
  case Kind::String:
    return !asString().empty();
  case Kind::List:
    return asList().kind == List::Kind::Iterator || !asList().items.empty();
  case Kind::Dict:
    return !asDict().items.empty();
  case Kind::Object:
    return true;
  }
  return false;
}

std::string Value::typeName() const {
  switch (kind()) {
  case Kind::Undefined:
    return "Undefined";
  case Kind::None:
    return "NoneType";
  case Kind::Boolean:
    return "bool";
  case Kind::Integer:
    return "int";
  case Kind::Float:
    return "float";
  case Kind::String:
    return "str";
  case Kind::List:
    return asList().kind == List::Kind::List    ? "list"
           : asList().kind == List::Kind::Tuple ? "tuple"
                                                : "generator";
  case Kind::Dict:
    return "dict";
  case Kind::Object:
    return asObject()->typeName();
  }
  return "";
}

std::string floatText(double value) {
  if (std::isnan(value))
    return "nan";
  if (std::isinf(value))
    return value < 0 ? "-inf" : "inf";
  char digits[64];
  // Python's repr: the shortest digits that give the number back, as a power below 1e-4 and from
  // 1e16 on.
  double size = std::fabs(value);
  bool power = size != 0 && (size < 1e-4 || size >= 1e16);
  auto [end, error] =
      std::to_chars(digits, std::end(digits), value,
                    power ? std::chars_format::scientific : std::chars_format::fixed);
  (void)error;
  std::string text(digits, end);
  if (!power && text.find('.') == std::string::npos)
    text += ".0";
  return text;
}

/// As Python chooses quotes and escapes.
static void appendQuoted(std::string &out, std::string_view text) {
  char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos
                   ? '"'
                   : '\'';
  out += quote;
  while (!text.empty()) {
    support::Utf8Char c = support::decodeUtf8(text);
    char byte = text.front();
    bool isCharacter = c.status == support::Utf8Status::Valid;
    if (byte == quote || byte == '\\')
      (out += '\\') += byte;
    else if (byte == '\n')
      out += "\\n";
    else if (byte == '\r')
      out += "\\r";
    else if (byte == '\t')
      out += "\\t";
    else if (!isCharacter || isPrintable(c.codePoint))
      out += text.substr(0, c.length);
    else if (c.codePoint < 0x100)
      (out += "\\x") += support::hexDigits(c.codePoint).substr(14);
    else if (c.codePoint < 0x10000)
      (out += "\\u") += support::hexDigits(c.codePoint).substr(12);
    else
      (out += "\\U") += support::hexDigits(c.codePoint).substr(8);
    text.remove_prefix(c.length);
  }
  out += quote;
}

void Value::appendRepr(std::string &out) const {
  switch (kind()) {
  case Kind::Undefined:
    out += "Undefined";
    return;
  case Kind::None:
    out += "None";
    return;
  case Kind::Boolean:
    out += asBoolean() ? "True" : "False";
    return;
  case Kind::Integer:
    out += std::to_string(asInteger());
    return;
  case Kind::Float:
    out += floatText(asDouble());
    return;
  case Kind::String:
    appendQuoted(out, asString());
    return;
  case Kind::List: {
    const List &list = asList();
    if (list.kind == List::Kind::Iterator) {
      out += "<generator>";
      return;
    }
    bool isTuple = list.kind == List::Kind::Tuple;
    out += isTuple ? '(' : '[';
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0)
        out += ", ";
      list.items[i].appendRepr(out);
    }
    if (isTuple && list.items.size() == 1)
      out += ',';
    out += isTuple ? ')' : ']';
    return;
  }
  case Kind::Dict: {
    out += '{';
    bool first = true;
    for (const auto &[key, value] : asDict().items) {
      if (!std::exchange(first, false))
        out += ", ";
      key.appendRepr(out);
      out += ": ";
      value.appendRepr(out);
    }
    out += '}';
    return;
  }
  case Kind::Object:
    out += "<" + asObject()->typeName() + ">";
    return;
  }
}

std::string Value::repr() const {
  std::string out;
  appendRepr(out);
  return out;
}

std::string Value::str() const {
  if (isString())
    return asString();
  return isUndefined() ? std::string() : repr();
}

const Value *Dict::find(const Value &key) const {
  for (const auto &[known, value] : items)
    if (equal(known, key))
      return &value;
  return nullptr;
}

const Value *Dict::find(std::string_view key) const {
  for (const auto &[known, value] : items)
    if (known.isString() && known.asString() == key)
      return &value;
  return nullptr;
}

bool equal(const Value &left, const Value &right) {
  using Kind = Value::Kind;
  if (left.isNumber() && right.isNumber()) {
    if (left.isInteger() && right.isInteger())
      return left.asInteger() == right.asInteger();
    return left.asDouble() == right.asDouble();
  }
  if (left.kind() != right.kind())
    return false;
  switch (left.kind()) {
  case Kind::Undefined:
  case Kind::None:
    return true;
  case Kind::String:
    return left.asString() == right.asString();
  case Kind::List: {
    const List &a = left.asList(), &b = right.asList();
    return a.kind == b.kind && a.kind != List::Kind::Iterator &&
           std::equal(a.items.begin(), a.items.end(), b.items.begin(), b.items.end(), equal);
  }
  case Kind::Dict: {
    const Dict &a = left.asDict(), &b = right.asDict();
    return a.items.size() == b.items.size() &&
           std::all_of(a.items.begin(), a.items.end(), [&](const auto &item) {
             const Value *other = b.find(item.first);
             return other && equal(item.second, *other);
           });
  }
  case Kind::Object:
    return left.asObject() == right.asObject();
  default:
    return false;
  }
}

bool less(const Value &left, const Value &right, const char *op) {
  if (left.isNumber() && right.isNumber()) {
    if (left.isInteger() && right.isInteger())
      return left.asInteger() < right.asInteger();
    return left.asDouble() < right.asDouble();
  }
  if (left.isString() && right.isString())
    return left.asString() < right.asString();
  if (left.isList() && right.isList() && left.asList().kind == right.asList().kind &&
      left.asList().kind != List::Kind::Iterator) {
    const Values &a = left.asList().items, &b = right.asList().items;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
      if (!equal(a[i], b[i]))
        return less(a[i], b[i], op);
    return a.size() < b.size();
  }
  for (const Value *side : {&left, &right})
    if (side->isUndefined())
      throw Failure{side->why()};
  throw Failure{"'" + std::string(op) + "' is not supported between '" + left.typeName() +
                "' and '" + right.typeName() + "'"};
}

} // namespace sluice::runtime::jinja
