// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Semantics are those of the PTX ISA, version 8.3; fragment layouts are in its chapter "Warp-level
// matrix instructions".

#include "Operations.h"

#include "Machine.h"

#include "sluice-support/Float16.h"

#include "llvm/Support/ErrorHandling.h"

#include <cmath>
#include <cstring>

using namespace sluice::emulator;

namespace {

/// Leaves the fiber for good if the operation has failed.
void finish(Thread *thread) {
  if (thread->machine->failed())
    thread->machine->leave();
}

Thread &lane(Thread *thread, uint32_t lane) {
  return thread->block->threads[thread->warp->first + lane];
}

template <typename Visit> void forLanes(uint32_t mask, Visit visit) {
  for (; mask; mask &= mask - 1)
    visit(uint32_t(std::countr_zero(mask)));
}

uint32_t readRegister(Thread *thread, uint32_t which) {
  const Block &block = *thread->block;
  const Launch &launch = *block.launch->launch;
  switch (Register(which)) {
  case Register::ThreadIndex:
    return thread->index;
  case Register::BlockThreads:
    return launch.block;
  case Register::BlockIndex:
    return block.index;
  case Register::GridBlocks:
    return launch.grid;
  case Register::Lane:
    return thread->lane;
  case Register::WarpIndex:
    return thread->index / warpSize;
  case Register::Warps:
    return block.warps.size();
  case Register::ClusterIndex:
    return block.index / launch.cluster;
  case Register::Clusters:
    return launch.grid / launch.cluster;
  case Register::ClusterRank:
    return block.rank;
  case Register::ClusterBlocks:
    return launch.cluster;
  case Register::SharedBytes:
    return launch.shared;
  case Register::LanesEqual:
    return 1u << thread->lane;
  case Register::LanesLess:
    return (1u << thread->lane) - 1;
  case Register::LanesLessEqual:
    return (2u << thread->lane) - 1;
  case Register::LanesGreater:
    return ~((2u << thread->lane) - 1);
  case Register::LanesGreaterEqual:
    return ~((1u << thread->lane) - 1);
  }
  llvm_unreachable("all registers are listed");
}

uint64_t readClock(Thread *thread, uint32_t location) { return thread->machine->ticks(); }

void *sharedMemory(Thread *thread) { return thread->block->shared; }

void checkAccess(Thread *thread, uint32_t location, void *address, uint32_t bytes,
                 uint32_t alignment, uint32_t flags) {
  thread->machine->access(*thread, location, address, bytes, alignment, flags);
  finish(thread);
}

void trap(Thread *thread, uint32_t location) {
  thread->machine->fail(*thread, location, "a place that cannot be reached was reached");
  thread->machine->leave();
}

void barrier(Thread *thread, uint32_t location, uint32_t id, uint32_t count, uint32_t wait) {
  thread->machine->barrier(*thread, location, id, count, wait);
  finish(thread);
}

void warpSync(Thread *thread, uint32_t location, uint32_t mask) {
  if (thread->machine->arriveWarp(*thread, location, mask, WarpOperation::Sync))
    thread->machine->completeWarp(*thread, mask);
  finish(thread);
}

/// Result in the low half; whether the source lane was in range in the high half.
uint64_t shuffle(Thread *thread, uint32_t location, uint32_t mask, uint32_t value, uint32_t offset,
                 uint32_t clamp, uint32_t kind) {
  thread->operands[0] = value, thread->operands[1] = offset, thread->operands[2] = clamp;
  Machine &machine = *thread->machine;
  if (machine.arriveWarp(*thread, location, mask, WarpOperation::Shuffle)) {
    forLanes(mask, [&](uint32_t index) {
      Thread &to = lane(thread, index);
      uint32_t b = to.operands[1] & 31, c = to.operands[2] & 31, m = to.operands[2] >> 8 & 31;
      uint32_t last = (index & m) | (c & ~m & 31), first = index & m;
      int source;
      bool valid;
      switch (kind) {
      case 0: // butterfly
        source = index ^ b, valid = source <= int(last);
        break;
      case 1: // up
        source = int(index) - int(b), valid = source >= int(last);
        break;
      case 2: // down
        source = index + b, valid = source <= int(last);
        break;
      default: // index
        source = first | (b & ~m & 31), valid = source <= int(last);
        break;
      }
      if (!valid)
        source = index;
      if (!(mask >> source & 1))
        machine.fail(to, location,
                     "divergent shuffle: reads lane " + std::to_string(source) +
                         ", which does not take part");
      to.results[0] = lane(thread, source).operands[0];
      to.results[1] = valid;
    });
    machine.completeWarp(*thread, mask);
  }
  finish(thread);
  return uint64_t(thread->results[1]) << 32 | thread->results[0];
}

uint32_t vote(Thread *thread, uint32_t location, uint32_t mask, uint32_t predicate, uint32_t kind) {
  thread->operands[0] = predicate & 1;
  if (thread->machine->arriveWarp(*thread, location, mask, WarpOperation::Vote)) {
    uint32_t ballot = 0;
    forLanes(mask, [&](uint32_t index) { ballot |= lane(thread, index).operands[0] << index; });
    uint32_t result = kind == 0   ? ballot != 0
                      : kind == 1 ? ballot == mask
                      : kind == 2 ? ballot
                                  : ballot == mask || ballot == 0;
    forLanes(mask, [&](uint32_t index) { lane(thread, index).results[0] = result; });
    thread->machine->completeWarp(*thread, mask);
  }
  finish(thread);
  return thread->results[0];
}

uint32_t elect(Thread *thread, uint32_t location, uint32_t mask) {
  if (thread->machine->arriveWarp(*thread, location, mask, WarpOperation::Vote)) {
    forLanes(mask, [&](uint32_t index) {
      lane(thread, index).results[0] = index == uint32_t(std::countr_zero(mask));
    });
    thread->machine->completeWarp(*thread, mask);
  }
  finish(thread);
  return thread->results[0];
}

uint32_t redux(Thread *thread, uint32_t location, uint32_t mask, uint32_t value, uint32_t kind) {
  thread->operands[0] = value;
  if (thread->machine->arriveWarp(*thread, location, mask, WarpOperation::Redux)) {
    uint32_t result = lane(thread, std::countr_zero(mask)).operands[0];
    forLanes(mask & (mask - 1), [&](uint32_t index) {
      uint32_t other = lane(thread, index).operands[0];
      switch (kind) { // as NVVM::ReduxKind
      case 1:
        result += other;
        break;
      case 2:
        result &= other;
        break;
      case 3:
        result = std::max(int32_t(result), int32_t(other));
        break;
      case 4:
        result = std::min(int32_t(result), int32_t(other));
        break;
      case 5:
        result |= other;
        break;
      case 6:
        result = std::max(result, other);
        break;
      case 7:
        result = std::min(result, other);
        break;
      default:
        result ^= other;
        break;
      }
    });
    forLanes(mask, [&](uint32_t index) { lane(thread, index).results[0] = result; });
    thread->machine->completeWarp(*thread, mask);
  }
  finish(thread);
  return thread->results[0];
}

/// Rows of A are lane/4 and 8 more; a register holds four bytes or two halves of consecutive
/// columns; odd registers are the lower rows, the second pair is half of K further.
template <typename A, typename Sum, uint32_t perRegister, uint32_t registersA, typename Unpack,
          typename UnpackB = Unpack>
void product(Thread *thread, Unpack unpack, UnpackB unpackB) {
  constexpr uint32_t half = 4 * perRegister, depth = half * registersA / 2;
  A a[16][depth], b[8][depth];
  for (uint32_t index = 0; index < warpSize; ++index) {
    const uint32_t *in = lane(thread, index).operands;
    uint32_t group = index / 4, column = index % 4 * perRegister;
    for (uint32_t r = 0; r < registersA; ++r)
      for (uint32_t i = 0; i < perRegister; ++i)
        a[group + r % 2 * 8][r / 2 * half + column + i] = unpack(in[r], i);
    for (uint32_t r = 0; r < registersA / 2; ++r)
      for (uint32_t i = 0; i < perRegister; ++i)
        b[group][r * half + column + i] = unpackB(in[registersA + r], i);
  }
  for (uint32_t index = 0; index < warpSize; ++index) {
    Thread &to = lane(thread, index);
    const uint32_t *c = to.operands + registersA + registersA / 2;
    for (uint32_t i = 0; i < 4; ++i) {
      const A *row = a[index / 4 + i / 2 * 8], *column = b[index % 4 * 2 + i % 2];
      if constexpr (std::is_same_v<Sum, int32_t>) {
        uint32_t sum = c[i];
        for (uint32_t k = 0; k < depth; ++k)
          sum += uint32_t(int32_t(row[k]) * int32_t(column[k]));
        to.results[i] = sum;
      } else {
        // Products are exact; the device keeps at least float's bits of the sum.
        double sum = std::bit_cast<float>(c[i]);
        for (uint32_t k = 0; k < depth; ++k)
          sum += double(row[k]) * double(column[k]);
        to.results[i] = std::bit_cast<uint32_t>(float(sum));
      }
    }
  }
}

template <typename A, typename Sum, uint32_t perRegister, uint32_t registersA, typename Unpack>
void product(Thread *thread, Unpack unpack) {
  product<A, Sum, perRegister, registersA>(thread, unpack, unpack);
}

void mma(Thread *thread, uint32_t location, uint32_t kind, const uint32_t *operands,
         uint32_t *results) {
  bool small = MmaKind(kind) == MmaKind::F16K8 || MmaKind(kind) == MmaKind::Bf16K8 ||
               MmaKind(kind) == MmaKind::S8K16;
  std::memcpy(thread->operands, operands, (small ? 7 : 10) * sizeof(uint32_t));
  if (thread->machine->arriveWarp(*thread, location, ~0u, WarpOperation::Mma)) {
    auto s8 = [](uint32_t r, uint32_t i) { return int8_t(r >> 8 * i); };
    auto u8 = [](uint32_t r, uint32_t i) { return uint8_t(r >> 8 * i); };
    auto f16 = [](uint32_t r, uint32_t i) { return sluice::support::f16ToFloat(r >> 16 * i); };
    auto bf16 = [](uint32_t r, uint32_t i) { return sluice::support::bf16ToFloat(r >> 16 * i); };
    switch (MmaKind(kind)) {
    case MmaKind::S8K32:
      product<int8_t, int32_t, 4, 4>(thread, s8);
      break;
    case MmaKind::U8K32:
      product<uint8_t, int32_t, 4, 4>(thread, u8);
      break;
    case MmaKind::U8S8K32:
      product<int16_t, int32_t, 4, 4>(thread, u8, s8);
      break;
    case MmaKind::S8K16:
      product<int8_t, int32_t, 4, 2>(thread, s8);
      break;
    case MmaKind::F16K16:
      product<float, float, 2, 4>(thread, f16);
      break;
    case MmaKind::Bf16K16:
      product<float, float, 2, 4>(thread, bf16);
      break;
    case MmaKind::F16K8:
      product<float, float, 2, 2>(thread, f16);
      break;
    case MmaKind::Bf16K8:
      product<float, float, 2, 2>(thread, bf16);
      break;
    }
    thread->machine->completeWarp(*thread, ~0u);
  }
  finish(thread);
  std::memcpy(results, thread->results, sizeof(thread->results));
}

/// movmatrix.sync.aligned.m8n8.trans.b16: lane l holds row l/4, columns 2(l%4) and the next.
uint32_t movmatrix(Thread *thread, uint32_t location, uint32_t value) {
  thread->operands[0] = value;
  if (thread->machine->arriveWarp(*thread, location, ~0u, WarpOperation::Movmatrix)) {
    auto element = [&](uint32_t row, uint32_t column) {
      return lane(thread, row * 4 + column / 2).operands[0] >> column % 2 * 16 & 0xffff;
    };
    for (uint32_t index = 0; index < warpSize; ++index) {
      uint32_t row = index / 4, column = index % 4 * 2;
      lane(thread, index).results[0] = element(column, row) | element(column + 1, row) << 16;
    }
    thread->machine->completeWarp(*thread, ~0u);
  }
  finish(thread);
  return thread->results[0];
}

/// ldmatrix.sync.aligned.m8n8.x4.shared.b16: lane 8m + r names row r of matrix m; lane l gets
/// columns 2(l%4) and the next of row l/4 of each matrix. The lane that names a row reads it.
void ldmatrix(Thread *thread, uint32_t location, void *row, uint32_t *results) {
  thread->machine->access(*thread, location, row, 16, 16, Machine::InShared);
  finish(thread);
  // Pointers to shared memory have 32 bits.
  thread->operands[0] = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row));
  if (thread->machine->arriveWarp(*thread, location, ~0u, WarpOperation::Ldmatrix)) {
    for (uint32_t index = 0; index < warpSize; ++index)
      for (uint32_t matrix = 0; matrix < 4; ++matrix) {
        uintptr_t from = lane(thread, 8 * matrix + index / 4).operands[0];
        lane(thread, index).results[matrix] = reinterpret_cast<uint32_t *>(from)[index % 4];
      }
    thread->machine->completeWarp(*thread, ~0u);
  }
  finish(thread);
  std::memcpy(results, thread->results, sizeof(thread->results));
}

