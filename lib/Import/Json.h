// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// JSON objects for readers that return llvm::Expected.

#ifndef SLUICE_LIB_IMPORT_JSON_H
#define SLUICE_LIB_IMPORT_JSON_H

#include "sluice-support/Json.h"
#include "sluice/Import/Expected.h"

#include "llvm/ADT/StringRef.h"

namespace sluice::detail {

/// Parses a text with an object at its top.
inline llvm::Expected<nlohmann::json> parseJsonObject(llvm::StringRef text, llvm::StringRef file) {
  return toExpected([&] {
    std::string name = file.str();
    nlohmann::json document = support::parseJson(text, name);
    support::JsonField(document, "", name).asObject();
    return document;
  });
}

} // namespace sluice::detail

#endif // SLUICE_LIB_IMPORT_JSON_H
