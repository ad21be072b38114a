// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Barriers of a block and of a cluster, and operations that the lanes of a warp perform together.

#include "Machine.h"

#include <bit>

using namespace sluice::emulator;

/// A release: whoever acquires `into` is ordered after what the thread has done until now, and not
/// after what it does from now on.
void Machine::release(Thread &thread, Gathering &into) {
  into.add(thread.seen);
  uint32_t &own = into.clock.values()[thread.actor];
  own = std::max(own, thread.clock);
  ++thread.clock;
  Block &block = *thread.block;
  if (block.launch->shadow) {
    uint32_t &released = into.clock.values()[block.cluster->blockActor(block.index)];
    released = std::max(released, block.epoch++);
  }
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
                "divergent barrier: lanes " + laneMask(warp.atBarrier) +
                    " of the same warp wait at " + where(warp.barrierLocation));
  for (const Warp::Pending &pending : warp.pending)
    if (pending.mask >> thread.lane & 1)
      return fail(thread, location,
                  "divergent barrier: lanes " + laneMask(pending.arrived) +
                      " of the same warp wait for this thread at " + where(pending.location));
  if (!counted && block.running < block.threads.size())
    return fail(thread, location,
                "divergent barrier: waits for all " + number(block.threads.size()) +
                    " threads of the block, of which " +
                    number(block.threads.size() - block.running) + " have exited");
  if (wait && warp.alive != warp.lanes)
    return fail(thread, location,
                "divergent barrier: lanes " + laneMask(warp.lanes & ~warp.alive) +
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
                    "divergent barrier: only lanes " + laneMask(otherWarp.atBarrier) + " of warp " +
                        number(otherWarp.first / warpSize) + " have arrived, of lanes " +
                        laneMask(otherWarp.alive));
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
  case WarpOperation::Ldmatrix:
    return "matrix load";
  }
  return "warp operation";
}

bool Machine::arriveWarp(Thread &thread, uint32_t location, uint32_t mask,
                         WarpOperation operation) {
  thread.watches.clear();
  Warp &warp = *thread.warp;
  uint32_t bit = 1u << thread.lane;
  auto divergent = [&] { return std::string("divergent ") + operationName(operation) + ": "; };
  if (!(mask & bit)) {
    fail(thread, location,
         divergent() + "the thread's lane " + number(thread.lane) + " is not in the mask " +
             laneMask(mask));
    return false;
  }
  if (mask & ~warp.alive) {
    fail(thread, location,
         divergent() + "lanes " + laneMask(mask & ~warp.alive) + " of the mask " + laneMask(mask) +
             " have exited");
    return false;
  }
  if (uint32_t waiting = warp.atBarrier & mask) {
    fail(thread, location,
         divergent() + "lanes " + laneMask(waiting) + " of the mask wait at " +
             where(warp.barrierLocation));
    return false;
  }
  Warp::Pending *pending = nullptr;
  for (Warp::Pending &candidate : warp.pending) {
    if (!(candidate.mask & bit))
      continue;
    // Lanes may arrive at a warp barrier from several places, but not at an exchange of values.
    if (candidate.mask == mask && candidate.operation == operation &&
        (candidate.location == location || operation == WarpOperation::Sync)) {
      pending = &candidate;
      continue;
    }
    fail(thread, location,
         divergent() + "lanes " + laneMask(candidate.arrived) + " wait for this thread at " +
             where(candidate.location) + " with mask " + laneMask(candidate.mask));
    return false;
  }
  if (!pending)
    pending = &warp.pending.emplace_back(Warp::Pending{mask, 0, location, operation});
  pending->arrived |= bit;
  if (pending->arrived == mask) {
    warp.pending.erase(warp.pending.begin() + (pending - warp.pending.data()));
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

void Machine::completeWarp(Thread &thread, uint32_t mask) {
  Warp &warp = *thread.warp;
  mask &= ~(1u << thread.lane);
  // The warp mostly goes on at once, while its stacks are in the cache. Now and then it queues up,
  // so that other orders are tried.
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
