// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "JsonFields.h"

#include "Utf8.h"

using nlohmann::json;

namespace sluice::runtime::tokenizer {

static std::string describe(const json &value) {
  switch (value.type()) {
  case json::value_t::string:
    return inQuotes(value.get_ref<const std::string &>());
  case json::value_t::object:
    return "an object of " + std::to_string(value.size()) + " members";
  case json::value_t::array:
    return "an array of " + std::to_string(value.size()) + " elements";
  default:
    return value.dump();
  }
}

void JsonField::fail(const std::string &expected) const {
  throw Error(*file + ": " + path + " is " + describe(*value) + ", expected " + expected);
}

std::optional<JsonField> JsonField::find(const char *key) const {
  const auto &members = asObject();
  auto it = members.find(key);
  if (it == members.end() || it->second.is_null())
    return std::nullopt;
  return JsonField(it->second, path.empty() ? key : path + "." + key, *file);
}

JsonField JsonField::at(const char *key) const {
  std::optional<JsonField> member = find(key);
  if (!member)
    throw Error(*file + ": " + (path.empty() ? "" : path + ".") + key + " is missing");
  return *member;
}

const json::object_t &JsonField::asObject() const {
  if (!value->is_object()) {
    if (path.empty())
      throw Error(*file + ": is " + describe(*value) + ", expected an object");
    fail("an object");
  }
  return value->get_ref<const json::object_t &>();
}

const json::array_t &JsonField::asArray() const {
  if (!value->is_array())
    fail("an array");
  return value->get_ref<const json::array_t &>();
}

std::vector<JsonField> JsonField::elements() const {
  std::vector<JsonField> fields;
  const auto &array = asArray();
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

bool JsonField::asBool() const {
  if (!value->is_boolean())
    fail("true or false");
  return value->get<bool>();
}

int64_t JsonField::asInt(int64_t least, int64_t most) const {
  bool fits = value->is_number_unsigned()
                  ? value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
                  : value->is_number_integer();
  if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most)
    fail("an integer from " + std::to_string(least) + " to " + std::to_string(most));
  return value->get<int64_t>();
}

int32_t JsonField::asId(const Data &data) const {
  return static_cast<int32_t>(asInt(0, static_cast<int64_t>(data.tokens.size()) - 1));
}

bool JsonField::boolAt(const char *key, bool otherwise) const {
  std::optional<JsonField> member = find(key);
  return member ? member->asBool() : otherwise;
}

std::string JsonField::stringAt(const char *key, const char *otherwise) const {
  std::optional<JsonField> member = find(key);
  return member ? member->asString() : otherwise;
}

json parseJson(std::string_view text, const std::string &file) {
  try {
    return json::parse(text);
  } catch (const json::exception &e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...", which may quote a
    // lot of what it read, and bytes that are not text.
    std::string message = e.what();
    if (size_t end = message.find("] "); end != std::string::npos)
      message.erase(0, end + 2);
    for (char &c : message)
      if (c < ' ' || c > '~')
        c = '?';
    if (message.size() > 240)
      message = message.substr(0, 240) + "...";
    throw Error(file + ": not JSON: " + message);
  }
}

Data readJson(std::string_view text, const std::string &name, bool &isOwn) {
  json parsed = parseJson(text, name);
  JsonField root(parsed, "", name);
  isOwn = root.find("format").has_value();
  return isOwn ? readOwnForm(root) : readHuggingFace(root);
}

} // namespace sluice::runtime::tokenizer
