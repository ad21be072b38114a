// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// JSON from files that nobody vouches for.

#ifndef SLUICE_LIB_IMPORT_JSON_H
#define SLUICE_LIB_IMPORT_JSON_H

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <nlohmann/json.hpp>

namespace sluice::detail {

/// Parses an object. Bad JSON, a key given twice, nesting deeper than 32 and anything but an object
/// at the top are errors that name the file and the place.
llvm::Expected<nlohmann::json> parseJsonObject(llvm::StringRef text, llvm::StringRef file);

/// A value for an error line: compact, one line, at most 60 characters.
std::string jsonText(const nlohmann::json &value);

} // namespace sluice::detail

#endif // SLUICE_LIB_IMPORT_JSON_H
