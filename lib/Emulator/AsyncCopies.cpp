// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Asynchronous copies to shared memory: bulk copies, which complete at an mbarrier, and cp.async.

#include "Machine.h"

#include <cstring>

using namespace sluice::emulator;

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
  Flight flight;
  if (!checkGlobal(thread, location, source, bytes, 0) ||
      !startFlight(thread, location, destination, barrierAddress, bytes, Sending::Copy, flight))
    return;
  flight.copies.front().source = static_cast<const std::byte *>(source);
  flights.push_back(std::move(flight));
}

bool Machine::startFlight(Thread &thread, uint32_t location, void *destination,
                          void *barrierAddress, uint32_t bytes, Sending sending, Flight &flight) {
  const char *does = sending == Sending::Copy ? "copies" : "stores",
             *what = sending == Sending::Copy ? "copy" : "store";
  SharedPlace place = findShared(thread, destination);
  if (!place.block || place.block->finished ||
      place.offset + uint64_t(bytes) > place.block->sharedBytes) {
    fail(thread, location,
         std::string(does) + " " + number(bytes) + " bytes to outside of shared memory" +
             (place.block ? ": at byte " + number(place.offset) + " of " +
                                number(place.block->sharedBytes) +
                                (place.block->finished ? " of a block that has ended" : "")
                          : std::string()));
    return false;
  }
  Block *barrierBlock;
  Mbarrier *barrier = findBarrier(thread, location, barrierAddress, &barrierBlock);
  if (!barrier)
    return false;
  if (barrierBlock != place.block) {
    fail(thread, location,
         std::string("the ") + what + "'s mbarrier is in another block than its destination");
    return false;
  }
  if (!report(thread, location, *place.block,
              place.block->shadow.startCopy(place.offset, bytes, accessOf(thread, location)), bytes,
              does))
    return false;
  Copy &copy = flight.copies.emplace_back();
  copy.block = place.block;
  copy.offset = place.offset;
  copy.bytes = copy.sourceBytes = bytes;
  copy.location = location;
  flight.block = barrierBlock;
  flight.barrier = barrier - barrierBlock->mbarriers.data();
  flight.transactions = bytes;
  ++place.block->copiesInFlight;
  return true;
}

void Machine::writeCopy(const Copy &copy, uint32_t actor, uint32_t clock) {
  std::byte *to = copy.block->shared + copy.offset;
  std::memcpy(to, copy.source, copy.sourceBytes);
  std::memset(to + copy.sourceBytes, 0, copy.bytes - copy.sourceBytes);
  copy.block->shadow.finishCopy(copy.offset, copy.bytes, actor, clock);
}

void Machine::completeCopy(size_t index) {
  Flight flight = std::move(flights[index]);
  if (index + 1 != flights.size())
    flights[index] = std::move(flights.back());
  flights.pop_back();
  idlePolls = 0;
  Mbarrier &barrier = flight.block->mbarriers[flight.barrier];
  if (flight.released)
    flight.copies.front().source = reinterpret_cast<const std::byte *>(flight.words.data());
  for (const Copy &copy : flight.copies)
    writeCopy(copy, barrier.actor, barrier.phase + 1);
  --flight.block->copiesInFlight;
  if (flight.released)
    barrier.arriving.add(flight.released);
  barrier.remoteArriving |= flight.remote;
  barrier.transactions -= flight.transactions;
  barrier.pending -= flight.arrivals;
  if (barrier.pending == 0)
    barrier.arriving.add(flight.block->cluster->zero);
  completePhase(*flight.block, barrier);
}

void Machine::remoteStore(Thread &thread, uint32_t location, void *destination,
                          void *barrierAddress, const uint32_t *words, uint32_t count) {
  uint32_t bytes = count * sizeof(uint32_t);
  if (reinterpret_cast<uintptr_t>(destination) % bytes)
    return fail(thread, location,
                "misaligned destination of a store to a block of the cluster: expected a multiple "
                "of " +
                    number(bytes));
  Flight flight;
  if (!startFlight(thread, location, destination, barrierAddress, bytes, Sending::Store, flight))
    return;
  std::copy_n(words, count, flight.words.begin());
  flight.remote = flight.block != thread.block;
  // The completion releases what the thread has done and knows of (PTX ISA, "st.async").
  Gathering released;
  release(thread, released);
  flight.released = released.take();
  flights.push_back(std::move(flight));
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
  // Copies complete as late as they may: when the thread waits for their group.
  while (thread.copyGroups.size() > groups) {
    for (const Copy &copy : thread.copyGroups.front())
      writeCopy(copy, thread.actor, thread.clock);
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
  // The arrivals of copies in flight are expected, too.
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
