// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Global memory: which buffer an access lies in, who wrote what is there, and whether the launch
// may see it.

#include "Machine.h"

using namespace sluice::emulator;

uint32_t Machine::addMemory(std::string name, void *data, uint64_t bytes, MemoryKind kind) {
  Memory &memory = memories.emplace_back();
  memory.name = std::move(name);
  memory.data = static_cast<std::byte *>(data);
  memory.bytes = bytes;
  memory.kind = kind;
  if (kind != MemoryKind::Constant)
    memory.writers.reset(static_cast<uint32_t *>(calloc(std::max<uint64_t>(bytes, 1), 4)));
  if (kind == MemoryKind::Scratch)
    memory.owners.reset(static_cast<uint16_t *>(calloc(std::max<uint64_t>(bytes, 1), 2)));
  return memories.size() - 1;
}

uint32_t Machine::addBuffer(std::string name, uint32_t memory, uint64_t offset, uint64_t bytes) {
  buffers.push_back({std::move(name), memory, memories[memory].data + offset, bytes});
  return buffers.size() - 1;
}

bool Machine::visible(uint32_t serial, const LaunchState &launch, bool waited) const {
  const LaunchState *at = &launch;
  for (;;) {
    if (serial < at->floor)
      return true;
    if (!waited)
      return false;
    // After the wait, the launch before is complete, and with it what that one waited for.
    if (serial >= at->serial - 1)
      return true;
    at = &launchOf(at->serial - 1);
    waited = at->waited;
  }
}

bool Machine::waited(const Thread &thread) const {
  return thread.waitedForGrid || thread.seen[thread.block->cluster->gridActor()] > 0;
}

bool Machine::checkGlobal(Thread &thread, uint32_t location, const void *address, uint64_t bytes,
                          uint32_t flags) {
  const LaunchState &launch = *thread.block->launch;
  const auto *begin = static_cast<const std::byte *>(address);
  bool write = flags & (Write | ReadWrite), read = !(flags & Write);

  const BufferInfo *buffer = nullptr;
  uint32_t bufferIndex = 0;
  for (uint32_t index : launch.launch->buffers) {
    const BufferInfo &candidate = buffers[index];
    if (begin < candidate.begin || begin - candidate.begin > int64_t(candidate.bytes) ||
        bytes > candidate.bytes - (begin - candidate.begin))
      continue;
    // Buffers of one launch may overlap if one is only read and the other only written. A read
    // means the buffer that the bytes were written through.
    const Memory &memory = memories[candidate.memory];
    if (!buffer || (read && memory.owners && memory.owners[begin - memory.data] == index)) {
      buffer = &candidate;
      bufferIndex = index;
    }
    if (!memory.owners)
      break;
  }
  if (!buffer) {
    if (!write)
      for (auto [data, size] : constants)
        if (begin >= data && begin - data <= int64_t(size) && bytes <= size - (begin - data))
          return true;
    // The message names the nearest buffer: the access is most likely meant for it.
    const BufferInfo *nearest = nullptr;
    int64_t best = INT64_MAX;
    for (uint32_t index : launch.launch->buffers) {
      const BufferInfo &candidate = buffers[index];
      int64_t before =
                  reinterpret_cast<intptr_t>(candidate.begin) - reinterpret_cast<intptr_t>(begin),
              after = reinterpret_cast<intptr_t>(begin + bytes) -
                      reinterpret_cast<intptr_t>(candidate.begin + candidate.bytes);
      int64_t distance = std::max(before, after);
      if (distance < best)
        best = distance, nearest = &candidate;
    }
    std::string text = std::string(write ? "writes " : "reads ") + number(bytes) +
                       " bytes of global memory outside of the launch's buffers";
    if (nearest && best < (int64_t(1) << 32))
      text += ": at byte " +
              std::to_string(reinterpret_cast<intptr_t>(begin) -
                             reinterpret_cast<intptr_t>(nearest->begin)) +
              " of buffer '" + nearest->name + "', which has " + number(nearest->bytes);
    fail(thread, location, text);
    return false;
  }

  Memory &memory = memories[buffer->memory];
  uint64_t offset = begin - memory.data, inBuffer = begin - buffer->begin;
  auto place = [&](uint64_t i) {
    return "byte " + number(inBuffer + i) + " of buffer '" + buffer->name + "'";
  };
  bool hasWaited = waited(thread);
  if (memory.kind == MemoryKind::Constant) {
    if (write) {
      fail(thread, location, "writes " + place(0) + ", which is constant");
      return false;
    }
    return true;
  }
  uint32_t mine = launch.serial << 12 | (thread.block->index & 4095);
  if (flags & AtomicAccess)
    thread.block->synchronizes = true;
  for (uint64_t i = 0; i < bytes; ++i) {
    uint32_t writer = memory.writers[offset + i], serial = writer >> 12;
    if (writer == mine) {
      if (read && memory.owners && memory.owners[offset + i] != bufferIndex) {
        fail(thread, location,
             "reads " + place(i) + ", over which the launch has written '" +
                 buffers[memory.owners[offset + i]].name + "'");
        return false;
      }
      continue;
    }
    if (read && memory.kind == MemoryKind::Scratch &&
        (serial < firstSerial || memory.owners[offset + i] != bufferIndex)) {
      fail(thread, location, "reads " + place(i) + ", which was never written in this step");
      return false;
    }
    if (serial == launch.serial) {
      if (launch.shadow)
        continue;
      if (!(flags & AtomicAccess) && !thread.block->synchronizes && launch.launch->cluster == 1) {
        fail(thread, location,
             std::string(write ? "writes " : "reads ") + place(i) + ", which block " +
                 number(writer & 4095) +
                 " of the same launch has written, with no synchronization between them");
        return false;
      }
      continue;
    }
    if (serial >= firstSerial && read && !visible(serial, launch, hasWaited)) {
      const LaunchState &other = launchOf(serial);
      fail(thread, location,
           "reads " + place(i) + ", which launch " + number(other.index) + " ('" +
               other.kernel->name + "') has written, " +
               (hasWaited ? "which is not covered by the dependency wait"
                          : "before the dependency wait (griddepcontrol.wait)"));
      return false;
    }
  }
  if (launch.shadow && !checkOrder(thread, location, begin, bytes, flags, *buffer))
    return false;
  if (!write)
    return true;
  // An earlier launch that may still run must not have its buffers overwritten.
  for (uint32_t serial = launch.serial; serial-- > launch.floor;) {
    const LaunchState &other = launchOf(serial);
    if (visible(serial, launch, hasWaited))
      continue;
    for (uint32_t index : other.launch->buffers) {
      const BufferInfo &used = buffers[index];
      if (begin < used.begin + used.bytes && used.begin < begin + bytes) {
        fail(thread, location,
             "writes " + place(0) +
                 " before the dependency wait (griddepcontrol.wait), while launch " +
                 number(other.index) + " ('" + other.kernel->name + "') may still use '" +
                 used.name + "'");
        return false;
      }
    }
  }
  std::fill_n(memory.writers.get() + offset, bytes, mine);
  if (memory.owners)
    std::fill_n(memory.owners.get() + offset, bytes, bufferIndex);
  return true;
}