void startProducts(Thread *thread, uint32_t location, uint32_t kind, uint32_t columns,
                   uint32_t products, uint32_t accumulates, const uint32_t *operands,
                   uint32_t *sums) {
  sluice::ptx::WarpgroupProducts shape{sluice::ptx::WarpgroupProducts::Kind(kind), columns,
                                       products, accumulates != 0};
  thread->machine->startProducts(*thread, location, shape, operands, sums);
  finish(thread);
}

void waitForProducts(Thread *thread, uint32_t location, uint32_t pending) {
  thread->machine->waitForProducts(*thread, location, pending);
  finish(thread);
}

void takeSums(Thread *thread, uint32_t location, uint32_t count, uint32_t *sums) {
  thread->machine->takeSums(*thread, location, count, sums);
  finish(thread);
}

void setRegisters(Thread *thread, uint32_t location, uint32_t count, uint32_t more) {
  thread->machine->setRegisters(*thread, location, count, more);
  finish(thread);
}

void mbarrierInit(Thread *thread, uint32_t location, void *address, uint32_t count) {
  thread->machine->mbarrierInit(*thread, location, address, count);
  finish(thread);
}

void mbarrierInvalidate(Thread *thread, uint32_t location, void *address) {
  thread->machine->mbarrierInvalidate(*thread, location, address);
  finish(thread);
}

