// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the blocks of one kernel hand to each other without a barrier of the grid, as data, and a
// proof that it works: whatever is waited for comes, as often as it is expected, and no memory is
// used again before everybody has read what it held.

#ifndef SLUICE_DIALECTS_FUSED_PROTOCOL_H
#define SLUICE_DIALECTS_FUSED_PROTOCOL_H

#include "llvm/ADT/SmallVector.h"
#include "llvm/Support/Error.h"

#include <cstdint>
#include <string>
#include <vector>

namespace sluice::fused {

/// Memory through which blocks exchange values, round by round.
struct Exchange {
  enum class Kind : uint8_t {
    /// One array of words in global memory, of all blocks. A word is a sum and the number of
    /// additions to it since the kernel's start, so it is its own flag; it is never reset. Readers
    /// recognise a round by that number, of which they see the lowest eight bits.
    Sum,
    /// A buffer and a barrier in the shared memory of every block, which blocks of its cluster
    /// send to. A round is complete when as many bytes have come as the barrier expects.
    Gather
  };
  std::string name;
  Kind kind = Kind::Sum;
  /// Words, or bytes of a block's buffer.
  int64_t size = 0;
};

/// What a block does, seen from outside. What its threads do one after another is one event after
/// another; how they wait for each other is not the protocol's business.
struct ProtocolEvent {
  enum class Kind : uint8_t {
    /// Adds once to each of the words [begin, end).
    Add,
    /// Waits until each of the words has got `count` additions in all, and reads them.
    WaitSum,
    /// Sends the bytes [begin, end) of the buffers of blocks [firstTarget, endTarget).
    Send,
    /// Waits until `count` bytes of the round have come to the own buffer; reads them from then on.
    WaitGather,
    /// Has read what the own buffer held.
    Done
  };
  Kind kind = Kind::Add;
  /// Index of the exchange.
  int64_t exchange = 0;
  /// 0, 1, 2, ...: an exchange's rounds follow each other.
  int64_t round = 0;
  int64_t begin = 0, end = 0, count = 0, firstTarget = 0, endTarget = 0;
};

/// Additions between two rounds that a block reads, at most: a word's counter has eight bits.
inline constexpr int64_t kMostAdditions = 255;

struct Protocol {
  /// Blocks b * clusterBlocks to (b + 1) * clusterBlocks - 1 are a cluster.
  int64_t clusterBlocks = 1;
  llvm::SmallVector<Exchange> exchanges;
  /// By block.
  std::vector<std::vector<ProtocolEvent>> blocks;
};

/// An error that says which block, exchange and round, if
/// - a range or a target does not exist, or blocks of different clusters send to each other,
/// - a word gets more or fewer additions than a reader waits for, or a buffer more or fewer bytes,
///   or the same byte twice, or something that nobody waits for,
/// - a reader may take an earlier count for the one that it waits for,
/// - blocks wait for each other in a circle,
/// - a block may add to a word, or send to a buffer, in a later round before all that wait for an
///   earlier one have read it.
llvm::Error checkProtocol(const Protocol &protocol);

} // namespace sluice::fused

#endif // SLUICE_DIALECTS_FUSED_PROTOCOL_H
