// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Json.h"

#include "Diagnostics.h"

#include "llvm/ADT/StringSet.h"

#include <vector>

using namespace llvm;
using nlohmann::json;

static constexpr int maxDepth = 32;

Expected<json> sluice::detail::parseJsonObject(StringRef text, StringRef file) {
  // A key that is given twice would silently win over the first one.
  std::string complaint;
  std::vector<StringSet<>> keys;
  json::parser_callback_t watch = [&](int depth, json::parse_event_t event, json &value) {
    if (!complaint.empty())
      return false;
    switch (event) {
    case json::parse_event_t::object_start:
    case json::parse_event_t::array_start:
      if (depth >= maxDepth) {
        complaint = "JSON is nested deeper than " + std::to_string(maxDepth) + " levels";
        return false;
      }
      if (event == json::parse_event_t::object_start)
        keys.emplace_back();
      return true;
    case json::parse_event_t::object_end:
      keys.pop_back();
      return true;
    case json::parse_event_t::key: {
      const auto &key = value.get_ref<const std::string &>();
      if (!keys.back().insert(key).second) {
        complaint = "JSON has the key " + quote(key) + " twice in one object";
        return false;
      }
      return true;
    }
    default:
      return true;
    }
  };

  json result;
  try {
    result = json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error &error) {
    if (complaint.empty())
      return fail(file, "not valid JSON: error at byte " + Twine(error.byte) + " of " +
                            Twine(text.size()));
  } catch (const json::exception &error) {
    // A number beyond double's range.
    if (complaint.empty())
      return fail(file, "not usable JSON: " + sanitize(error.what(), 120));
  }
  if (!complaint.empty())
    return fail(file, complaint);
  if (!result.is_object())
    return fail(file, "JSON holds a value of type " + StringRef(result.type_name()) +
                          " at the top, expected an object");
  return result;
}

std::string sluice::detail::jsonText(const json &value) {
  // Containers could be huge; their kind is enough.
  if (value.is_structured())
    return "an " + std::string(value.type_name()) + " of " + std::to_string(value.size());
  return sanitize(value.dump(-1, ' ', false, json::error_handler_t::replace), 60);
}
