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

Data readOwnForm(const JsonField &root);
Data readHuggingFace(const JsonField &root);

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_JSON_H
