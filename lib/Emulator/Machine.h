// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The machine that compiled kernels run on: threads as fibers of one OS thread, warps, blocks,
// clusters, launches that overlap, memory with its history, and asynchronous copies. Its functions
// are in files by what they are about: GlobalMemory, Cooperative, SharedMemory, Barriers,
// Mbarriers, AsyncCopies and Scheduler.

#ifndef SLUICE_LIB_EMULATOR_MACHINE_H
#define SLUICE_LIB_EMULATOR_MACHINE_H

#include "State.h"

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/DenseMap.h"

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace sluice::emulator {

/// For messages: a number, and the mask of a warp's lanes ("0x0000ffff").
std::string number(uint64_t value);
std::string laneMask(uint32_t lanes);

class Machine {
public:
  Machine(const Options &options, std::vector<std::string> &locations);
  ~Machine();

  uint32_t addMemory(std::string name, void *data, uint64_t bytes, MemoryKind kind);
  uint32_t addBuffer(std::string name, uint32_t memory, uint64_t offset, uint64_t bytes);
  std::vector<Kernel> kernels;
  /// Constant tables of the module itself.
  std::vector<std::pair<const std::byte *, uint64_t>> constants;

  /// An empty string, or what went wrong.
  std::string run(llvm::ArrayRef<Launch> step, std::vector<double> *seconds);

  // The functions below run on fibers. They record a failure; their caller then calls leave().
  bool failed() const { return !message.empty(); }
  [[noreturn]] void leave();
  void fail(const Thread &thread, uint32_t location, const std::string &what);

  enum AccessFlags : uint32_t {
    Write = 1,
    AtomicAccess = 2,
    VolatileAccess = 4,
    InShared = 8,
    InGlobal = 16,
    ReadWrite = 32,
    /// Of atomic accesses: their order, and that it holds within the block only.
    Acquire = 64,
    Release = 128,
    BlockScope = 256
  };
  void access(Thread &thread, uint32_t location, const void *address, uint32_t bytes,
              uint32_t alignment, uint32_t flags);
  void barrier(Thread &thread, uint32_t location, uint32_t id, uint32_t count, bool wait);
  /// Arrives at an operation of the warp. True for the last lane of the mask, which computes the
  /// results of all and calls completeWarp; the others return after that.
  bool arriveWarp(Thread &thread, uint32_t location, uint32_t mask, WarpOperation operation);
  /// Lets the other lanes of the mask go on with their results.
  void completeWarp(Thread &thread, uint32_t mask);

  /// Products of a warpgroup. `operands` are those of ptx::WarpgroupProducts, each in as many words
  /// as it has. Until they are taken, sums are the number of their group.
  void startProducts(Thread &thread, uint32_t location, const ptx::WarpgroupProducts &shape,
                     const uint32_t *operands, uint32_t *sums);
  void waitForProducts(Thread &thread, uint32_t location, uint32_t pending);
  void takeSums(Thread &thread, uint32_t location, uint32_t count, uint32_t *sums);
  /// Changes how many registers a warpgroup's threads have. `more`: to as many or more; then it
  /// waits until others of the block have given up as many.
  void setRegisters(Thread &thread, uint32_t location, uint32_t count, bool more);

  void mbarrierInit(Thread &thread, uint32_t location, void *address, uint32_t count);
  void mbarrierInvalidate(Thread &thread, uint32_t location, void *address);
  uint64_t mbarrierArrive(Thread &thread, uint32_t location, void *address, uint32_t count,
                          uint64_t transactions, bool release);
  void mbarrierExpect(Thread &thread, uint32_t location, void *address, int64_t transactions);
  enum WaitMode : uint32_t { Test, Try, Wait };
  bool mbarrierWait(Thread &thread, uint32_t location, void *address, uint64_t value, bool isState,
                    WaitMode mode, bool clusterScope);

  void bulkCopy(Thread &thread, uint32_t location, void *destination, const void *source,
                void *barrier, uint32_t bytes);
  /// Stores to the shared memory of a block of the cluster; the bytes complete at its mbarrier.
  void remoteStore(Thread &thread, uint32_t location, void *destination, void *barrier,
                   const uint32_t *words, uint32_t count);
  void bulkPrefetch(Thread &thread, uint32_t location, const void *source, uint32_t bytes);
  void asyncCopy(Thread &thread, uint32_t location, void *destination, const void *source,
                 uint32_t bytes, uint32_t sourceBytes);
  void asyncCommit(Thread &thread);
  void asyncWait(Thread &thread, uint32_t groups);
  void asyncArrive(Thread &thread, uint32_t location, void *barrier, bool increment);

  void gridWait(Thread &thread, uint32_t location);
  void gridTrigger(Thread &thread);
  void clusterArrive(Thread &thread, uint32_t location, bool release);
  void clusterWait(Thread &thread, uint32_t location);
  void *mapToRank(Thread &thread, uint32_t location, void *address, uint32_t rank);
  /// A fence of the whole device: what it orders is known in cooperative launches.
  void fence(Thread &thread, bool acquires, bool releases);
  /// Lets other threads run: the calling one waits for something that they change.
  void poll(Thread &thread, uint32_t location);
  uint64_t ticks() const { return turns; }

private:
  friend void threadMain();

  uint64_t random();
  std::string describe(const Thread &thread) const;
  std::string where(uint32_t location) const;
  std::string actorName(const Cluster &cluster, uint32_t actor) const;

  std::string prepare(llvm::ArrayRef<Launch> step);
  void admit();
  void startCluster(LaunchState &launch);
  void finishThread(Thread &thread);
  void finishBlock(Block &block);
  void loop();
  void resume(Thread &thread);
  /// Queues the thread behind the other ready threads of its block, or, with `next`, before them.
  void makeReady(Thread &thread, bool next = false);
  void suspend(Thread &thread, WaitKind kind, uint32_t location, const void *object = nullptr,
               uint32_t detail = 0);
  void reportDeadlock(bool polling);
  /// Remembers a load that may be one of a loop that polls; suspends the thread if it has made the
  /// same loads before, with the same results, and has done nothing else since.
  void watch(Thread &thread, uint32_t location, const void *address, uint32_t bytes);
  void forgetWatches(Thread &thread);
  /// Wakes the threads that wait for a change of these bytes.
  void changed(const void *address, uint64_t bytes);
  void wakeWatchers();
  /// For messages: what the thread polls, and what is there.
  std::string watched(const Thread &thread) const;

  struct SharedPlace {
    Block *block = nullptr;
    uint32_t offset = 0;
  };
  /// The block in whose shared memory the address lies; null if it lies in none of the cluster.
  SharedPlace findShared(Thread &thread, const void *address);
  /// What is on its way to shared memory, and completes at an mbarrier there: a bulk copy, or a
  /// store to a block of the cluster.
  enum class Sending { Copy, Store };
  /// Checks destination and mbarrier, and fills in all of `flight` but where its bytes come from.
  bool startFlight(Thread &thread, uint32_t location, void *destination, void *barrierAddress,
                   uint32_t bytes, Sending sending, Flight &flight);
  Access accessOf(const Thread &thread, uint32_t location, bool atomic = false) const;
  bool checkShared(Thread &thread, uint32_t location, const void *address, uint32_t bytes,
                   uint32_t flags);
  bool report(Thread &thread, uint32_t location, const Block &block, const Conflict &conflict,
              uint32_t bytes, const char *doing);
  bool checkGlobal(Thread &thread, uint32_t location, const void *address, uint64_t bytes,
                   uint32_t flags);
  /// Between the blocks of a cooperative launch.
  bool checkOrder(Thread &thread, uint32_t location, const std::byte *address, uint64_t bytes,
                  uint32_t flags, const BufferInfo &buffer);
  bool visible(uint32_t serial, const LaunchState &launch, bool waited) const;
  bool waited(const Thread &thread) const;
  LaunchState &launchOf(uint32_t serial) { return launches[serial - firstSerial]; }
  const LaunchState &launchOf(uint32_t serial) const { return launches[serial - firstSerial]; }

  Mbarrier *findBarrier(Thread &thread, uint32_t location, void *address, Block **block,
                        bool ordered = true);
  void release(Thread &thread, Gathering &into);
  void completePhase(Block &block, Mbarrier &barrier);
  void completeCopy(size_t index);
  static void writeCopy(const Copy &copy, uint32_t actor, uint32_t clock);
  void completeNamedBarrier(Block &block, uint32_t id);
  void completeClusterBarrier(Cluster &cluster);
  void computeProducts(Thread &thread, Warpgroup &warpgroup, ProductGroup &group);

  Options options;
  std::vector<std::string> &locations;
  std::vector<Memory> memories;
  std::vector<BufferInfo> buffers;
  std::vector<LaunchState> launches;
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<std::unique_ptr<Block>> spareBlocks;
  std::vector<std::byte *> spareShared;
  std::vector<std::byte *> allShared;
  std::vector<Block *> readyBlocks;
  std::vector<Flight> flights;
  /// By words of 8 bytes of global memory, the threads that wait for a change.
  llvm::DenseMap<uintptr_t, llvm::SmallVector<Thread *, 2>> watchers;
  StackPool stacks;
  Fiber scheduler;
  const void *schedulerStack = nullptr;
  size_t schedulerStackBytes = 0;
  uint32_t firstSerial = 1, nextSerial = 1;
  uint64_t state = 1, turns = 0, idlePolls = 0;
  /// Polls in a row when the threads that wait for a change were last woken.
  uint64_t wokenAt = 0;
  bool serialize = false;
  std::chrono::steady_clock::time_point stepStart;
  std::string message;
};

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_MACHINE_H
