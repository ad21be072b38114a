// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Blocks that wait for each other through global memory: atomic accesses and what they order, and
// threads that poll.

#include "Machine.h"

#include "llvm/ADT/STLExtras.h"

#include <cstring>

using namespace sluice::emulator;

static uintptr_t wordOf(const void *address) { return reinterpret_cast<uintptr_t>(address) / 8; }

std::optional<GlobalShadow::Conflict> GlobalShadow::access(const std::byte *address, uint64_t bytes,
                                                           const Access &access) {
  auto begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
  for (uintptr_t word = begin / wordBytes; word * wordBytes < end; ++word) {
    uintptr_t base = word * wordBytes;
    auto first = static_cast<unsigned>(std::max(begin, base) - base),
         last = static_cast<unsigned>(std::min(end, base + wordBytes) - base);
    auto mask = static_cast<uint8_t>((1u << last) - (1u << first));
    llvm::SmallVector<Record, 2> &records = words[word];
    bool merged = false;
    for (Record &record : records) {
      uint8_t shared = record.bytes & mask;
      bool ordered = record.block == access.block || access.seen[record.block] >= record.epoch;
      if (shared && !ordered && (record.write || access.write) &&
          !(record.atomic && access.atomic)) {
        uintptr_t at = base + llvm::countr_zero(shared);
        return Conflict{reinterpret_cast<const std::byte *>(at), record.block, record.location,
                        record.write, record.atomic};
      }
      if (record.block == access.block && record.write == access.write &&
          record.atomic == access.atomic &&
          (record.bytes == mask || record.epoch == access.epoch)) {
        record.epoch = access.epoch;
        record.bytes |= mask;
        record.location = access.location;
        merged = true;
      } else if (access.write && ordered) {
        // Whoever is ordered after this write is ordered after the earlier access.
        record.bytes &= ~mask;
      }
    }
    llvm::erase_if(records, [](const Record &record) { return record.bytes == 0; });
    if (!merged)
      records.push_back(
          {access.block, access.epoch, access.location, mask, access.write, access.atomic});
  }
  return std::nullopt;
}

void GlobalShadow::release(const std::byte *address, const Clock &released, bool update) {
  auto word = reinterpret_cast<uintptr_t>(address) / wordBytes;
  if (!update)
    releases.erase(word);
  if (!released)
    return;
  Clock &at = releases[word];
  if (!at)
    at = Clock(blocks);
  else
    at = at.clone();
  at.join(released);
}

const Clock *GlobalShadow::released(const std::byte *address) const {
  auto found = releases.find(reinterpret_cast<uintptr_t>(address) / wordBytes);
  return found == releases.end() ? nullptr : &found->second;
}

/// The part of a thread's clock that is about the blocks of the grid.
static uint32_t *blockValues(Thread &thread) {
  const Cluster &cluster = *thread.block->cluster;
  return thread.seen.values() + cluster.blockActor(0);
}

/// What the thread releases to other blocks.
static Clock releaseToBlocks(Thread &thread) {
  Block &block = *thread.block;
  Clock released(block.launch->launch->grid);
  std::memcpy(released.values(), blockValues(thread),
              block.launch->launch->grid * sizeof(uint32_t));
  released.values()[block.index] = block.epoch++;
  return released;
}

static void acquireFromBlocks(Thread &thread, const Clock &released) {
  uint32_t blocks = thread.block->launch->launch->grid;
  const uint32_t *from = released.values(), *known = blockValues(thread);
  if (std::equal(from, from + blocks, known, [](uint32_t a, uint32_t b) { return a <= b; }))
    return;
  thread.seen = thread.seen.clone();
  uint32_t *to = blockValues(thread);
  for (uint32_t i = 0; i < blocks; ++i)
    to[i] = std::max(to[i], from[i]);
}

void Machine::fence(Thread &thread, bool acquires, bool releases) {
  if (!thread.block->launch->shadow)
    return;
  if (acquires && thread.loaded)
    acquireFromBlocks(thread, std::exchange(thread.loaded, Clock()));
  if (releases)
    thread.fenced = releaseToBlocks(thread);
}

