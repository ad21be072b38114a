// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Machine.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringMap.h"
#include "llvm/ADT/StringSet.h"

#include <cstring>
#include <sys/mman.h>

using namespace sluice::emulator;

static std::string number(uint64_t value) { return std::to_string(value); }

static std::string hex(uint32_t value) {
  char text[16];
  snprintf(text, sizeof(text), "0x%08x", value);
  return text;
}

Machine::Machine(const Options &options, std::vector<std::string> &locations)
    : options(options), locations(locations), state(options.seed * 0x9E3779B97F4A7C15u + 1) {}

Machine::~Machine() {
  for (std::byte *shared : allShared)
    munmap(shared, sharedLimit + 4096);
}

/// xorshift64 (Marsaglia 2003).
uint64_t Machine::random() {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state >> 16;
}

//===-- Messages ----------------------------------------------------------------------------===//

std::string Machine::where(uint32_t location) const {
  return location < locations.size() ? locations[location] : "an unknown place";
}

std::string Machine::describe(const Thread &thread) const {
  const LaunchState &launch = *thread.block->launch;
  std::string text = "kernel '" + launch.kernel->name + "' (launch " + number(launch.index);
  if (!launch.launch->label.empty())
    text += " \"" + launch.launch->label + "\"";
  return text + "), block " + number(thread.block->index) + ", thread " + number(thread.index);
}

std::string Machine::actorName(const Cluster &cluster, uint32_t actor) const {
  if (actor >= cluster.threads)
    return "a bulk copy";
  uint32_t threads = cluster.launch->launch->block;
  std::string text = "thread " + number(actor % threads);
  if (cluster.blocks.size() > 1)
    text += " of block " + number(cluster.blocks[actor / threads]->index);
  return text;
}

void Machine::fail(const Thread &thread, uint32_t location, const std::string &what) {
  if (message.empty())
    message = describe(thread) + ": " + where(location) + ": " + what;
}

void Machine::leave(Thread &thread) {
  for (;;)
    switchFiber(thread.fiber, scheduler,
                static_cast<std::byte *>(const_cast<void *>(schedulerStack)), schedulerStackBytes);
}

//===-- Memory that launches are given ------------------------------------------------------===//

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
    // Buffers of one launch may lie over each other if one is only read and the other only written:
    // the one that holds what is there is meant.
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
    // The nearest buffer says most about what went wrong.
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
  if (!write)
    return true;
  // A launch that may still run must not lose what it reads.
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

//===-- Shared memory -----------------------------------------------------------------------===//

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
  if (flags & InShared)
    checkShared(thread, location, address, bytes, flags);
  else
    checkGlobal(thread, location, address, bytes, flags);
  // A thread that watches memory must let others change it.
  if (!failed() && (flags & (AtomicAccess | VolatileAccess)) && !(flags & Write) &&
      random() % 4 == 0)
    poll(thread, location);
}

//===-- Threads, barriers -------------------------------------------------------------------===//

void Machine::makeReady(Thread &thread, bool next) {
  thread.waitKind = WaitKind::None;
  Block &block = *thread.block;
  next ? block.ready.push_front(&thread) : block.ready.push_back(&thread);
  if (!block.queued) {
    block.queued = true;
    readyBlocks.push_back(&block);
  }
}

void Machine::suspend(Thread &thread, WaitKind kind, uint32_t location, const void *object,
                      uint32_t detail) {
  thread.waitKind = kind;
  thread.waitLocation = location;
  thread.waitObject = object;
  thread.waitDetail = detail;
  switchFiber(thread.fiber, scheduler, static_cast<std::byte *>(const_cast<void *>(schedulerStack)),
              schedulerStackBytes);
}

void Machine::poll(Thread &thread, uint32_t location) {
  ++idlePolls;
  makeReady(thread);
  suspend(thread, WaitKind::Poll, location);
}

/// The thread's progress becomes part of `into`; what it does from now on does not.
void Machine::release(Thread &thread, Gathering &into) {
  into.add(thread.seen);
  uint32_t &own = into.clock.values()[thread.actor];
  own = std::max(own, thread.clock);
  ++thread.clock;
}

