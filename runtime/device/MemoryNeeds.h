// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a session takes of a device's memory, compared with what is there before any is allocated.

#ifndef SLUICE_RUNTIME_DEVICE_MEMORYNEEDS_H
#define SLUICE_RUNTIME_DEVICE_MEMORYNEEDS_H

#include "sluice-runtime/Artifact.h"

#include <cstdint>
#include <string>

namespace sluice::runtime {

/// Bytes that a device is going to allocate.
struct MemoryNeeds {
  uint64_t weights = 0;
  /// Keys and values of the whole context, or of all pages.
  uint64_t caches = 0;
  uint64_t rest = 0;
  uint64_t total() const { return weights + caches + rest; }
};

/// Throws an Error with all numbers if that is more than `present`. `memory` says which memory, and
/// `owner` whose and what is present: "GPU memory", "NVIDIA H100 has 1000 free".
inline void requireMemory(const Artifact &artifact, const MemoryNeeds &needs, uint64_t present,
                          const std::string &memory, const std::string &owner) {
  if (needs.total() <= present)
    return;
  const ModelInfo &model = artifact.model();
  throw Error(artifact.planName() + ": a session needs " + std::to_string(needs.total()) +
              " bytes of " + memory + " (weights " + std::to_string(needs.weights) +
              ", keys and values of " +
              (model.cachePages ? std::to_string(model.cachePages) + " pages "
                                : std::to_string(model.contextLength) + " positions ") +
              std::to_string(needs.caches) + ", the rest " + std::to_string(needs.rest) + "), " +
              owner + "; compile the model with smaller weights or " +
              (model.cachePages ? "fewer pages (--cache-pages)" : "a shorter context"));
}

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_DEVICE_MEMORYNEEDS_H
