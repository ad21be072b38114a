// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Generated weights, on the host.

#ifndef SLUICE_RUNTIME_DEVICE_SYNTHETICWEIGHTS_H
#define SLUICE_RUNTIME_DEVICE_SYNTHETICWEIGHTS_H

#include "sluice-runtime/SyntheticWords.h"

#include <cstddef>
#include <span>
#include <thread>
#include <vector>

namespace sluice::runtime {

/// Writes the bytes of a weight from `first` on with up to `threads` threads.
inline void generateSynthetic(const synthetic::SyntheticPattern &pattern, std::span<std::byte> out,
                              int threads, uint64_t first = 0) {
  // Starting a thread costs about what generating this many bytes does.
  constexpr size_t worthIt = size_t(1) << 20;
  size_t parts = std::clamp<size_t>(out.size() / worthIt, 1, std::max(threads, 1));
  auto part = [&](size_t i) {
    size_t begin = out.size() / parts * i,
           end = i + 1 == parts ? out.size() : out.size() / parts * (i + 1);
    pattern.generate(first + begin, reinterpret_cast<uint8_t *>(out.data() + begin), end - begin);
  };
  std::vector<std::jthread> workers;
  for (size_t i = 1; i < parts; ++i)
    workers.emplace_back(part, i);
  part(0);
}

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_DEVICE_SYNTHETICWEIGHTS_H