void Machine::barrier(Thread &thread, uint32_t location, uint32_t id, uint32_t count, bool wait) {
  Block &block = *thread.block;
  if (id >= namedBarriers)
    return fail(thread, location, "barrier " + number(id) + " does not exist: a block has 16");
  bool counted = count != 0;
  if (counted && (count % warpSize || count > block.threads.size()))
    return fail(thread, location,
                "barrier " + number(id) + " expects " + number(count) +
                    " threads, which is not a multiple of 32 up to the block's " +
                    number(block.threads.size()));
  uint32_t expected = counted ? count : block.threads.size();
  NamedBarrier &barrier = block.barriers[id];
  if (barrier.arrived == 0)
    barrier.expected = expected, barrier.counted = counted;
  else if (barrier.expected != expected)
    return fail(thread, location,
                "barrier " + number(id) + " is awaited by " + number(expected) +
                    " threads here, by " + number(barrier.expected) + " elsewhere");
  Warp &warp = *thread.warp;
  if (warp.atBarrier && (warp.barrier != id || warp.barrierLocation != location))
    return fail(thread, location,
                "divergent barrier: lanes " + hex(warp.atBarrier) + " of the same warp wait at " +
                    where(warp.barrierLocation));
  for (const Warp::Meeting &meeting : warp.meetings)
    if (meeting.mask >> thread.lane & 1)
      return fail(thread, location,
                  "divergent barrier: lanes " + hex(meeting.arrived) +
                      " of the same warp wait for this thread at " + where(meeting.location));
  if (!counted && block.running < block.threads.size())
    return fail(thread, location,
                "divergent barrier: waits for all " + number(block.threads.size()) +
                    " threads of the block, of which " +
                    number(block.threads.size() - block.running) + " have exited");
  if (wait && warp.alive != warp.lanes)
    return fail(thread, location,
                "divergent barrier: lanes " + hex(warp.lanes & ~warp.alive) +
                    " of the warp have exited");
  release(thread, barrier.gathering);
  ++barrier.arrived;
  if (wait) {
    warp.atBarrier |= 1u << thread.lane;
    warp.barrier = id;
    warp.barrierLocation = location;
    barrier.waiting.push_back(&thread);
  }
  if (barrier.arrived == barrier.expected) {
    idlePolls = 0;
    for (Thread *other : barrier.waiting) {
      Warp &otherWarp = *other->warp;
      if (otherWarp.atBarrier != otherWarp.alive)
        return fail(thread, location,
                    "divergent barrier: only lanes " + hex(otherWarp.atBarrier) + " of warp " +
                        number(otherWarp.first / warpSize) + " have arrived, of lanes " +
                        hex(otherWarp.alive));
    }
    Clock together = barrier.gathering.take();
    for (Thread *other : barrier.waiting) {
      other->seen = together;
      other->warp->atBarrier = 0;
      if (other != &thread)
        makeReady(*other);
    }
    barrier.waiting.clear();
    barrier.arrived = 0;
  } else if (wait) {
    suspend(thread, WaitKind::Barrier, location, &barrier, id);
  }
}

static const char *operationName(WarpOperation operation) {
  switch (operation) {
  case WarpOperation::Sync:
    return "warp barrier";
  case WarpOperation::Shuffle:
    return "shuffle";
  case WarpOperation::Vote:
    return "vote";
  case WarpOperation::Redux:
    return "warp reduction";
  case WarpOperation::Mma:
    return "matrix product";
  case WarpOperation::Movmatrix:
    return "matrix transposition";
  }
  return "warp operation";
}

bool Machine::meet(Thread &thread, uint32_t location, uint32_t mask, WarpOperation operation) {
  Warp &warp = *thread.warp;
  uint32_t bit = 1u << thread.lane;
  auto divergent = [&] { return std::string("divergent ") + operationName(operation) + ": "; };
  if (!(mask & bit)) {
    fail(thread, location,
         divergent() + "the thread's lane " + number(thread.lane) + " is not in the mask " +
             hex(mask));
    return false;
  }
  if (mask & ~warp.alive) {
    fail(thread, location,
         divergent() + "lanes " + hex(mask & ~warp.alive) + " of the mask " + hex(mask) +
             " have exited");
    return false;
  }
  if (uint32_t waiting = warp.atBarrier & mask) {
    fail(thread, location,
         divergent() + "lanes " + hex(waiting) + " of the mask wait at " +
             where(warp.barrierLocation));
    return false;
  }
  Warp::Meeting *meeting = nullptr;
  for (Warp::Meeting &candidate : warp.meetings) {
    if (!(candidate.mask & bit))
      continue;
    // A warp barrier may be met from several places, what exchanges values may not.
    if (candidate.mask == mask && candidate.operation == operation &&
        (candidate.location == location || operation == WarpOperation::Sync)) {
      meeting = &candidate;
      continue;
    }
    fail(thread, location,
         divergent() + "lanes " + hex(candidate.arrived) + " wait for this thread at " +
             where(candidate.location) + " with mask " + hex(candidate.mask));
    return false;
  }
  if (!meeting)
    meeting = &warp.meetings.emplace_back(Warp::Meeting{mask, 0, location, operation});
  meeting->arrived |= bit;
  if (meeting->arrived == mask) {
    warp.meetings.erase(warp.meetings.begin() + (meeting - warp.meetings.data()));
    if (operation == WarpOperation::Sync) {
      Gathering gathering;
      for (uint32_t lanes = mask; lanes; lanes &= lanes - 1)
        release(warp.block->threads[warp.first + std::countr_zero(lanes)], gathering);
      Clock joined = gathering.take();
      for (uint32_t lanes = mask; lanes; lanes &= lanes - 1)
        warp.block->threads[warp.first + std::countr_zero(lanes)].seen = joined;
    }
    return true;
  }
  suspend(thread, WaitKind::Warp, location, nullptr, mask);
  return false;
}

void Machine::part(Thread &thread, uint32_t mask) {
  Warp &warp = *thread.warp;
  mask &= ~(1u << thread.lane);
  // A warp that goes on at once still has its stacks in the cache; now and then it does not.
  if (random() % 16 == 0) {
    for (uint32_t lanes = mask; lanes; lanes &= lanes - 1)
      makeReady(warp.block->threads[warp.first + std::countr_zero(lanes)]);
    return;
  }
  for (uint32_t lanes = mask; lanes;) {
    uint32_t last = 31 - std::countl_zero(lanes);
    makeReady(warp.block->threads[warp.first + last], /*next=*/true);
    lanes &= ~(1u << last);
  }
}

