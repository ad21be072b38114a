// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The machine that compiled kernels run on: threads as fibers of one OS thread, warps, blocks,
// clusters, launches that overlap, memory with its history, and asynchronous copies.

#ifndef SLUICE_LIB_EMULATOR_MACHINE_H
#define SLUICE_LIB_EMULATOR_MACHINE_H

#include "Clock.h"
#include "Fiber.h"
#include "SharedShadow.h"
#include "sluice/Emulator/Emulator.h"

#include "llvm/ADT/SmallVector.h"

#include <bit>
#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace sluice::emulator {

struct Thread;
struct Block;
struct Cluster;
struct LaunchState;
class Machine;

constexpr uint32_t warpSize = 32;
constexpr uint32_t namedBarriers = 16;
/// mbarrier objects that a block may have.
constexpr uint32_t barrierLimit = 64;
/// What a block can have on sm_90: 228 KB an SM, 1 KB of which the system keeps.
constexpr uint32_t sharedLimit = 227 * 1024;

/// An entry point of compiled kernels.
using KernelEntry = void (*)(Thread *thread, void *const *arguments);

struct Kernel {
  std::string name;
  KernelEntry entry = nullptr;
  uint32_t arguments = 0;
  /// Declared by the kernel; 0 if it declares none.
  uint32_t maxThreads = 0, cluster = 0;
};

/// Why a thread does not run.
enum class WaitKind : uint8_t { None, Warp, Barrier, Mbarrier, ClusterBarrier, Grid, Poll };

/// What threads of a warp do together. Operations with different values never meet.
enum class WarpOperation : uint8_t { Sync, Shuffle, Vote, Redux, Mma, Movmatrix };

/// An asynchronous copy to shared memory.
struct Copy {
  Block *block = nullptr; ///< whose shared memory is written
  uint32_t offset = 0, bytes = 0;
  const std::byte *source = nullptr;
  uint32_t sourceBytes = 0; ///< the rest is zero
  uint32_t location = 0;
};

/// Copies in flight, and the mbarrier that is told when they are complete.
struct Flight {
  llvm::SmallVector<Copy, 1> copies;
  Block *block = nullptr;
  uint32_t barrier = 0; ///< index in the block's barriers
  uint32_t transactions = 0, arrivals = 0;
};

struct Warp {
  Block *block = nullptr;
  uint32_t first = 0;
  uint32_t lanes = 0; ///< that exist
  uint32_t alive = 0; ///< lanes that have not exited
  struct Meeting {
    uint32_t mask, arrived, location;
    WarpOperation operation;
  };
  std::vector<Meeting> meetings;
  /// The aligned barrier that lanes wait at.
  uint32_t atBarrier = 0, barrier = 0, barrierLocation = 0;
};

struct Thread {
  Fiber fiber;
  std::byte *stack = nullptr;
  Machine *machine = nullptr;
  Block *block = nullptr;
  Warp *warp = nullptr;
  uint32_t index = 0, lane = 0;
  /// In clocks: index within the cluster.
  uint32_t actor = 0;
  uint32_t clock = 1;
  Clock seen;
  bool done = false, waitedForGrid = false;
  /// Arrived at the cluster's barrier, and not waited yet.
  bool atCluster = false;
  uint32_t clusterPhase = 0;

  WaitKind waitKind = WaitKind::None;
  uint32_t waitLocation = 0, waitDetail = 0;
  const void *waitObject = nullptr;

  /// Operands and results of an operation of the warp.
  uint32_t operands[12] = {}, results[4] = {};

  std::vector<Copy> openCopies;
  std::vector<std::vector<Copy>> copyGroups;
};

struct NamedBarrier {
  uint32_t expected = 0, arrived = 0;
  bool counted = false;
  std::vector<Thread *> waiting;
  Gathering gathering;
};

struct Mbarrier {
  uint32_t offset = 0;
  bool valid = false;
  uint32_t count = 0, pending = 0;
  int64_t transactions = 0;
  uint32_t phase = 0;
  uint32_t actor = 0;
  uint32_t creator = 0, created = 0;
  Gathering arriving;
  Clock completed;
  ClockJoin join;
  std::vector<Thread *> waiting;
};

struct Block {
  Cluster *cluster = nullptr;
  LaunchState *launch = nullptr;
  uint32_t index = 0, rank = 0;
  std::byte *shared = nullptr;
  uint32_t sharedBytes = 0;
  SharedShadow shadow;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  uint32_t running = 0;
  bool triggered = false, synchronizes = false, finished = false;
  NamedBarrier barriers[namedBarriers];
  std::vector<Mbarrier> mbarriers;
  std::deque<Thread *> ready;
  bool queued = false;
  uint32_t copiesInFlight = 0;
};

struct Cluster {
  LaunchState *launch = nullptr;
  std::vector<std::unique_ptr<Block>> blocks;
  uint32_t actors = 0, threads = 0, running = 0, arrived = 0, phase = 0;
  Gathering arriving;
  Clock completed;
  std::vector<Thread *> waiting;
  ClockJoin join, gridJoin;
  /// All zero, and the one that knows only of the dependency wait.
  Clock zero, gridClock;
  uint32_t gridActor() const { return actors - 1; }
};

