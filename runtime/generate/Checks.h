// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What everything that runs an artifact's steps asks first.

#ifndef SLUICE_RUNTIME_GENERATE_CHECKS_H
#define SLUICE_RUNTIME_GENERATE_CHECKS_H

#include "sluice-runtime/Session.h"

namespace sluice::runtime {

/// The device that the options name, or the artifact's own, with the artifact loaded.
std::unique_ptr<Device> openDevice(const std::shared_ptr<const Artifact> &artifact,
                                   const SessionOptions &options);

/// Whether the model has a logit for the token.
inline bool isInVocabulary(const ModelInfo &model, int32_t token) {
  return token >= 0 && token < model.vocabSize;
}

/// An Error if a token is not in the vocabulary; `where` follows its number (" of the prompt").
void checkTokens(const ModelInfo &model, std::span<const int32_t> tokens, const char *where = "");

/// An Error that says which token a device chose that no model has.
[[noreturn]] void failChoice(const ModelInfo &model, int32_t token);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_GENERATE_CHECKS_H
