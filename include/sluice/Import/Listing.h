// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What is in a model file, for people and for programs.

#ifndef SLUICE_IMPORT_LISTING_H
#define SLUICE_IMPORT_LISTING_H

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/raw_ostream.h"

#include <nlohmann/json_fwd.hpp>

namespace sluice {

/// Describes a GGUF file, a safetensors file or a Hugging Face folder of any architecture:
///   {"path", "format": "GGUF" | "safetensors" | "Hugging Face", "version"?, "alignment"?,
///    "file_bytes", "trailing_bytes"?, "metadata": [{"key", "type", "value"}],
///    "tensors": [{"name", "type", "shape", "bytes", "offset", "file"}],
///    "totals": {"tensors", "elements", "bytes", "types": [{"type", "tensors", "bytes"}]}}
/// An array of more than 16 metadata values is {"count", "first": [...]}.
llvm::Expected<nlohmann::ordered_json> listModelFile(llvm::StringRef path);

/// The same as an aligned table.
void printListing(const nlohmann::ordered_json &listing, llvm::raw_ostream &os);

} // namespace sluice

#endif // SLUICE_IMPORT_LISTING_H
