// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The forms of tokenizer.json.

#ifndef SLUICE_RUNTIME_TOKENIZER_JSON_H
#define SLUICE_RUNTIME_TOKENIZER_JSON_H

#include "Data.h"

#include "sluice-support/Json.h"

namespace sluice::runtime::tokenizer {

using support::JsonField;
using support::parseJson;

/// The field's value, checked to be the id of a token.
int32_t asId(const JsonField &field, const Data &data);

/// The field's value, a number that is finite in 32 bits.
double asFinite(const JsonField &field);

inline constexpr std::string_view base64Digits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// The bytes of a string in base64.
std::string decodeBase64(const JsonField &field);

Data readOwnForm(const JsonField &root);
Data readHuggingFace(const JsonField &root);

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_JSON_H
