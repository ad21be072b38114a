// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Json.h"

namespace sluice::runtime::tokenizer {

int32_t asId(const JsonField &field, const Data &data) {
  return static_cast<int32_t>(field.asInt(0, static_cast<int64_t>(data.tokens.size()) - 1));
}

Data readJson(std::string_view text, const std::string &name, bool &isOwn) {
  nlohmann::json parsed = parseJson(text, name);
  JsonField root(parsed, "", name);
  isOwn = root.find("format").has_value();
  return isOwn ? readOwnForm(root) : readHuggingFace(root);
}

} // namespace sluice::runtime::tokenizer