//===-- mbarrier objects --------------------------------------------------------------------===//

Mbarrier *Machine::findBarrier(Thread &thread, uint32_t location, void *address, Block **block,
                               bool ordered) {
  SharedPlace place = findShared(thread, address);
  if (!place.block || place.block->finished) {
    fail(thread, location, "the mbarrier's address is not in shared memory");
    return nullptr;
  }
  *block = place.block;
  for (Mbarrier &barrier : place.block->mbarriers)
    if (barrier.valid && barrier.offset == place.offset) {
      if (ordered && barrier.creator != thread.actor &&
          thread.seen[barrier.creator] < barrier.created) {
        fail(thread, location,
             "uses the mbarrier at byte " + number(place.offset) +
                 " of shared memory without waiting for its initialisation by " +
                 actorName(*place.block->cluster, barrier.creator));
        return nullptr;
      }
      return &barrier;
    }
  fail(thread, location,
       "there is no initialised mbarrier at byte " + number(place.offset) + " of shared memory");
  return nullptr;
}

void Machine::mbarrierInit(Thread &thread, uint32_t location, void *address, uint32_t count) {
  SharedPlace place = findShared(thread, address);
  if (place.block != thread.block || place.offset + 8 > thread.block->sharedBytes)
    return fail(thread, location, "initialises an mbarrier outside of the block's shared memory");
  if (place.offset % 8)
    return fail(thread, location,
                "the mbarrier at byte " + number(place.offset) +
                    " of shared memory is misaligned: expected a multiple of 8");
  if (count == 0 || count >= 1u << 20)
    return fail(thread, location,
                "an mbarrier for " + number(count) + " arrivals: expected 1 to 1048575");
  Block &block = *thread.block;
  Mbarrier *free = nullptr;
  for (Mbarrier &barrier : block.mbarriers) {
    if (barrier.valid && barrier.offset == place.offset)
      return fail(thread, location,
                  "the mbarrier at byte " + number(place.offset) +
                      " of shared memory is initialised already");
    if (!barrier.valid && barrier.offset == place.offset)
      free = &barrier;
  }
  if (!report(thread, location, block,
              block.shadow.makeBarrier(place.offset, accessOf(thread, location)), 8, "initialises"))
    return;
  if (!free) {
    if (block.mbarriers.size() == barrierLimit)
      return fail(thread, location,
                  "the emulator has room for " + number(barrierLimit) + " mbarriers in a block");
    free = &block.mbarriers.emplace_back();
    free->actor = block.cluster->threads + block.rank * barrierLimit + block.mbarriers.size() - 1;
  }
  uint32_t actor = free->actor, phase = free->phase;
  *free = Mbarrier();
  free->offset = place.offset;
  free->valid = true;
  free->count = free->pending = count;
  free->actor = actor;
  // Phases of an address count on, so that old copies' clocks stay below new ones'.
  free->phase = (phase + 1) / 2 * 2;
  free->creator = thread.actor;
  free->created = thread.clock;
}

void Machine::mbarrierInvalidate(Thread &thread, uint32_t location, void *address) {
  Block *block;
  Mbarrier *barrier = findBarrier(thread, location, address, &block);
  if (!barrier)
    return;
  if (!barrier->waiting.empty() || barrier->transactions != 0)
    return fail(thread, location, "invalidates an mbarrier that is in use");
  barrier->valid = false;
  block->shadow.dropBarrier(barrier->offset);
}

void Machine::completePhase(Block &block, Mbarrier &barrier) {
  if (barrier.pending != 0 || barrier.transactions != 0)
    return;
  idlePolls = 0;
  Clock completed = barrier.arriving.take();
  ++barrier.phase;
  completed.values()[barrier.actor] = barrier.phase;
  barrier.completed = completed;
  barrier.pending = barrier.count;
  for (Thread *thread : barrier.waiting) {
    thread->seen = barrier.join(thread->seen, barrier.completed);
    makeReady(*thread);
  }
  barrier.waiting.clear();
}

uint64_t Machine::mbarrierArrive(Thread &thread, uint32_t location, void *address, uint32_t count,
                                 uint64_t transactions, bool releases) {
  Block *block;
  Mbarrier *barrier = findBarrier(thread, location, address, &block);
  if (!barrier)
    return 0;
  if (count == 0 || count > barrier->pending) {
    fail(thread, location,
         "arrives " + number(count) + " times at the mbarrier at byte " + number(barrier->offset) +
             " of shared memory, which expects " + number(barrier->pending) +
             " more in this phase");
    return 0;
  }
  idlePolls = 0;
  uint64_t before = barrier->phase;
  if (releases)
    release(thread, barrier->arriving);
  else
    barrier->arriving.add(block->cluster->zero);
  barrier->transactions += transactions;
  barrier->pending -= count;
  completePhase(*block, *barrier);
  return before;
}

