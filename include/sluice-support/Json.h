// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// JSON from files that nobody vouches for: parsing with limits, and typed access whose errors name
// the file, the place, what was found and what was expected.

#ifndef SLUICE_SUPPORT_JSON_H
#define SLUICE_SUPPORT_JSON_H

#include "sluice-support/Error.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::support {

/// Parses a whole text. `file` starts each error's message. Beside what is not JSON, an error is a
/// key that one object has twice (either value could be the one that is meant) and nesting of more
/// than `maxDepth` levels.
nlohmann::json parseJson(std::string_view text, const std::string &file, size_t maxDepth = 32);

/// A value for a message: a string in single quotes, numbers as JSON, of objects and arrays the
/// kind and size.
std::string describeJson(const nlohmann::json &value);

/// A value in a JSON file that knows its place, so that a wrong one can be named:
/// "plan.json: buffers[3].bytes is -1, expected an integer from 0 to 7". Refers to the value and to
/// the file's name, which have to live as long. Every function that checks throws Error.
class JsonField {
public:
  JsonField(const nlohmann::json &value, std::string path, const std::string &file)
      : value(&value), path(std::move(path)), file(&file) {}

  const nlohmann::json &get() const { return *value; }
  const std::string &getPath() const { return path; }
  const std::string &getFile() const { return *file; }

  /// A member of this object; null and absent are the same.
  std::optional<JsonField> find(std::string_view key) const;
  /// A member that has to be there.
  JsonField at(std::string_view key) const;
  /// Fails on a member whose key is none of these.
  void allowOnly(std::initializer_list<std::string_view> keys) const;

  const nlohmann::json::object_t &asObject() const;
  /// The members of this object, sorted by key.
  std::vector<std::pair<std::string, JsonField>> members() const;
  const nlohmann::json::array_t &asArray(size_t limit = SIZE_MAX) const;
  /// The elements of this array of at most `limit`.
  std::vector<JsonField> elements(size_t limit = SIZE_MAX) const;
  const std::string &asString() const;
  /// A string of at most `limit` bytes without control characters.
  const std::string &asText(size_t limit = 4096) const;
  bool asBool() const;
  int64_t asInt(int64_t least, int64_t most) const;
  /// Any number but one beyond double's range.
  double asNumber(double least, double most) const;
  /// A number above 0.
  double asPositive() const;

  /// Members with a default for where they are absent or null.
  bool boolAt(std::string_view key, bool otherwise) const;
  std::string stringAt(std::string_view key, std::string_view otherwise) const;
  int64_t intAt(std::string_view key, int64_t least, int64_t most, int64_t otherwise) const;
  double positiveAt(std::string_view key, double otherwise) const;

  /// "FILE: PATH is FOUND, expected EXPECTED".
  [[noreturn]] void fail(const std::string &expected) const;
  /// "FILE: PATH MESSAGE".
  [[noreturn]] void failWith(const std::string &message) const;

private:
  const nlohmann::json *value;
  std::string path;
  const std::string *file;
};

} // namespace sluice::support

#endif // SLUICE_SUPPORT_JSON_H
