// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Analysis/Arena.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/Sequence.h"
#include "llvm/Support/MathExtras.h"

#include <limits>

using namespace llvm;
using namespace sluice;

Arena sluice::assignArena(ArrayRef<ArenaBuffer> buffers, int64_t alignment) {
  SmallVector<size_t> order = to_vector(seq<size_t>(0, buffers.size()));
  sort(order, [&](size_t a, size_t b) {
    return buffers[a].bytes != buffers[b].bytes ? buffers[a].bytes > buffers[b].bytes : a < b;
  });

  Arena arena;
  arena.offsets.assign(buffers.size(), 0);
  SmallVector<size_t> placed; // by offset
  for (size_t index : order) {
    int64_t bytes = alignTo(buffers[index].bytes, alignment);
    int64_t end = 0, best = -1, bestGap = std::numeric_limits<int64_t>::max();
    for (size_t other : placed) {
      if (!buffers[index].lifetimeOverlaps(buffers[other]))
        continue;
      int64_t gap = arena.offsets[other] - end;
      if (gap >= bytes && gap < bestGap) {
        best = end;
        bestGap = gap;
      }
      end = std::max<int64_t>(end, arena.offsets[other] + alignTo(buffers[other].bytes, alignment));
    }
    int64_t offset = best >= 0 ? best : end;
    arena.offsets[index] = offset;
    arena.bytes = std::max(arena.bytes, offset + bytes);
    placed.insert(upper_bound(placed, offset,
                              [&](int64_t o, size_t other) { return o < arena.offsets[other]; }),
                  index);
  }
  return arena;
}

std::optional<std::pair<size_t, size_t>> sluice::findArenaOverlap(ArrayRef<ArenaBuffer> buffers,
                                                                  ArrayRef<int64_t> offsets) {
  for (size_t a = 0; a < buffers.size(); ++a)
    for (size_t b = a + 1; b < buffers.size(); ++b)
      if (buffers[a].lifetimeOverlaps(buffers[b]) && offsets[a] < offsets[b] + buffers[b].bytes &&
          offsets[b] < offsets[a] + buffers[a].bytes)
        return std::pair(a, b);
  return std::nullopt;
}

int64_t sluice::arenaLowerBound(ArrayRef<ArenaBuffer> buffers, int64_t alignment) {
  // The maximum is reached where some buffer's life begins.
  int64_t most = 0;
  for (const ArenaBuffer &start : buffers) {
    int64_t alive = 0;
    for (const ArenaBuffer &buffer : buffers)
      if (buffer.first <= start.first && start.first <= buffer.last)
        alive += alignTo(buffer.bytes, alignment);
    most = std::max(most, alive);
  }
  return most;
}