void Machine::mbarrierExpect(Thread &thread, uint32_t location, void *address,
                             int64_t transactions) {
  Block *block;
  Mbarrier *barrier = findBarrier(thread, location, address, &block);
  if (!barrier)
    return;
  barrier->transactions += transactions;
  if (transactions < 0)
    completePhase(*block, *barrier);
}

bool Machine::mbarrierWait(Thread &thread, uint32_t location, void *address, uint64_t value,
                           bool isState, WaitMode mode) {
  Block *block;
  Mbarrier *barrier = findBarrier(thread, location, address, &block);
  if (!barrier)
    return false;
  if (!isState && value > 1) {
    fail(thread, location, "the parity of a phase is 0 or 1, found " + number(value));
    return false;
  }
  auto complete = [&] { return isState ? barrier->phase > value : (barrier->phase & 1) != value; };
  if (complete()) {
    // Whoever waits for the phase before the first one learns nothing.
    thread.seen = barrier->join(thread.seen, barrier->completed);
    return true;
  }
  // Try returns false after a time that the program does not know.
  if (mode == Test || (mode == Try && random() % 8 == 0)) {
    poll(thread, location);
    return false;
  }
  barrier->waiting.push_back(&thread);
  suspend(thread, WaitKind::Mbarrier, location, barrier, barrier->offset);
  return true;
}

//===-- Asynchronous copies -----------------------------------------------------------------===//

void Machine::bulkCopy(Thread &thread, uint32_t location, void *destination, const void *source,
                       void *barrierAddress, uint32_t bytes) {
  if (bytes == 0 || bytes % 16)
    return fail(thread, location,
                "copies " + number(bytes) + " bytes: expected a positive multiple of 16");
  if (reinterpret_cast<uintptr_t>(source) % 16 || reinterpret_cast<uintptr_t>(destination) % 16)
    return fail(thread, location,
                std::string("misaligned ") +
                    (reinterpret_cast<uintptr_t>(source) % 16 ? "source" : "destination") +
                    " of a bulk copy: expected a multiple of 16");
  SharedPlace place = findShared(thread, destination);
  if (!place.block || place.block->finished ||
      place.offset + uint64_t(bytes) > place.block->sharedBytes)
    return fail(thread, location,
                "copies " + number(bytes) + " bytes to outside of shared memory" +
                    (place.block ? ": at byte " + number(place.offset) + " of " +
                                       number(place.block->sharedBytes)
                                 : std::string()));
  Block *barrierBlock;
  Mbarrier *barrier = findBarrier(thread, location, barrierAddress, &barrierBlock);
  if (!barrier || !checkGlobal(thread, location, source, bytes, 0))
    return;
  if (barrierBlock != place.block)
    return fail(thread, location, "the copy's mbarrier is in another block than its destination");
  if (!report(thread, location, *place.block,
              place.block->shadow.startCopy(place.offset, bytes, accessOf(thread, location)), bytes,
              "copies"))
    return;
  Copy copy;
  copy.block = place.block;
  copy.offset = place.offset;
  copy.bytes = copy.sourceBytes = bytes;
  copy.source = static_cast<const std::byte *>(source);
  copy.location = location;
  Flight flight;
  flight.copies.push_back(copy);
  flight.block = barrierBlock;
  flight.barrier = barrier - barrierBlock->mbarriers.data();
  flight.transactions = bytes;
  ++place.block->copiesInFlight;
  flights.push_back(std::move(flight));
}

void Machine::perform(const Copy &copy, uint32_t actor, uint32_t clock) {
  std::byte *to = copy.block->shared + copy.offset;
  std::memcpy(to, copy.source, copy.sourceBytes);
  std::memset(to + copy.sourceBytes, 0, copy.bytes - copy.sourceBytes);
  copy.block->shadow.finishCopy(copy.offset, copy.bytes, actor, clock);
}

void Machine::land(size_t index) {
  Flight flight = std::move(flights[index]);
  if (index + 1 != flights.size())
    flights[index] = std::move(flights.back());
  flights.pop_back();
  idlePolls = 0;
  Mbarrier &barrier = flight.block->mbarriers[flight.barrier];
  for (const Copy &copy : flight.copies)
    perform(copy, barrier.actor, barrier.phase + 1);
  --flight.block->copiesInFlight;
  barrier.transactions -= flight.transactions;
  barrier.pending -= flight.arrivals;
  if (barrier.pending == 0)
    barrier.arriving.add(flight.block->cluster->zero);
  completePhase(*flight.block, barrier);
}

void Machine::bulkPrefetch(Thread &thread, uint32_t location, const void *source, uint32_t bytes) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(source) % 16)
    return fail(thread, location, "misaligned prefetch: address and size must be multiples of 16");
  // Only the extent matters: no value is read.
  const auto *begin = static_cast<const std::byte *>(source);
  for (uint32_t index : thread.block->launch->launch->buffers) {
    const BufferInfo &buffer = buffers[index];
    if (begin >= buffer.begin && begin - buffer.begin <= int64_t(buffer.bytes) &&
        bytes <= buffer.bytes - (begin - buffer.begin))
      return;
  }
  fail(thread, location, "prefetches " + number(bytes) + " bytes outside of the launch's buffers");
}