struct Memory {
  std::string name;
  std::byte *data;
  uint64_t bytes;
  MemoryKind kind;
  struct Free {
    void operator()(void *p) const { std::free(p); }
  };
  /// Of each byte: launch << 12 | block % 4096 of the last write; 0: the host. None if Constant.
  std::unique_ptr<uint32_t[], Free> writers;
  /// Of each byte of scratch memory: the buffer that it was written through.
  std::unique_ptr<uint16_t[], Free> owners;
};

struct BufferInfo {
  std::string name;
  uint32_t memory;
  std::byte *begin;
  uint64_t bytes;
};

struct LaunchState {
  const Launch *launch = nullptr;
  const Kernel *kernel = nullptr;
  uint32_t index = 0, serial = 0;
  /// What launches before this one wrote is visible without a wait.
  uint32_t floor = 0;
  std::vector<void *> arguments;
  uint32_t started = 0, triggered = 0, finished = 0;
  bool waited = false;
  /// Seconds since the step's start.
  double end = 0;
  std::vector<Thread *> waiting;
  bool complete() const { return finished == launch->grid; }
};

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

  // What follows is called on fibers. A failure is recorded; the caller then leaves for good.
  bool failed() const { return !message.empty(); }
  [[noreturn]] void leave(Thread &thread);
  void fail(const Thread &thread, uint32_t location, const std::string &what);

  enum AccessFlags : uint32_t {
    Write = 1,
    AtomicAccess = 2,
    VolatileAccess = 4,
    InShared = 8,
    InGlobal = 16,
    ReadWrite = 32
  };
  void access(Thread &thread, uint32_t location, const void *address, uint32_t bytes,
              uint32_t alignment, uint32_t flags);
  void barrier(Thread &thread, uint32_t location, uint32_t id, uint32_t count, bool wait);
  /// Whether this thread completes the meeting, and so computes everybody's results.
  bool meet(Thread &thread, uint32_t location, uint32_t mask, WarpOperation operation);
  /// After the results are there: the others go on.
  void part(Thread &thread, uint32_t mask);

  void mbarrierInit(Thread &thread, uint32_t location, void *address, uint32_t count);
  void mbarrierInvalidate(Thread &thread, uint32_t location, void *address);
  uint64_t mbarrierArrive(Thread &thread, uint32_t location, void *address, uint32_t count,
                          uint64_t transactions, bool release);
  void mbarrierExpect(Thread &thread, uint32_t location, void *address, int64_t transactions);
  enum WaitMode : uint32_t { Test, Try, Wait };
  bool mbarrierWait(Thread &thread, uint32_t location, void *address, uint64_t value, bool isState,
                    WaitMode mode);

  void bulkCopy(Thread &thread, uint32_t location, void *destination, const void *source,
                void *barrier, uint32_t bytes);
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
  /// Lets others run.
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
  /// Behind the other threads of its block, or before them.
  void makeReady(Thread &thread, bool next = false);
  void suspend(Thread &thread, WaitKind kind, uint32_t location, const void *object = nullptr,
               uint32_t detail = 0);
  void reportDeadlock(bool polling);

  struct SharedPlace {
    Block *block = nullptr;
    uint32_t offset = 0;
  };
  /// Null if the address is in no shared memory of the cluster; checks the extent.
  SharedPlace findShared(Thread &thread, const void *address);
  Access accessOf(const Thread &thread, uint32_t location, bool atomic = false) const;
  bool checkShared(Thread &thread, uint32_t location, const void *address, uint32_t bytes,
                   uint32_t flags);
  bool report(Thread &thread, uint32_t location, const Block &block, const Conflict &conflict,
              uint32_t bytes, const char *doing);
  bool checkGlobal(Thread &thread, uint32_t location, const void *address, uint64_t bytes,
                   uint32_t flags);
  bool visible(uint32_t serial, const LaunchState &launch, bool waited) const;
  bool waited(const Thread &thread) const;
  LaunchState &launchOf(uint32_t serial) { return launches[serial - firstSerial]; }
  const LaunchState &launchOf(uint32_t serial) const { return launches[serial - firstSerial]; }

  Mbarrier *findBarrier(Thread &thread, uint32_t location, void *address, Block **block,
                        bool ordered = true);
  void release(Thread &thread, Gathering &into);
  void completePhase(Block &block, Mbarrier &barrier);
  void land(size_t index);
  static void perform(const Copy &copy, uint32_t actor, uint32_t clock);
  void completeNamedBarrier(Block &block, uint32_t id);
  void completeClusterBarrier(Cluster &cluster);

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
  StackPool stacks;
  Fiber scheduler;
  const void *schedulerStack = nullptr;
  size_t schedulerStackBytes = 0;
  uint32_t firstSerial = 1, nextSerial = 1;
  uint64_t state = 1, turns = 0, idlePolls = 0;
  bool serialize = false;
  std::chrono::steady_clock::time_point stepStart;
  std::string message;
};

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_MACHINE_H
