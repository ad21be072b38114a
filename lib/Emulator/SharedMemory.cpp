// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Shared memory: which block an address belongs to, and whether an access is ordered after the
// accesses before it.

#include "Machine.h"

using namespace sluice::emulator;

Machine::SharedPlace Machine::findShared(Thread &thread, const void *address) {
  const auto *at = static_cast<const std::byte *>(address);
  auto within = [&](Block &block) {
    return at >= block.shared && at < block.shared + sharedLimit + 4096;
  };
  if (within(*thread.block))
    return {thread.block, uint32_t(at - thread.block->shared)};
  for (auto &block : thread.block->cluster->blocks)
    if (block->shared && within(*block))
      return {block.get(), uint32_t(at - block->shared)};
  return {};
}

Access Machine::accessOf(const Thread &thread, uint32_t location, bool atomic) const {
  return {thread.actor, thread.clock, thread.seen.values(), location, atomic};
}

bool Machine::report(Thread &thread, uint32_t location, const Block &block,
                     const Conflict &conflict, uint32_t bytes, const char *doing) {
  if (conflict.kind == Conflict::None)
    return true;
  std::string text = std::string(doing) + " " + number(bytes) + " bytes of shared memory; byte " +
                     number(conflict.offset);
  if (&block != thread.block)
    text += " of block " + number(block.index);
  std::string actor = actorName(*block.cluster, conflict.actor), other = where(conflict.location);
  bool byCopy = conflict.actor >= block.cluster->threads;
  switch (conflict.kind) {
  case Conflict::None:
    break;
  case Conflict::Uninitialised:
    text += " was never written (uninitialised)";
    break;
  case Conflict::InFlight:
    text += " is the destination of an asynchronous copy that has not completed (" + other +
            ", by " + actor + ")";
    break;
  case Conflict::Barrier:
    text += " belongs to an mbarrier object (" + other + ")";
    break;
  case Conflict::AfterWrite:
    if (byCopy)
      text += " was written by an asynchronous copy (" + other +
              ") whose completion the thread has not waited for";
    else
      text += " races with the write by " + actor + " (" + other + ")";
    break;
  case Conflict::AfterRead:
    text += " races with the read by " + actor + " (" + other + ")";
    break;
  }
  fail(thread, location, text);
  return false;
}

bool Machine::checkShared(Thread &thread, uint32_t location, const void *address, uint32_t bytes,
                          uint32_t flags) {
  bool write = flags & (Write | ReadWrite);
  SharedPlace place = findShared(thread, address);
  if (!place.block || place.offset + uint64_t(bytes) > place.block->sharedBytes) {
    std::string text = std::string(write ? "writes " : "reads ") + number(bytes) +
                       " bytes outside of shared memory";
    if (place.block)
      text += ": at byte " + number(place.offset) + " of " + number(place.block->sharedBytes);
    else
      text += ", " +
              std::to_string(static_cast<const std::byte *>(address) - thread.block->shared) +
              " bytes from its start";
    fail(thread, location, text);
    return false;
  }
  if (place.block->finished) {
    fail(thread, location,
         std::string(write ? "writes" : "reads") + " shared memory of block " +
             number(place.block->index) + ", which has ended");
    return false;
  }
  Access access = accessOf(thread, location, flags & AtomicAccess);
  if (flags & ReadWrite) {
    Conflict conflict = place.block->shadow.read(place.offset, bytes, access);
    if (!report(thread, location, *place.block, conflict, bytes, "updates"))
      return false;
  }
  Conflict conflict = write ? place.block->shadow.write(place.offset, bytes, access)
                            : place.block->shadow.read(place.offset, bytes, access);
  return report(thread, location, *place.block, conflict, bytes, write ? "writes" : "reads");
}

void Machine::access(Thread &thread, uint32_t location, const void *address, uint32_t bytes,
                     uint32_t alignment, uint32_t flags) {
  if (!(flags & (InShared | InGlobal))) {
    const auto *at = static_cast<const std::byte *>(address);
    if (at >= thread.stack && at < thread.stack + StackPool::stackBytes)
      return;
    flags |= findShared(thread, address).block ? InShared : InGlobal;
  }
  if (reinterpret_cast<uintptr_t>(address) % alignment) {
    std::string text =
        std::string(flags & Write ? "writes " : "reads ") + number(bytes) + " bytes misaligned: ";
    if (flags & InShared)
      text += "at byte " +
              std::to_string(static_cast<const std::byte *>(address) - thread.block->shared) +
              " of shared memory";
    else
      text += "the address is " + number(reinterpret_cast<uintptr_t>(address) % alignment) +
              " bytes past a multiple of " + number(alignment);
    fail(thread, location, text + ", but must be a multiple of " + number(alignment));
    return;
  }
  // A thread that polls memory must let other threads change it.
  bool polls = (flags & (AtomicAccess | VolatileAccess)) && !(flags & Write);
  if (flags & InGlobal && flags & AtomicAccess && !(flags & (Write | ReadWrite)))
    watch(thread, location, address, bytes);
  else
    thread.watches.clear();
  if (flags & InShared)
    checkShared(thread, location, address, bytes, flags);
  else
    checkGlobal(thread, location, address, bytes, flags);
  if (failed())
    return;
  if (polls && random() % 4 == 0)
    poll(thread, location);
  if (flags & Write)
    idlePolls = 0;
  if (flags & InGlobal && flags & (Write | ReadWrite))
    changed(address, bytes);
}

void *Machine::mapToRank(Thread &thread, uint32_t location, void *address, uint32_t rank) {
  Cluster &cluster = *thread.block->cluster;
  if (rank >= cluster.blocks.size()) {
    fail(thread, location,
         "block " + number(rank) + " of a cluster of " + number(cluster.blocks.size()) +
             " does not exist");
    return nullptr;
  }
  SharedPlace place = findShared(thread, address);
  if (place.block != thread.block) {
    fail(thread, location, "the address to map is not in the block's shared memory");
    return nullptr;
  }
  return cluster.blocks[rank]->shared + place.offset;
}
