// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_JSONFIELDS_H
#define SLUICE_RUNTIME_TOKENIZER_JSONFIELDS_H

#include "Data.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::runtime::tokenizer {

/// A value in a JSON file that knows its place, so that a wrong one can be named.
class JsonField {
public:
  JsonField(const nlohmann::json &value, std::string path, const std::string &file)
      : value(&value), path(std::move(path)), file(&file) {}

  const nlohmann::json &get() const { return *value; }
  const std::string &getPath() const { return path; }
  const std::string &getFile() const { return *file; }

  /// A member of this object; null and absent are the same.
  std::optional<JsonField> find(const char *key) const;
  JsonField at(const char *key) const;

  const nlohmann::json::object_t &asObject() const;
  const nlohmann::json::array_t &asArray() const;
  std::vector<JsonField> elements() const;
  const std::string &asString() const;
  bool asBool() const;
  int64_t asInt(int64_t least, int64_t most) const;
  int32_t asId(const Data &data) const;

  /// Members with a default.
  bool boolAt(const char *key, bool otherwise) const;
  std::string stringAt(const char *key, const char *otherwise) const;

  /// "FILE: PATH is FOUND, expected EXPECTED".
  [[noreturn]] void fail(const std::string &expected) const;

private:
  const nlohmann::json *value;
  std::string path;
  const std::string *file;
};

/// Throws Error with the place of a syntax error.
nlohmann::json parseJson(std::string_view text, const std::string &file);

Data readOwnForm(const JsonField &root);
Data readHuggingFace(const JsonField &root);

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_JSONFIELDS_H
