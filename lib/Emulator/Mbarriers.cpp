// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// mbarrier objects: their phases, arrivals and transactions.

#include "Machine.h"

#include <utility>

using namespace sluice::emulator;

Mbarrier *Machine::findBarrier(Thread &thread, uint32_t location, void *address, Block **block,
                               bool ordered) {
  thread.watches.clear();
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
  // The phases of an address continue, so that clocks of earlier copies stay below later ones'.
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
  barrier.remoteCompleted = std::exchange(barrier.remoteArriving, false);
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
  barrier->remoteArriving |= block != thread.block;
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
                           bool isState, WaitMode mode, bool clusterScope) {
  Block *block;
  Mbarrier *barrier = findBarrier(thread, location, address, &block);
  if (!barrier)
    return false;
  if (!isState && value > 1) {
    fail(thread, location, "the parity of a phase is 0 or 1, found " + number(value));
    return false;
  }
  auto acquire = [&] {
    if (barrier->remoteCompleted && !clusterScope)
      fail(thread, location,
           "waits for the mbarrier at byte " + number(barrier->offset) +
               " of shared memory in the scope of the block, while other blocks of the cluster "
               "complete it: what they sent is acquired in the scope of the cluster only");
    return true;
  };
  auto complete = [&] { return isState ? barrier->phase > value : (barrier->phase & 1) != value; };
  if (complete()) {
    // A wait for the phase before the first one returns at once and acquires nothing.
    thread.seen = barrier->join(thread.seen, barrier->completed);
    return acquire();
  }
  // try_wait returns false after a time that depends on the device.
  if (mode == Test || (mode == Try && random() % 8 == 0)) {
    poll(thread, location);
    return false;
  }
  barrier->waiting.push_back(&thread);
  suspend(thread, WaitKind::Mbarrier, location, barrier, barrier->offset);
  return acquire();
}
