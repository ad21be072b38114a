// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the emulated machine consists of: launches, clusters, blocks, warps and threads, the
// barriers that they wait at, the copies under way, and memory.

#ifndef SLUICE_LIB_EMULATOR_STATE_H
#define SLUICE_LIB_EMULATOR_STATE_H

#include "Clock.h"
#include "Fiber.h"
#include "GlobalShadow.h"
#include "SharedShadow.h"
#include "sluice/Emulator/Emulator.h"
#include "sluice/Target/InlinePtx.h"

#include "llvm/ADT/SmallVector.h"

#include <array>
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
/// Bytes of shared memory that a block can have on sm_90: an SM has 228 KB, the system keeps 1 KB.
constexpr uint32_t sharedLimit = 227 * 1024;
/// Blocks of a cooperative launch: what writers of global memory are recorded by.
constexpr uint32_t cooperativeLimit = 4096;

/// An entry point of compiled kernels.
using KernelEntry = void (*)(Thread *thread, void *const *arguments);

struct Kernel {
  std::string name;
  KernelEntry entry = nullptr;
  uint32_t arguments = 0;
  /// Declared by the kernel; 0 if it declares none.
  uint32_t maxThreads = 0, cluster = 0, residentBlocks = 0;
};

/// Why a thread does not run.
enum class WaitKind : uint8_t {
  None,
  Warp,
  Warpgroup,
  Registers,
  Barrier,
  Mbarrier,
  ClusterBarrier,
  Grid,
  Poll,
  Change
};

/// What lanes of a warp perform together: an operation is complete when all lanes of its mask have
/// arrived at one of the same kind.
enum class WarpOperation : uint8_t { Sync, Shuffle, Vote, Redux, Mma, Movmatrix, Ldmatrix };

/// A load by a thread that may be polling, and what it found.
struct Watch {
  const std::byte *address;
  uint32_t bytes;
  uint64_t value;
};

/// An asynchronous copy to shared memory.
struct Copy {
  Block *block = nullptr; ///< whose shared memory is written
  uint32_t offset = 0, bytes = 0;
  const std::byte *source = nullptr;
  uint32_t sourceBytes = 0; ///< the rest is zero
  uint32_t location = 0;
};

/// Copies in flight, and the mbarrier that they complete at.
struct Flight {
  llvm::SmallVector<Copy, 1> copies;
  Block *block = nullptr;
  uint32_t barrier = 0; ///< index in the block's barriers
  uint32_t transactions = 0, arrivals = 0;
  /// Of a store to another block's shared memory (st.async): the bytes, and what the storing thread
  /// knew, which whoever waits for the barrier learns.
  std::array<uint32_t, 4> words = {};
  bool remote = false;
  Clock released;
};

/// Products of a warpgroup, which are computed when one of its threads first waits for them.
struct ProductGroup {
  uint32_t serial = 0, location = 0;
  ptx::WarpgroupProducts shape;
  /// Of the second operand.
  uint32_t offset = 0;
  /// The group whose sums these are added to; 0: none.
  uint32_t addend = 0;
  bool computed = false;
  /// By thread.
  std::vector<uint32_t> operands, sums;
};

/// Four warps of a block.
struct Warpgroup {
  static constexpr uint32_t threads = 4 * warpSize;
  /// Products, or a change of registers, that some threads have not arrived at, the number of those
  /// that have, and the ones that wait for them.
  uint32_t arrived = 0, location = 0;
  std::vector<Thread *> waiting;
  uint32_t serial = 0;
  std::deque<ProductGroup> groups;
  /// Of a thread.
  uint32_t registers = 0;
};

struct Warp {
  Block *block = nullptr;
  uint32_t first = 0;
  uint32_t lanes = 0; ///< mask of the lanes that exist
  uint32_t alive = 0; ///< mask of the lanes that have not exited
  /// An operation that some lanes of its mask have not arrived at.
  struct Pending {
    uint32_t mask, arrived, location;
    WarpOperation operation;
  };
  std::vector<Pending> pending;
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
  /// The thread has arrived at the cluster's barrier and has not waited for it yet.
  bool atCluster = false;
  uint32_t clusterPhase = 0;

  WaitKind waitKind = WaitKind::None;
  uint32_t waitLocation = 0, waitDetail = 0;
  const void *waitObject = nullptr;
  /// The loads of global memory that the thread has polled with since it last did anything else.
  llvm::SmallVector<Watch, 4> watches;

  /// In a cooperative launch: what atomic loads have found released and no fence has acquired yet,
  /// and what the last releasing fence releases with every atomic store after it.
  Clock loaded, fenced;

  /// The latest group of products that the thread has started, and has waited for.
  uint32_t startedProducts = 0, endedProducts = 0;

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
  /// Other blocks take part in the phase under way, or have taken part in the one before.
  bool remoteArriving = false, remoteCompleted = false;
  Gathering arriving;
  Clock completed;
  ClockJoin join;
  std::vector<Thread *> waiting;
};

struct Block {
  Cluster *cluster = nullptr;
  LaunchState *launch = nullptr;
  uint32_t index = 0, rank = 0;
  /// Of a cooperative launch: counts what the block has released to other blocks.
  uint32_t epoch = 1;
  std::byte *shared = nullptr;
  uint32_t sharedBytes = 0;
  SharedShadow shadow;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  /// Registers that warpgroups have given up, of a thread of each, and those that wait for them.
  uint32_t spareRegisters = 0;
  std::vector<Thread *> wantRegisters;
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
  uint32_t actors = 0, threads = 0, barriers = 0, running = 0, arrived = 0, phase = 0;
  Gathering arriving;
  Clock completed;
  std::vector<Thread *> waiting;
  ClockJoin join, gridJoin;
  /// The clock of a thread that starts, and the one after a dependency wait and nothing else.
  Clock zero, gridClock;
  /// Actors are the threads, the mbarriers, the launch before, and in a cooperative launch the
  /// blocks of the grid.
  uint32_t gridActor() const { return threads + barriers; }
  uint32_t blockActor(uint32_t block) const { return gridActor() + 1 + block; }
};

struct Memory {
  std::string name;
  std::byte *data;
  uint64_t bytes;
  MemoryKind kind;
  struct Free {
    void operator()(void *p) const { std::free(p); }
  };
  /// By byte, who wrote it last: launch << 12 | block % 4096, or 0 for the host. Constant memory
  /// has no such table.
  std::unique_ptr<uint32_t[], Free> writers;
  /// By byte, the buffer that it was written through. Only scratch memory has this table.
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
  /// Of a cooperative launch.
  std::unique_ptr<GlobalShadow> shadow;
  bool complete() const { return finished == launch->grid; }
};

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_STATE_H