uint64_t mbarrierArrive(Thread *thread, uint32_t location, void *address, uint32_t count,
                        uint32_t transactions, uint32_t release) {
  uint64_t phase =
      thread->machine->mbarrierArrive(*thread, location, address, count, transactions, release);
  finish(thread);
  return phase;
}

void mbarrierExpect(Thread *thread, uint32_t location, void *address, int32_t transactions) {
  thread->machine->mbarrierExpect(*thread, location, address, transactions);
  finish(thread);
}

uint32_t mbarrierWait(Thread *thread, uint32_t location, void *address, uint64_t value,
                      uint32_t isState, uint32_t mode, uint32_t clusterScope) {
  bool done = thread->machine->mbarrierWait(*thread, location, address, value, isState,
                                            Machine::WaitMode(mode), clusterScope);
  finish(thread);
  return done;
}

void bulkCopy(Thread *thread, uint32_t location, void *destination, void *source, void *barrier,
              uint32_t bytes) {
  thread->machine->bulkCopy(*thread, location, destination, source, barrier, bytes);
  finish(thread);
}

void remoteStore(Thread *thread, uint32_t location, void *destination, void *barrier,
                 const uint32_t *words, uint32_t count) {
  thread->machine->remoteStore(*thread, location, destination, barrier, words, count);
  finish(thread);
}

