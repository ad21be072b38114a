// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Assigns offsets in one allocation to buffers that each live for a part of a step.

#ifndef SLUICE_ANALYSIS_ARENA_H
#define SLUICE_ANALYSIS_ARENA_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/SmallVector.h"

#include <cstdint>
#include <optional>
#include <utility>

namespace sluice {

/// A buffer of `bytes` that is alive from launch `first` to launch `last`, both included.
struct ArenaBuffer {
  int64_t bytes = 0, first = 0, last = 0;

  bool lifetimeOverlaps(const ArenaBuffer &other) const {
    return first <= other.last && other.first <= last;
  }
};

struct Arena {
  /// One per buffer, in bytes; multiples of the alignment.
  llvm::SmallVector<int64_t> offsets;
  /// The end of the last buffer, rounded up to the alignment.
  int64_t bytes = 0;
};

/// Places the largest buffer first, each in the smallest gap that is free during its whole life,
/// else behind all buffers that are alive with it: "greedy by size" of Pisarchyk and Lee, Efficient
/// Memory Management for Deep Neural Net Inference, 2020. Buffers of one size keep their order, so
/// the result depends on nothing but the arguments. Sizes must be positive and their sum far from
/// overflow; `alignment` is a power of two.
Arena assignArena(llvm::ArrayRef<ArenaBuffer> buffers, int64_t alignment);

/// Indices of two buffers that share a byte while both are alive, if there are any.
std::optional<std::pair<size_t, size_t>> findArenaOverlap(llvm::ArrayRef<ArenaBuffer> buffers,
                                                          llvm::ArrayRef<int64_t> offsets);

/// The most bytes that are alive at once, each buffer rounded up to the alignment: no assignment
/// needs less.
int64_t arenaLowerBound(llvm::ArrayRef<ArenaBuffer> buffers, int64_t alignment);

} // namespace sluice

#endif // SLUICE_ANALYSIS_ARENA_H
