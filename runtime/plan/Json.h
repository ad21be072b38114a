// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// JSON from files that may be damaged: parsing with limits, and typed access whose errors say
// where.

#ifndef SLUICE_RUNTIME_PLAN_JSON_H
#define SLUICE_RUNTIME_PLAN_JSON_H

#include "sluice-runtime/Error.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::runtime {

/// Parses a whole text. Rejects what a careless parser lets pass: more than `maxDepth` levels
/// (whose destruction and printing would recurse as deep) and a key that an object has twice.
nlohmann::json parseJson(std::string_view text, const std::string &name, int maxDepth = 32);

/// A value and where it is: "plan.json: buffers[3].bytes is -1, expected ...".
class JsonValue {
public:
  JsonValue(const nlohmann::json &value, const std::string &name, std::string path = {})
      : value(value), name(name), path(std::move(path)) {}

  /// A member that must be there.
  JsonValue at(const char *key) const;
  bool has(const char *key) const { return value.is_object() && value.contains(key); }
  /// Elements of an array or members of an object.
  size_t size() const { return value.size(); }
  JsonValue operator[](size_t index) const;
  /// Calls `function(key, JsonValue)` for each member.
  template <typename F> void forEachMember(F &&function) const {
    requireObject();
    for (auto &[key, member] : value.items())
      function(key, JsonValue(member, name, join(key)));
  }

  void requireObject() const;
  /// Checks that it is an array of at most `limit` elements.
  void requireArray(size_t limit) const;
  int64_t integer(int64_t min, int64_t max) const;
  bool boolean() const;
  bool isNull() const { return value.is_null(); }
  /// At most `limit` bytes, without control characters.
  std::string string(size_t limit = 4096) const;

  /// Throws: "name: path is VALUE, expected `expected`".
  [[noreturn]] void fail(const std::string &expected) const;
  /// Throws: "name: path: `message`".
  [[noreturn]] void failWith(const std::string &message) const;

private:
  std::string join(const std::string &key) const;

  const nlohmann::json &value;
  const std::string &name;
  std::string path;
};

/// Makes text fit for one line of a message: control characters become '?', a long text is cut.
std::string printable(std::string_view text, size_t limit = 60);

/// Sixteen lowercase hexadecimal digits.
std::string hexDigits(uint64_t value);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_PLAN_JSON_H