void fence(Thread *thread, uint32_t location, uint32_t flags) {
  thread->machine->fence(*thread, flags & Machine::Acquire, flags & Machine::Release);
}

void bulkPrefetch(Thread *thread, uint32_t location, void *source, uint32_t bytes) {
  thread->machine->bulkPrefetch(*thread, location, source, bytes);
  finish(thread);
}

void asyncCopy(Thread *thread, uint32_t location, void *destination, void *source, uint32_t bytes,
               uint32_t sourceBytes) {
  thread->machine->asyncCopy(*thread, location, destination, source, bytes, sourceBytes);
  finish(thread);
}

void asyncCommit(Thread *thread, uint32_t location) { thread->machine->asyncCommit(*thread); }

void asyncWait(Thread *thread, uint32_t location, uint32_t groups) {
  thread->machine->asyncWait(*thread, groups);
}

void asyncArrive(Thread *thread, uint32_t location, void *barrier, uint32_t increment) {
  thread->machine->asyncArrive(*thread, location, barrier, increment);
  finish(thread);
}

void gridWait(Thread *thread, uint32_t location) {
  thread->machine->gridWait(*thread, location);
  finish(thread);
}

void gridTrigger(Thread *thread, uint32_t location) { thread->machine->gridTrigger(*thread); }

