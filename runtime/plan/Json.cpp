// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/plan/Json.h"

#include <set>

using namespace sluice::runtime;
using nlohmann::json;

std::string sluice::runtime::printable(std::string_view text, size_t limit) {
  bool cut = text.size() > limit;
  if (cut) {
    text = text.substr(0, limit);
    // Not in the middle of a character.
    while (!text.empty() && (text.back() & 0xC0) == 0x80)
      text.remove_suffix(1);
    if (!text.empty() && (text.back() & 0x80))
      text.remove_suffix(1);
  }
  std::string result(text);
  for (char &c : result)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      c = '?';
  return cut ? result + "..." : result;
}

std::string sluice::runtime::hexDigits(uint64_t value) {
  std::string digits(16, '0');
  for (int i = 15; i >= 0; --i, value >>= 4)
    digits[i] = "0123456789abcdef"[value & 15];
  return digits;
}

json sluice::runtime::parseJson(std::string_view text, const std::string &name, int maxDepth) {
  // One set of keys for each open object; an array has none.
  std::vector<std::set<std::string>> keys;
  auto callback = [&](int depth, json::parse_event_t event, json &parsed) {
    switch (event) {
    case json::parse_event_t::object_start:
    case json::parse_event_t::array_start:
      if (depth >= maxDepth)
        throw Error(name + ": nested more than " + std::to_string(maxDepth) + " levels deep");
      keys.emplace_back();
      break;
    case json::parse_event_t::object_end:
    case json::parse_event_t::array_end:
      keys.pop_back();
      break;
    case json::parse_event_t::key:
      if (!keys.back().insert(parsed.get_ref<const std::string &>()).second)
        throw Error(name + ": key \"" + printable(parsed.get_ref<const std::string &>()) +
                    "\" appears twice in one object");
      break;
    case json::parse_event_t::value:
      break;
    }
    return true;
  };
  if (text.empty())
    throw Error(name + ": is empty, expected JSON");
  try {
    return json::parse(text.begin(), text.end(), callback);
  } catch (const json::exception &e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    std::string_view what = e.what();
    if (size_t end = what.find("] "); end != what.npos)
      what.remove_prefix(end + 2);
    throw Error(name + ": not valid JSON: " + printable(what, 200));
  }
}

std::string JsonValue::join(const std::string &key) const {
  return (path.empty() ? "" : path + ".") + printable(key);
}

JsonValue JsonValue::at(const char *key) const {
  requireObject();
  auto found = value.find(key);
  if (found == value.end())
    throw Error(name + ": " + join(key) + " is missing");
  return JsonValue(*found, name, join(key));
}

JsonValue JsonValue::operator[](size_t index) const {
  return JsonValue(value[index], name, path + "[" + std::to_string(index) + "]");
}

void JsonValue::requireObject() const {
  if (!value.is_object())
    fail("an object");
}

void JsonValue::requireArray(size_t limit) const {
  if (!value.is_array())
    fail("an array");
  if (value.size() > limit)
    failWith("has " + std::to_string(value.size()) + " elements, expected at most " +
             std::to_string(limit));
}

int64_t JsonValue::integer(int64_t min, int64_t max) const {
  bool fits = value.is_number_integer();
  if (fits && value.is_number_unsigned())
    fits = value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
  if (!fits || value.get<int64_t>() < min || value.get<int64_t>() > max)
    fail("an integer from " + std::to_string(min) + " to " + std::to_string(max));
  return value.get<int64_t>();
}

bool JsonValue::boolean() const {
  if (!value.is_boolean())
    fail("true or false");
  return value.get<bool>();
}

std::string JsonValue::string(size_t limit) const {
  if (!value.is_string())
    fail("a string");
  const std::string &text = value.get_ref<const std::string &>();
  if (text.size() > limit)
    fail("a string of at most " + std::to_string(limit) + " bytes");
  for (char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      fail("a string without control characters");
  return text;
}

void JsonValue::fail(const std::string &expected) const {
  std::string found;
  if (value.is_structured())
    found = value.is_array() ? "an array" : "an object";
  else
    found = printable(value.dump(-1, ' ', false, json::error_handler_t::replace));
  throw Error(name + ": " + (path.empty() ? "the top level" : path) + " is " + found +
              ", expected " + expected);
}

void JsonValue::failWith(const std::string &message) const {
  throw Error(name + ": " + (path.empty() ? "the top level" : path) + ": " + message);
}