void Machine::asyncCopy(Thread &thread, uint32_t location, void *destination, const void *source,
                        uint32_t bytes, uint32_t sourceBytes) {
  if (sourceBytes > bytes)
    return fail(thread, location, "copies " + number(sourceBytes) + " bytes to " + number(bytes));
  if (reinterpret_cast<uintptr_t>(source) % bytes ||
      reinterpret_cast<uintptr_t>(destination) % bytes)
    return fail(thread, location,
                std::string("misaligned ") +
                    (reinterpret_cast<uintptr_t>(source) % bytes ? "source" : "destination") +
                    " of an asynchronous copy: expected a multiple of " + number(bytes));
  SharedPlace place = findShared(thread, destination);
  if (place.block != thread.block || place.offset + uint64_t(bytes) > thread.block->sharedBytes)
    return fail(thread, location,
                "copies " + number(bytes) + " bytes to outside of the block's shared memory" +
                    (place.block ? ": at byte " + number(place.offset) + " of " +
                                       number(place.block->sharedBytes)
                                 : std::string()));
  if (sourceBytes && !checkGlobal(thread, location, source, sourceBytes, 0))
    return;
  if (!report(thread, location, *place.block,
              place.block->shadow.startCopy(place.offset, bytes, accessOf(thread, location)), bytes,
              "copies"))
    return;
  Copy copy;
  copy.block = thread.block;
  copy.offset = place.offset;
  copy.bytes = bytes;
  copy.sourceBytes = sourceBytes;
  copy.source = static_cast<const std::byte *>(source);
  copy.location = location;
  thread.openCopies.push_back(copy);
}

void Machine::asyncCommit(Thread &thread) {
  thread.copyGroups.push_back(std::move(thread.openCopies));
  thread.openCopies.clear();
}

void Machine::asyncWait(Thread &thread, uint32_t groups) {
  // As late as it may be: what nobody has waited for has not arrived.
  while (thread.copyGroups.size() > groups) {
    for (const Copy &copy : thread.copyGroups.front())
      perform(copy, thread.actor, thread.clock);
    thread.copyGroups.erase(thread.copyGroups.begin());
  }
}

void Machine::asyncArrive(Thread &thread, uint32_t location, void *address, bool increment) {
  Block *block;
  Mbarrier *barrier = findBarrier(thread, location, address, &block);
  if (!barrier)
    return;
  if (increment)
    ++barrier->pending;
  Flight flight;
  for (auto &group : thread.copyGroups) {
    flight.copies.append(group.begin(), group.end());
    group.clear();
  }
  flight.copies.append(thread.openCopies.begin(), thread.openCopies.end());
  thread.openCopies.clear();
  // Arrivals that are under way count, too.
  uint32_t expected = barrier->pending;
  flight.block = block;
  flight.barrier = barrier - block->mbarriers.data();
  for (const Flight &other : flights)
    if (other.block == block && other.barrier == flight.barrier)
      expected -= std::min(expected, other.arrivals);
  if (expected == 0)
    return fail(thread, location,
                "arrives at the mbarrier at byte " + number(barrier->offset) +
                    " of shared memory, which expects no more in this phase");
  flight.arrivals = 1;
  ++block->copiesInFlight;
  flights.push_back(std::move(flight));
}

//===-- Grids and clusters ------------------------------------------------------------------===//

void Machine::gridWait(Thread &thread, uint32_t location) {
  LaunchState &launch = *thread.block->launch;
  if (launch.launch->overlap && launch.index > 0) {
    LaunchState &before = launchOf(launch.serial - 1);
    if (!before.complete()) {
      before.waiting.push_back(&thread);
      suspend(thread, WaitKind::Grid, location, &before);
    }
  }
  launch.waited = true;
  thread.waitedForGrid = true;
  Cluster &cluster = *thread.block->cluster;
  thread.seen = cluster.gridJoin(thread.seen, cluster.gridClock);
}

void Machine::gridTrigger(Thread &thread) {
  if (thread.block->triggered)
    return;
  thread.block->triggered = true;
  ++thread.block->launch->triggered;
}

void Machine::completeClusterBarrier(Cluster &cluster) {
  if (cluster.arrived == 0 || cluster.arrived < cluster.running)
    return;
  idlePolls = 0;
  cluster.completed = cluster.arriving.take();
  ++cluster.phase;
  cluster.arrived = 0;
  for (Thread *thread : cluster.waiting) {
    thread->atCluster = false;
    thread->seen = cluster.join(thread->seen, cluster.completed);
    makeReady(*thread);
  }
  cluster.waiting.clear();
}

void Machine::clusterArrive(Thread &thread, uint32_t location, bool releases) {
  Cluster &cluster = *thread.block->cluster;
  if (thread.atCluster)
    return fail(thread, location, "arrives at the cluster's barrier a second time without a wait");
  thread.atCluster = true;
  thread.clusterPhase = cluster.phase;
  if (releases)
    release(thread, cluster.arriving);
  else
    cluster.arriving.add(cluster.zero);
  ++cluster.arrived;
  completeClusterBarrier(cluster);
}

