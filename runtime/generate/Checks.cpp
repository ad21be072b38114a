// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/generate/Checks.h"

using namespace sluice::runtime;

std::unique_ptr<Device> sluice::runtime::openDevice(const std::shared_ptr<const Artifact> &artifact,
                                                    const SessionOptions &options) {
  std::unique_ptr<Device> device =
      createDevice(options.device.empty() ? defaultDevice(artifact->plan()) : options.device,
                   options.deviceOptions);
  device->load(artifact);
  return device;
}

void sluice::runtime::checkTokens(const ModelInfo &model, std::span<const int32_t> tokens,
                                  const char *where) {
  for (int32_t token : tokens)
    if (!isInVocabulary(model, token))
      throw Error("token " + std::to_string(token) + where +
                  " is not in the model's vocabulary of " + std::to_string(model.vocabSize));
}

void sluice::runtime::failChoice(const ModelInfo &model, int32_t token) {
  throw Error("the device chose token " + std::to_string(token) + " of a vocabulary of " +
              std::to_string(model.vocabSize));
}
