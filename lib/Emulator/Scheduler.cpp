// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Which launches, blocks and threads run when, and how a run ends.

#include "Machine.h"

#include "sluice/Target/ThreadRegisters.h"

#include "llvm/ADT/STLExtras.h"

#include <cstring>
#include <sys/mman.h>

using namespace sluice::emulator;

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

void Machine::makeReady(Thread &thread, bool next) {
  if (thread.waitKind == WaitKind::Change)
    forgetWatches(thread);
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
  if (kind != WaitKind::Poll && kind != WaitKind::Change)
    thread.watches.clear();
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

/// Polls in a row, without anything else done, after which nothing is expected to change.
static constexpr uint64_t pollLimit = 4000000;

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
  machine.leave();
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
  cluster.barriers = count * barrierLimit;
  cluster.actors = cluster.gridActor() + 1;
  if (launch.launch->cooperative)
    cluster.actors += launch.launch->grid;
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
    block.epoch = 1;
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
    Warpgroup warpgroup;
    const Kernel &kernel = *launch.kernel;
    warpgroup.registers =
        ptx::registersAtLaunch(((kernel.maxThreads ? kernel.maxThreads : threads) + 31) / warpSize,
                               std::max(kernel.residentBlocks, 1u));
    block.warpgroups.assign(threads / Warpgroup::threads, warpgroup);
    block.spareRegisters = 0;
    block.wantRegisters.clear();
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
    // Which warp starts first is random.
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
  for (const Warp::Pending &pending : warp.pending)
    if (pending.mask >> thread.lane & 1)
      return fail(thread, pending.location,
                  "divergent warp operation: the thread has exited, while lanes " +
                      laneMask(pending.arrived) + " wait for lanes " + laneMask(pending.mask));
  if (warp.atBarrier)
    return fail(thread, warp.barrierLocation,
                "divergent barrier: the thread has exited, while lanes " +
                    laneMask(warp.atBarrier) + " of its warp wait");
  for (uint32_t id = 0; id < namedBarriers; ++id)
    if (block.barriers[id].arrived && !block.barriers[id].counted)
      return fail(thread, block.barriers[id].waiting.front()->waitLocation,
                  "divergent barrier: the thread has exited, while others wait for all threads of "
                  "the block");
  if (thread.endedProducts != thread.startedProducts)
    return fail(thread, ~0u, "the thread has exited without waiting for its products (wgmma)");
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
  // The block is kept until its cluster has ended: an access to its shared memory is a fault that
  // names it.
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
      if (resident && resident + launch.launch->cluster > options.residentBlocks &&
          !launch.launch->cooperative)
        return;
      startCluster(launch);
    }
    if (++incomplete == 3)
      return;
  }
}

void Machine::reportDeadlock(bool polling) {
  // Threads that wait for the same thing are one group in the message.
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
      return waits + " wait for lanes " + laneMask(thread.waitDetail) + " of the warp";
    case WaitKind::Warpgroup:
      return waits + " wait for the other threads of the warpgroup";
    case WaitKind::Registers:
      return waits + " wait for " + number(thread.waitDetail) +
             " registers more a thread, of which the block's other warpgroups have given up " +
             number(thread.block->spareRegisters);
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
    case WaitKind::Change:
      return waits + " poll" + watched(thread);
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
  // Blocks that wait for each other are all of interest.
  unsigned more = 0, shown = launch.launch->cooperative ? 15 : 3;
  for (const Group &group : groups)
    if (&group != first) {
      if (more++ < shown)
        message += "; " + text(group);
    }
  if (more > shown)
    message += "; and " + number(more - shown) + " other waits";
}

void Machine::loop() {
  std::vector<Block *> ended;
  while (message.empty()) {
    admit();
    if (!message.empty())
      return;
    if (readyBlocks.empty()) {
      if (!flights.empty()) {
        completeCopy(options.lateCopies ? flights.size() - 1 : random() % flights.size());
        continue;
      }
      if (!watchers.empty() && idlePolls + pollLimit / 16 < pollLimit) {
        // They may count how often they poll, and do something else at last.
        idlePolls += pollLimit / 16;
        wakeWatchers();
        continue;
      }
      if (launches.back().complete())
        return;
      reportDeadlock(!watchers.empty());
      return;
    }
    ++turns;
    if (idlePolls > pollLimit && flights.empty()) {
      reportDeadlock(true);
      return;
    }
    // Sleepers that do not only poll must get on although others never stop.
    if (idlePolls < wokenAt)
      wokenAt = 0;
    if (!watchers.empty() && idlePolls >= wokenAt + pollLimit / 32) {
      wokenAt = idlePolls;
      wakeWatchers();
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
    if (!flights.empty() && !options.lateCopies && random() % 4 == 0)
      completeCopy(random() % flights.size());
  }
}

std::string Machine::prepare(llvm::ArrayRef<Launch> step) {
  launches.clear();
  if (nextSerial + step.size() >= 1u << 20) {
    // Serial numbers begin anew, so that all writes so far count as the host's.
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
    if (launch.cooperative && launch.grid > cooperativeLimit)
      return name + ": a cooperative launch of " + number(launch.grid) + " blocks, at most " +
             number(cooperativeLimit) + " are possible";
    if (kernel->cluster && kernel->cluster != launch.cluster)
      return name + ": has clusters of " + number(launch.cluster) +
             " blocks, the kernel declares " + number(kernel->cluster);
    LaunchState &added = launches.emplace_back();
    added.launch = &launch;
    added.kernel = &*kernel;
    added.index = launches.size() - 1;
    if (launch.cooperative)
      added.shadow = std::make_unique<GlobalShadow>(launch.grid);
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
  idlePolls = wokenAt = 0;
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