bool Machine::checkOrder(Thread &thread, uint32_t location, const std::byte *address,
                         uint64_t bytes, uint32_t flags, const BufferInfo &buffer) {
  Block &block = *thread.block;
  GlobalShadow &shadow = *block.launch->shadow;
  bool atomic = (flags & AtomicAccess) && !(flags & BlockScope),
       write = flags & (Write | ReadWrite);
  // An acquiring access is ordered after what the word's writers have released.
  if (atomic && !(flags & Write))
    if (const Clock *released = shadow.released(address)) {
      if (flags & Acquire)
        acquireFromBlocks(thread, *released);
      else if (!thread.loaded)
        thread.loaded = released->clone();
      else
        thread.loaded.join(*released);
    }
  GlobalShadow::Access access;
  access.block = block.index;
  access.epoch = block.epoch;
  access.seen = blockValues(thread);
  access.location = location;
  access.write = write;
  access.atomic = atomic;
  if (std::optional<GlobalShadow::Conflict> conflict = shadow.access(address, bytes, access)) {
    fail(thread, location,
         std::string(write ? "writes" : "reads") + " byte " +
             number(conflict->address - buffer.begin) + " of buffer '" + buffer.name +
             "', which races with the " + (conflict->atomic ? "atomic " : "") +
             (conflict->write ? "write" : "read") + " by block " + number(conflict->block) + " (" +
             where(conflict->location) + ")");
    return false;
  }
  if (atomic && write) {
    Clock released = thread.fenced;
    if (flags & Release)
      released = releaseToBlocks(thread);
    shadow.release(address, released, flags & ReadWrite);
  }
  return true;
}

static uint64_t valueAt(const std::byte *address, uint32_t bytes) {
  uint64_t value = 0;
  std::memcpy(&value, address, std::min<uint32_t>(bytes, sizeof(value)));
  return value;
}

void Machine::watch(Thread &thread, uint32_t location, const void *address, uint32_t bytes) {
  const auto *at = static_cast<const std::byte *>(address);
  auto unchanged = [](const Watch &watch) {
    return valueAt(watch.address, watch.bytes) == watch.value;
  };
  auto same = llvm::find_if(thread.watches,
                            [&](const Watch &w) { return w.address == at && w.bytes == bytes; });
  if (same == thread.watches.end()) {
    // A thread that looks at so many words is not merely polling.
    if (bytes <= sizeof(uint64_t) && thread.watches.size() < 16)
      thread.watches.push_back({at, bytes, valueAt(at, bytes)});
    return;
  }
  if (!llvm::all_of(thread.watches, unchanged)) {
    thread.watches.clear();
    return;
  }
  for (const Watch &watch : thread.watches)
    watchers[wordOf(watch.address)].push_back(&thread);
  suspend(thread, WaitKind::Change, location);
}

void Machine::forgetWatches(Thread &thread) {
  for (const Watch &watch : thread.watches) {
    auto at = watchers.find(wordOf(watch.address));
    if (at == watchers.end())
      continue;
    llvm::erase(at->second, &thread);
    if (at->second.empty())
      watchers.erase(at);
  }
  thread.watches.clear();
}

void Machine::changed(const void *address, uint64_t bytes) {
  if (watchers.empty())
    return;
  auto begin = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t word = begin / 8; word * 8 < begin + bytes; ++word) {
    auto at = watchers.find(word);
    if (at == watchers.end())
      continue;
    for (Thread *thread : llvm::SmallVector<Thread *, 2>(at->second))
      if (thread->waitKind == WaitKind::Change)
        makeReady(*thread);
  }
}

void Machine::wakeWatchers() {
  // In the order of blocks and threads: a run is the same for a seed.
  for (auto &cluster : clusters)
    for (auto &block : cluster->blocks)
      for (Thread &thread : block->threads)
        if (thread.waitKind == WaitKind::Change)
          makeReady(thread);
}

std::string Machine::watched(const Thread &thread) const {
  if (thread.watches.empty())
    return "";
  const Watch &watch = thread.watches.front();
  for (uint32_t index : thread.block->launch->launch->buffers) {
    const BufferInfo &buffer = buffers[index];
    if (watch.address >= buffer.begin && watch.address < buffer.begin + buffer.bytes)
      return " byte " + number(watch.address - buffer.begin) + " of buffer '" + buffer.name +
             "', which holds " + number(watch.value);
  }
  return "";
}
