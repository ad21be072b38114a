// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Json.h"

#include <algorithm>
#include <cmath>

namespace sluice::runtime::tokenizer {

int32_t asId(const JsonField &field, const Data &data) {
  return static_cast<int32_t>(field.asInt(0, static_cast<int64_t>(data.tokens.size()) - 1));
}

double asFinite(const JsonField &field) {
  // What is finite in 64 bits may not be in the 32 that SentencePiece has.
  if (!field.get().is_number() || !std::isfinite(field.get().get<float>()))
    field.fail("a finite number");
  return field.get().get<double>();
}

std::string decodeBase64(const JsonField &field) {
  std::string_view text = field.asString();
  std::string out;
  if (text.size() % 4 != 0)
    field.fail("base64");
  for (size_t i = 0; i < text.size(); i += 4) {
    uint32_t group = 0;
    size_t count = 3;
    for (size_t k = 0; k < 4; ++k) {
      size_t digit = base64Digits.find(text[i + k]);
      if (text[i + k] == '=' && i + 4 == text.size() && k >= 2 && (k == 3 || text[i + 3] == '=')) {
        count = std::min(count, k - 1);
        digit = 0;
      }
      if (digit == std::string_view::npos)
        field.fail("base64");
      group = group << 6 | static_cast<uint32_t>(digit);
    }
    for (size_t k = 0; k < count; ++k)
      out.push_back(static_cast<char>(group >> (16 - 8 * k)));
  }
  return out;
}

Data readJson(std::string_view text, const std::string &name, bool &isOwn) {
  nlohmann::json parsed = parseJson(text, name);
  JsonField root(parsed, "", name);
  isOwn = root.find("format").has_value();
  return isOwn ? readOwnForm(root) : readHuggingFace(root);
}

} // namespace sluice::runtime::tokenizer
