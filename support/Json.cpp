// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-support/Json.h"

#include "sluice-support/NumberText.h"
#include "sluice-support/Text.h"

#include <algorithm>
#include <cmath>

using namespace sluice::support;
using nlohmann::json;

namespace {

/// Builds the tree, as nlohmann's own parser does but for the checks. Throws Error.
class TreeBuilder final : public nlohmann::json_sax<json> {
public:
  TreeBuilder(const std::string &file, size_t maxDepth) : file(file), maxDepth(maxDepth) {}

  json takeRoot() { return std::move(root); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(json::number_integer_t value) override { return put(value); }
  bool number_unsigned(json::number_unsigned_t value) override { return put(value); }
  bool number_float(json::number_float_t value, const std::string &) override { return put(value); }
  bool string(std::string &value) override { return put(std::move(value)); }
  bool binary(json::binary_t &) override { return false; } // JSON text has none

  bool start_object(size_t) override { return open(json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_array() override { return close(); }

  bool key(std::string &key) override {
    auto &members = parents.back()->get_ref<json::object_t &>();
    auto [member, isNew] = members.emplace(key, nullptr);
    if (!isNew)
      throw Error(file + ": JSON has the key " + quote(key) + " twice in one object");
    next = &member->second;
    return true;
  }

  bool parse_error(size_t, const std::string &, const json::exception &error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    std::string_view what = error.what();
    if (size_t end = what.find("] "); end != what.npos)
      what.remove_prefix(end + 2);
    throw Error(file + ": not valid JSON: " + printable(what, 240));
  }

private:
  /// Where the value that comes next belongs.
  json &place() {
    if (parents.empty())
      return root;
    if (parents.back()->is_array())
      return parents.back()->emplace_back();
    return *next;
  }

  template <typename T> bool put(T &&value) {
    place() = std::forward<T>(value);
    return true;
  }

  bool open(json container) {
    if (parents.size() >= maxDepth)
      throw Error(file + ": JSON is nested deeper than " + std::to_string(maxDepth) + " levels");
    json &opened = place();
    opened = std::move(container);
    parents.push_back(&opened);
    return true;
  }

  bool close() {
    parents.pop_back();
    return true;
  }

  const std::string &file;
  size_t maxDepth;
  json root;
  /// The containers that are open, outermost first. An element's address holds while it is open, as
  /// nothing is added to its parent meanwhile.
  std::vector<json *> parents;
  /// The member whose key was read last.
  json *next = nullptr;
};

} // namespace

json sluice::support::parseJson(std::string_view text, const std::string &file, size_t maxDepth) {
  if (text.empty())
    throw Error(file + ": is empty, expected JSON");
  TreeBuilder builder(file, maxDepth);
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.takeRoot();
}

std::string sluice::support::describeJson(const json &value) {
  switch (value.type()) {
  case json::value_t::string:
    return quote(value.get_ref<const std::string &>());
  case json::value_t::object:
    return "an object of " + std::to_string(value.size()) + " members";
  case json::value_t::array:
    return "an array of " + std::to_string(value.size()) + " elements";
  default:
    return value.dump();
  }
}

void JsonField::fail(const std::string &expected) const {
  throw Error(*file + ": " + (path.empty() ? "" : path + " ") + "is " + describeJson(*value) +
              ", expected " + expected);
}

void JsonField::failWith(const std::string &message) const {
  throw Error(*file + ": " + (path.empty() ? "" : path + " ") + message);
}

static std::string join(const std::string &path, std::string_view key) {
  return (path.empty() ? "" : path + ".") + printable(key);
}

std::optional<JsonField> JsonField::find(std::string_view key) const {
  const auto &object = asObject();
  auto member = object.find(key);
  if (member == object.end() || member->second.is_null())
    return std::nullopt;
  return JsonField(member->second, join(path, key), *file);
}

JsonField JsonField::at(std::string_view key) const {
  std::optional<JsonField> member = find(key);
  if (!member)
    throw Error(*file + ": " + join(path, key) + " is missing");
  return *member;
}

void JsonField::allowOnly(std::initializer_list<std::string_view> keys) const {
  for (const auto &[key, member] : asObject()) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end())
      continue;
    std::string all;
    for (std::string_view known : keys)
      all.append(all.empty() ? "" : ", ").append(known);
    throw Error(*file + ": unknown key " + quote(join(path, key)) + ", expected " + all);
  }
}

const json::object_t &JsonField::asObject() const {
  if (!value->is_object())
    fail("an object");
  return value->get_ref<const json::object_t &>();
}

std::vector<std::pair<std::string, JsonField>> JsonField::members() const {
  std::vector<std::pair<std::string, JsonField>> fields;
  for (const auto &[key, member] : asObject())
    fields.emplace_back(key, JsonField(member, join(path, key), *file));
  return fields;
}

const json::array_t &JsonField::asArray(size_t limit) const {
  if (!value->is_array())
    fail("an array");
  if (value->size() > limit)
    fail("an array of at most " + std::to_string(limit));
  return value->get_ref<const json::array_t &>();
}

std::vector<JsonField> JsonField::elements(size_t limit) const {
  std::vector<JsonField> fields;
  const auto &array = asArray(limit);
  fields.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i)
    fields.emplace_back(array[i], path + "[" + std::to_string(i) + "]", *file);
  return fields;
}

const std::string &JsonField::asString() const {
  if (!value->is_string())
    fail("a string");
  return value->get_ref<const std::string &>();
}

const std::string &JsonField::asText(size_t limit) const {
  const std::string &text = asString();
  if (text.size() > limit)
    fail("a string of at most " + std::to_string(limit) + " bytes");
  for (char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      fail("a string without control characters");
  return text;
}

bool JsonField::asBool() const {
  if (!value->is_boolean())
    fail("true or false");
  return value->get<bool>();
}

int64_t JsonField::asInt(int64_t least, int64_t most) const {
  std::string expected = "an integer from " + std::to_string(least) + " to " + std::to_string(most);
  // The parser makes a double of an integer that 64 bits do not hold.
  if (value->is_number_float() && std::fabs(value->get<double>()) >= 0x1p63 &&
      std::trunc(value->get<double>()) == value->get<double>())
    fail(expected + ": the number is beyond 64 bits");
  bool fits = value->is_number_unsigned()
                  ? value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                  : value->is_number_integer();
  if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most)
    fail(expected);
  return value->get<int64_t>();
}

double JsonField::asNumber(double least, double most) const {
  double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number >= least && number <= most))
    fail("a number from " + numberText(least) + " to " + numberText(most));
  return number;
}

double JsonField::asPositive() const {
  double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number > 0 && std::isfinite(number)))
    fail("a number above 0");
  return number;
}

bool JsonField::boolAt(std::string_view key, bool otherwise) const {
  std::optional<JsonField> member = find(key);
  return member ? member->asBool() : otherwise;
}

std::string JsonField::stringAt(std::string_view key, std::string_view otherwise) const {
  std::optional<JsonField> member = find(key);
  return member ? member->asString() : std::string(otherwise);
}

int64_t JsonField::intAt(std::string_view key, int64_t least, int64_t most,
                         int64_t otherwise) const {
  std::optional<JsonField> member = find(key);
  return member ? member->asInt(least, most) : otherwise;
}

double JsonField::positiveAt(std::string_view key, double otherwise) const {
  std::optional<JsonField> member = find(key);
  return member ? member->asPositive() : otherwise;
}
