// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Which blocks of a cooperative launch have accessed each byte of global memory, and whether an
// access is ordered after theirs. As SharedShadow, with blocks in place of threads: what one thread
// of a block has done, all of its threads are taken to know.

#ifndef SLUICE_LIB_EMULATOR_GLOBALSHADOW_H
#define SLUICE_LIB_EMULATOR_GLOBALSHADOW_H

#include "Clock.h"

#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/SmallVector.h"

#include <cstddef>
#include <cstdint>
#include <optional>

namespace sluice::emulator {

class GlobalShadow {
public:
  explicit GlobalShadow(uint32_t blocks) : blocks(blocks) {}

  struct Access {
    uint32_t block = 0, epoch = 0;
    /// By block, the epoch that the accessing thread has seen.
    const uint32_t *seen = nullptr;
    /// Location id of the operation, for messages.
    uint32_t location = 0;
    bool write = false, atomic = false;
  };
  /// An earlier access that the new one is not ordered after.
  struct Conflict {
    const std::byte *address;
    uint32_t block, location;
    bool write, atomic;
  };
  /// Records an access. Two accesses of a byte by different blocks, one of them a write, conflict
  /// unless both are atomic or the later one is ordered after the earlier one.
  std::optional<Conflict> access(const std::byte *address, uint64_t bytes, const Access &access);

  /// What an atomic write of the word at `address` releases: one counter for each block. A write
  /// that is no update begins anew.
  void release(const std::byte *address, const Clock &released, bool update);
  /// What acquiring the word teaches; null if nothing was released there.
  const Clock *released(const std::byte *address) const;

private:
  struct Record {
    uint32_t block, epoch, location;
    /// Of the word's bytes.
    uint8_t bytes;
    bool write, atomic;
  };
  static constexpr uint64_t wordBytes = 8;

  uint32_t blocks;
  llvm::DenseMap<uintptr_t, llvm::SmallVector<Record, 2>> words;
  llvm::DenseMap<uintptr_t, Clock> releases;
};

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_GLOBALSHADOW_H
