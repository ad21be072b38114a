// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the numbers of a model's configuration must satisfy, whichever file they come from.

#ifndef SLUICE_LIB_IMPORT_MODELCONFIGCHECKS_H
#define SLUICE_LIB_IMPORT_MODELCONFIGCHECKS_H

#include "sluice/Import/ModelConfig.h"

#include "llvm/ADT/StringRef.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <string>

namespace sluice::detail {

/// Far above every published model and small enough that no product of three of them overflows.
namespace limits {
inline constexpr int64_t maxVocab = 1 << 24;
inline constexpr int64_t maxWidth = 1 << 20;
inline constexpr int64_t maxLayers = 1 << 12;
inline constexpr int64_t maxHeads = 1 << 12;
inline constexpr int64_t maxHeadDim = 1 << 12;
inline constexpr int64_t maxPositions = int64_t(1) << 30;
} // namespace limits

/// Checks what holds between the numbers of `config`. `headsKey` and `kvHeadsKey` are the names
/// that the file at `path` gives to them.
llvm::Error checkRelations(const ModelConfig &config, llvm::StringRef path,
                           llvm::StringRef headsKey, llvm::StringRef kvHeadsKey);

/// Checks that the token `id`, which the file at `path` has under `key`, is in the vocabulary.
llvm::Error checkTokenId(int64_t id, int64_t vocabSize, llvm::StringRef path, llvm::StringRef key);

/// "an integer from LOW to HIGH".
std::string rangeText(int64_t low, int64_t high);

} // namespace sluice::detail

#endif // SLUICE_LIB_IMPORT_MODELCONFIGCHECKS_H