void clusterArrive(Thread *thread, uint32_t location, uint32_t release) {
  thread->machine->clusterArrive(*thread, location, release);
  finish(thread);
}

void clusterWait(Thread *thread, uint32_t location) {
  thread->machine->clusterWait(*thread, location);
  finish(thread);
}

void *mapToRank(Thread *thread, uint32_t location, void *address, uint32_t rank) {
  void *mapped = thread->machine->mapToRank(*thread, location, address, rank);
  finish(thread);
  return mapped;
}

void sleepThread(Thread *thread, uint32_t location) { thread->machine->poll(*thread, location); }

/// prmt.b32 in its default mode: each nibble of the selector chooses a byte of {b, a}.
uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    uint32_t nibble = selector >> 4 * i & 15;
    uint8_t byte = bytes >> 8 * (nibble & 7);
    if (nibble & 8)
      byte = byte & 0x80 ? 0xff : 0;
    result |= uint32_t(byte) << 8 * i;
  }
  return result;
}

} // namespace

llvm::ArrayRef<HostFunction> sluice::emulator::hostFunctions() {
  static const HostFunction table[] = {
#define SLUICE_OPERATION(NAME, FUNCTION) {"sluice_emu_" NAME, reinterpret_cast<void *>(FUNCTION)}
      SLUICE_OPERATION("register", readRegister),
      SLUICE_OPERATION("clock", readClock),
      SLUICE_OPERATION("shared", sharedMemory),
      SLUICE_OPERATION("access", checkAccess),
      SLUICE_OPERATION("trap", trap),
      SLUICE_OPERATION("barrier", barrier),
      SLUICE_OPERATION("warp_sync", warpSync),
      SLUICE_OPERATION("shuffle", shuffle),
      SLUICE_OPERATION("vote", vote),
      SLUICE_OPERATION("elect", elect),
      SLUICE_OPERATION("redux", redux),
      SLUICE_OPERATION("mma", mma),
      SLUICE_OPERATION("movmatrix", movmatrix),
      SLUICE_OPERATION("ldmatrix", ldmatrix),
      SLUICE_OPERATION("start_products", startProducts),
      SLUICE_OPERATION("wait_products", waitForProducts),
      SLUICE_OPERATION("take_sums", takeSums),
      SLUICE_OPERATION("set_registers", setRegisters),
      SLUICE_OPERATION("mbarrier_init", mbarrierInit),
      SLUICE_OPERATION("mbarrier_invalidate", mbarrierInvalidate),
      SLUICE_OPERATION("mbarrier_arrive", mbarrierArrive),
      SLUICE_OPERATION("mbarrier_expect", mbarrierExpect),
      SLUICE_OPERATION("mbarrier_wait", mbarrierWait),
      SLUICE_OPERATION("bulk_copy", bulkCopy),
      SLUICE_OPERATION("remote_store", remoteStore),
      SLUICE_OPERATION("fence", fence),
      SLUICE_OPERATION("bulk_prefetch", bulkPrefetch),
      SLUICE_OPERATION("async_copy", asyncCopy),
      SLUICE_OPERATION("async_commit", asyncCommit),
      SLUICE_OPERATION("async_wait", asyncWait),
      SLUICE_OPERATION("async_arrive", asyncArrive),
      SLUICE_OPERATION("grid_wait", gridWait),
      SLUICE_OPERATION("grid_trigger", gridTrigger),
      SLUICE_OPERATION("cluster_arrive", clusterArrive),
      SLUICE_OPERATION("cluster_wait", clusterWait),
      SLUICE_OPERATION("map_to_rank", mapToRank),
      SLUICE_OPERATION("sleep", sleepThread),
      SLUICE_OPERATION("permute", permute),
#undef SLUICE_OPERATION
  };
  return table;
}