void Machine::clusterWait(Thread &thread, uint32_t location) {
  Cluster &cluster = *thread.block->cluster;
  if (!thread.atCluster)
    return fail(thread, location, "waits at the cluster's barrier without having arrived");
  if (cluster.phase != thread.clusterPhase) {
    thread.atCluster = false;
    thread.seen = cluster.join(thread.seen, cluster.completed);
    return;
  }
  cluster.waiting.push_back(&thread);
  suspend(thread, WaitKind::ClusterBarrier, location, &cluster);
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

//===-- Running -----------------------------------------------------------------------------===//

static thread_local Thread *startingThread;

namespace sluice::emulator {
/// The first function on a thread's stack.
void threadMain() {
  Thread &thread = *startingThread;
  Machine &machine = *thread.machine;
  arrivedOnFiber(&machine.schedulerStack, &machine.schedulerStackBytes);
  const LaunchState &launch = *thread.block->launch;
  launch.kernel->entry(&thread, launch.arguments.data());
  machine.finishThread(thread);
  machine.leave(thread);
}
} // namespace sluice::emulator

void Machine::resume(Thread &thread) {
  startingThread = &thread;
  switchFiber(scheduler, thread.fiber, thread.stack, StackPool::stackBytes);
}

void Machine::startCluster(LaunchState &launch) {
  uint32_t count = launch.launch->cluster, threads = launch.launch->block;
  Cluster &cluster = *clusters.emplace_back(std::make_unique<Cluster>());
  cluster.launch = &launch;
  cluster.threads = cluster.running = count * threads;
  cluster.actors = count * (threads + barrierLimit) + 1;
  cluster.zero = Clock(cluster.actors);
  cluster.gridClock = Clock(cluster.actors);
  cluster.gridClock.values()[cluster.gridActor()] = 1;
  for (uint32_t rank = 0; rank < count; ++rank) {
    std::unique_ptr<Block> owned;
    if (spareBlocks.empty()) {
      owned = std::make_unique<Block>();
    } else {
      owned = std::move(spareBlocks.back());
      spareBlocks.pop_back();
    }
    Block &block = *owned;
    block.cluster = &cluster;
    block.launch = &launch;
    block.index = launch.started++;
    block.rank = rank;
    block.sharedBytes = launch.launch->shared;
    if (spareShared.empty()) {
      // In the low 2 GB: a pointer to shared memory has 32 bits on the device.
      void *memory = mmap(nullptr, sharedLimit + 4096, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
      if (memory == MAP_FAILED) {
        message = "no memory left for the shared memory of a block";
        cluster.blocks.push_back(std::move(owned));
        return;
      }
      allShared.push_back(static_cast<std::byte *>(memory));
      spareShared.push_back(static_cast<std::byte *>(memory));
    }
    block.shared = spareShared.back();
    spareShared.pop_back();
    block.mbarriers.reserve(barrierLimit);
    block.shadow.reset(block.sharedBytes, cluster.actors);
    block.threads.resize(threads);
    block.warps.assign((threads + warpSize - 1) / warpSize, Warp());
    block.running = threads;
    block.triggered = block.synchronizes = block.finished = false;
    for (uint32_t i = 0; i < block.warps.size(); ++i) {
      Warp &warp = block.warps[i];
      warp.block = &block;
      warp.first = i * warpSize;
      uint32_t lanes = std::min(warpSize, threads - warp.first);
      warp.lanes = warp.alive = lanes == warpSize ? ~0u : (1u << lanes) - 1;
    }
    for (uint32_t i = 0; i < threads; ++i) {
      Thread &thread = block.threads[i];
      thread = Thread();
      thread.stack = stacks.take();
      if (!thread.stack) {
        message = "no memory left for the stacks of " + number(threads) + " threads";
        cluster.blocks.push_back(std::move(owned));
        return;
      }
      thread.fiber = makeFiber(thread.stack, i, threadMain);
      thread.machine = this;
      thread.block = &block;
      thread.index = i;
      thread.lane = i % warpSize;
      thread.warp = &block.warps[i / warpSize];
      thread.actor = rank * threads + i;
      thread.seen = cluster.zero;
    }
    // Warps start in an order of their own.
    uint32_t first = random() % block.warps.size();
    for (uint32_t i = 0; i < threads; ++i)
      makeReady(block.threads[(i + first * warpSize) % threads]);
    cluster.blocks.push_back(std::move(owned));
  }
}

void Machine::finishThread(Thread &thread) {
  Block &block = *thread.block;
  Cluster &cluster = *block.cluster;
  Warp &warp = *thread.warp;
  for (const Warp::Meeting &meeting : warp.meetings)
    if (meeting.mask >> thread.lane & 1)
      return fail(thread, meeting.location,
                  "divergent warp operation: the thread has exited, while lanes " +
                      hex(meeting.arrived) + " wait for lanes " + hex(meeting.mask));
  if (warp.atBarrier)
    return fail(thread, warp.barrierLocation,
                "divergent barrier: the thread has exited, while lanes " + hex(warp.atBarrier) +
                    " of its warp wait");
  for (uint32_t id = 0; id < namedBarriers; ++id)
    if (block.barriers[id].arrived && !block.barriers[id].counted)
      return fail(thread, block.barriers[id].waiting.front()->waitLocation,
                  "divergent barrier: the thread has exited, while others wait for all threads of "
                  "the block");
  if (!thread.openCopies.empty() || !thread.copyGroups.empty()) {
    bool any = !thread.openCopies.empty();
    uint32_t location = any ? thread.openCopies.front().location : 0;
    for (const auto &group : thread.copyGroups)
      if (!group.empty())
        any = true, location = group.front().location;
    if (any)
      return fail(thread, location, "the thread has exited without waiting for this copy");
  }
  idlePolls = 0;
  thread.done = true;
  warp.alive &= ~(1u << thread.lane);
  --block.running;
  --cluster.running;
  if (thread.atCluster && thread.clusterPhase == cluster.phase)
    --cluster.arrived;
  completeClusterBarrier(cluster);
}

void Machine::finishBlock(Block &block) {
  LaunchState &launch = *block.launch;
  if (block.copiesInFlight) {
    for (const Flight &flight : flights)
      if (flight.block == &block)
        return fail(block.threads[0], flight.copies.empty() ? ~0u : flight.copies[0].location,
                    "the block has ended while this copy to its shared memory was in flight");
  }
  block.finished = true;
  if (!block.triggered)
    ++launch.triggered;
  block.triggered = true;
  ++launch.finished;
  for (Thread &thread : block.threads) {
    stacks.give(thread.stack);
    thread.stack = nullptr;
    thread.seen = Clock();
  }
  if (launch.complete()) {
    launch.end =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - stepStart).count();
    for (Thread *thread : launch.waiting)
      makeReady(*thread);
    launch.waiting.clear();
  }
  // Others may still look at this block's shared memory, and be told that it has ended.
  Cluster &cluster = *block.cluster;
  if (cluster.running)
    return;
  for (auto &other : cluster.blocks)
    if (!other->finished)
      return;
  for (auto &other : cluster.blocks) {
    spareShared.push_back(other->shared);
    other->shared = nullptr;
    for (NamedBarrier &barrier : other->barriers)
      barrier = NamedBarrier();
    other->mbarriers.clear();
    spareBlocks.push_back(std::move(other));
  }
  llvm::erase_if(clusters, [&](const auto &owned) { return owned.get() == &cluster; });
}

void Machine::admit() {
  unsigned incomplete = 0;
  for (size_t i = 0; i < launches.size(); ++i) {
    LaunchState &launch = launches[i];
    if (launch.complete())
      continue;
    if (i > 0 && launch.started == 0) {
      LaunchState &before = launches[i - 1];
      bool overlap = launch.launch->overlap && !serialize;
      if (overlap ? before.triggered != before.launch->grid : !before.complete())
        return;
    }
    while (launch.started < launch.launch->grid && message.empty()) {
      uint32_t resident = launch.started - launch.finished;
      if (resident && resident + launch.launch->cluster > options.residentBlocks)
        return;
      startCluster(launch);
    }
    if (++incomplete == 3)
      return;
  }
}

void Machine::reportDeadlock(bool polling) {
  // The same wait of many threads is said once.
  struct Group {
    const Thread *first;
    unsigned threads;
  };
  std::vector<Group> groups;
  for (auto &cluster : clusters)
    for (auto &block : cluster->blocks)
      for (Thread &thread : block->threads) {
        if (thread.done || block->finished)
          continue;
        auto same = llvm::find_if(groups, [&](const Group &group) {
          return group.first->block == thread.block && group.first->waitKind == thread.waitKind &&
                 group.first->waitLocation == thread.waitLocation &&
                 group.first->waitObject == thread.waitObject &&
                 (thread.waitKind != WaitKind::Warp || group.first->warp == thread.warp);
        });
        if (same != groups.end())
          ++same->threads;
        else
          groups.push_back({&thread, 1});
      }
  if (groups.empty()) {
    message = "deadlock: no launch can go on";
    return;
  }
  auto text = [&](const Group &group) {
    const Thread &thread = *group.first;
    std::string waits = "block " + number(thread.block->index) + ", thread " +
                        number(thread.index) +
                        (group.threads > 1 ? " and " + number(group.threads - 1) + " more" : "") +
                        " at " + where(thread.waitLocation);
    switch (thread.waitKind) {
    case WaitKind::None:
      return waits + " (about to run)";
    case WaitKind::Warp:
      return waits + " wait for lanes " + hex(thread.waitDetail) + " of the warp";
    case WaitKind::Barrier: {
      const NamedBarrier &barrier = thread.block->barriers[thread.waitDetail];
      return waits + " wait at barrier " + number(thread.waitDetail) + " (" +
             number(barrier.arrived) + " of " + number(barrier.expected) + " have arrived)";
    }
    case WaitKind::Mbarrier: {
      const auto &barrier = *static_cast<const Mbarrier *>(thread.waitObject);
      return waits + " wait for the mbarrier at byte " + number(thread.waitDetail) + " (phase " +
             number(barrier.phase) + ": " + number(barrier.pending) + " arrivals and " +
             std::to_string(barrier.transactions) + " bytes missing)";
    }
    case WaitKind::ClusterBarrier:
      return waits + " wait at the cluster's barrier";
    case WaitKind::Grid:
      return waits + " wait for the launch before";
    case WaitKind::Poll:
      return waits + " poll";
    }
    return waits;
  };
  const Group *first = &groups.front();
  // Lanes that wait for each other are named first: the others are consequences.
  std::string kind = polling ? "livelock: nothing changes what threads poll for: "
                             : "deadlock: no thread can run: ";
  for (const Group &group : groups)
    if (group.first->waitKind == WaitKind::Warp) {
      first = &group;
      kind = "divergent warp operation: deadlock: ";
      break;
    }
  const LaunchState &launch = *first->first->block->launch;
  message = "kernel '" + launch.kernel->name + "' (launch " + number(launch.index);
  if (!launch.launch->label.empty())
    message += " \"" + launch.launch->label + "\"";
  message += "): " + kind + text(*first);
  unsigned more = 0;
  for (const Group &group : groups)
    if (&group != first) {
      if (more++ < 3)
        message += "; " + text(group);
    }
  if (more > 3)
    message += "; and " + number(more - 3) + " other waits";
}

void Machine::loop() {
  std::vector<Block *> ended;
  while (message.empty()) {
    admit();
    if (!message.empty())
      return;
    if (readyBlocks.empty()) {
      if (!flights.empty()) {
        land(random() % flights.size());
        continue;
      }
      if (launches.back().complete())
        return;
      reportDeadlock(false);
      return;
    }
    ++turns;
    if (idlePolls > 4000000 && flights.empty()) {
      reportDeadlock(true);
      return;
    }
    size_t chosen = random() % readyBlocks.size();
    Block &block = *readyBlocks[chosen];
    bool newest = random() % 8 == 0;
    for (uint64_t n = 1 + random() % 512; n && !block.ready.empty(); --n) {
      Thread *thread = newest ? block.ready.back() : block.ready.front();
      newest ? block.ready.pop_back() : block.ready.pop_front();
      resume(*thread);
      if (!message.empty())
        return;
    }
    if (block.ready.empty()) {
      block.queued = false;
      // Blocks that were made ready meanwhile are behind it.
      readyBlocks.erase(readyBlocks.begin() + chosen);
      if (block.running == 0)
        finishBlock(block);
    }
    if (!flights.empty() && random() % 4 == 0)
      land(random() % flights.size());
  }
}

std::string Machine::prepare(llvm::ArrayRef<Launch> step) {
  launches.clear();
  if (nextSerial + step.size() >= 1u << 20) {
    // All history is older than this step.
    nextSerial = 1;
    for (Memory &memory : memories)
      if (memory.writers)
        std::memset(memory.writers.get(), 0, memory.bytes * sizeof(uint32_t));
  }
  firstSerial = nextSerial;
  for (const Launch &launch : step) {
    std::string name = "launch " + number(launches.size()) + " of kernel '" + launch.kernel + "'";
    auto kernel =
        llvm::find_if(kernels, [&](const Kernel &kernel) { return kernel.name == launch.kernel; });
    if (kernel == kernels.end())
      return name + ": the module has no such kernel";
    if (kernel->arguments != launch.buffers.size())
      return name + ": has " + number(launch.buffers.size()) + " buffers, but the kernel takes " +
             number(kernel->arguments);
    uint32_t maxThreads = kernel->maxThreads ? kernel->maxThreads : 1024;
    if (launch.block == 0 || launch.block > maxThreads)
      return name + ": has blocks of " + number(launch.block) + " threads, expected 1 to " +
             number(maxThreads);
    if (launch.shared > sharedLimit)
      return name + ": needs " + number(launch.shared) + " bytes of shared memory, at most " +
             number(sharedLimit) + " exist";
    if (launch.cluster == 0 || launch.cluster > 16 || launch.grid == 0 ||
        launch.grid % launch.cluster)
      return name + ": a grid of " + number(launch.grid) + " blocks in clusters of " +
             number(launch.cluster);
    if (kernel->cluster && kernel->cluster != launch.cluster)
      return name + ": has clusters of " + number(launch.cluster) +
             " blocks, the kernel declares " + number(kernel->cluster);
    LaunchState &added = launches.emplace_back();
    added.launch = &launch;
    added.kernel = &*kernel;
    added.index = launches.size() - 1;
    added.serial = nextSerial++;
    bool overlaps = launch.overlap && added.index > 0;
    added.floor = overlaps ? launches[added.index - 1].floor : added.serial;
    for (uint32_t buffer : launch.buffers) {
      if (buffer >= buffers.size())
        return name + ": buffer " + number(buffer) + " does not exist";
      added.arguments.push_back(buffers[buffer].begin);
    }
  }
  return "";
}

std::string Machine::run(llvm::ArrayRef<Launch> step, std::vector<double> *seconds) {
  if (!message.empty())
    return "the emulator has stopped at an earlier error: " + message;
  if (step.empty())
    return "";
  if (std::string error = prepare(step); !error.empty())
    return error;
  idlePolls = 0;
  serialize = seconds != nullptr;
  stepStart = std::chrono::steady_clock::now();
  loop();
  if (seconds) {
    seconds->clear();
    double before = 0;
    for (const LaunchState &launch : launches) {
      seconds->push_back(launch.end - before);
      before = launch.end;
    }
  }
  return message;
}
