// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What generators of GPU kernels need beyond ComputeBuilder: barriers, asynchronous copies, tensor
// cores.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_DEVICEBUILDER_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_DEVICEBUILDER_H

#include "../FusedKernels/ComputeBuilder.h"

#include "sluice/Target/InlinePtx.h"

#include "mlir/Dialect/LLVMIR/NVVMDialect.h"

namespace sluice::device {

using kernels::bytesOf;

/// Threads of a warp.
inline constexpr int64_t kWarp = 32;

/// Builds the body of one kernel. Indices are i32 (addresses count bytes).
class DeviceBuilder : public kernels::ComputeBuilder {
public:
  /// What is generated, for messages.
  static constexpr llvm::StringLiteral kCode = "GPU code";

  DeviceBuilder(mlir::OpBuilder builder, mlir::Location loc, int arch, bool racecheck = false)
      : ComputeBuilder(builder, loc, builder.getI32Type()), arch(arch), racecheck(racecheck) {}

  /// Compute capability, 80 or more.
  const int arch;
  /// compute-sanitizer's racecheck does not see that `syncWarp` orders what a warp's lanes read
  /// before its first lane's arrival. For it every lane arrives.
  const bool racecheck;

  /// Bulk copies, dependent launch and clusters.
  bool hasBulkCopies() const { return arch >= 90; }

  using ComputeBuilder::number;
  Value number(double value) { return number(f32(), value); }

  // Arithmetic.
  Value maxF(Value x, Value y) { return mlir::LLVM::MaxNumOp::create(b, loc, x, y); }
  /// 2^x by ex2.approx (2 ulp); 0 for minus infinity.
  Value exp2(Value x) { return mlir::LLVM::Exp2Op::create(b, loc, x); }
  Value exp(Value x) { return exp2(mulF(x, number(1.44269504088896341))); }
  Value erf(Value x) { return kernels::erf(*this, x); }
  /// Converts f16, bf16 or f32 to f32, and back, to nearest even.
  Value widen(Value x);
  Value narrow(Value x, mlir::Type element);
  /// Rounds two f32 to f16 or bf16 and packs them in an i32, the first in the low half.
  Value packPair(Value low, Value high, mlir::Type element);
  /// Four bytes of E4M3 as two pairs of f16, exactly, divided by e4m3Divisor.
  Values decodeE4M3(Value word, bool mayBeNan = true);
  static constexpr double e4m3Divisor = 256;

  // Vectors, which only memory accesses and tensor cores use.
  Value lane(Value vector, int64_t lane);
  Values lanes(Value vector);
  Value vectorOf(mlir::ValueRange lanes);

  // Memory. Pointers are of space 1 (global), 3 (shared) or 7 (shared, of the cluster).
  /// Loads what an earlier kernel may have written while this one was running already, so the load
  /// must not use a cache that nothing invalidates.
  Value loadFresh(mlir::Type type, Value pointer, unsigned alignment) {
    return mlir::LLVM::LoadOp::create(b, loc, type, pointer, alignment, /*isVolatile=*/true);
  }

  // Atomic accesses of global memory, in the scope of the device.
  /// An i64, relaxed: what other blocks of this kernel change meanwhile.
  Value loadRelaxed(Value pointer);
  void storeRelaxed(Value value, Value pointer);
  /// Adds to an i64 without waiting for what it was.
  void addRelaxed(Value pointer, Value increment);
  void fenceDevice(mlir::LLVM::AtomicOrdering ordering);

  // Threads.
  Value thread() { return mlir::NVVM::ThreadIdXOp::create(b, loc, i32()); }
  Value block() { return mlir::NVVM::BlockIdXOp::create(b, loc, i32()); }
  /// Barrier 0, for all threads of the block.
  void barrier() { mlir::NVVM::Barrier0Op::create(b, loc); }
  /// Barrier `id`, for `threads` threads of the block.
  void barrier(int64_t id, int64_t threads);
  void syncWarp() { mlir::NVVM::SyncWarpOp::create(b, loc, constI32(-1)); }
  Value shuffleXor(Value x, int64_t mask);
  /// The greatest i32 of the warp, signed.
  Value greatestOfWarp(Value x);
  /// The sum of the warp's floats, the same in all lanes.
  Value sumOfWarp(Value x);
  /// What lane `source` of the warp has.
  Value shuffleFrom(Value x, Value source);
  /// Words of int4 weights as operands of bytes, 16 times the elements: those in the high nibbles,
  /// and those in the low ones.
  struct Nibbles {
    Values high, low;
  };
  Nibbles nibblesAtTop(llvm::ArrayRef<Value> words);
  /// Bytes of two words, numbered 0 to 3 (`low`) and 4 to 7: nibble i of the selector is the number
  /// of byte i; plus 8, the byte is all ones if that one is negative, else 0.
  Value permute(Value low, Value high, Value selector);

  // Clusters. The barrier's arrive and wait are separate, so that there can be work between them.
  void clusterArrive() { mlir::NVVM::ClusterArriveOp::create(b, loc, b.getUnitAttr()); }
  void clusterWait() { mlir::NVVM::ClusterWaitOp::create(b, loc, b.getUnitAttr()); }
  /// The address in the shared memory of block `rank` of the cluster that corresponds to `place` in
  /// this block's.
  Value ofBlock(Value place, Value rank);
  Value rankInCluster() { return mlir::NVVM::BlockInClusterIdXOp::create(b, loc, i32()); }
  /// Stores 1, 2 or 4 words, i32, to where `to` is in the shared memory of block `rank` of the
  /// cluster; their bytes complete at the barrier that lies there like `barrier` here.
  void sendToBlock(Value to, Value barrier, Value rank, llvm::ArrayRef<Value> words);

  // Barriers in shared memory.
  void initBarrier(Value barrier, int64_t count) {
    mlir::NVVM::MBarrierInitOp::create(b, loc, barrier, constI32(count), Value());
  }
  /// Makes initialized barriers visible to asynchronous copies (and to the cluster).
  void fenceBarrierInit() {
    if (hasBulkCopies())
      mlir::NVVM::FenceMbarrierInitOp::create(b, loc);
  }
  /// Arrives `count` times; once, if it is not given.
  void arrive(Value barrier, Value count = {});
  /// A barrier at which `warps` warps arrive, and a warp's arrival there, after all that its lanes
  /// have done before. If there is a `condition`, only where it holds; it is the warp's.
  void initWarpBarrier(Value barrier, int64_t warps) {
    initBarrier(barrier, racecheck ? warps * kWarp : warps);
  }
  void arriveWarp(Value barrier, Value lane, Value condition = {});
  /// Returns when the phase of that parity has completed. A fresh barrier is in phase 0, so that
  /// waiting for parity 1 returns at once.
  void wait(Value barrier, Value parity);
  /// Since sm_90: whether that phase has completed.
  Value hasCompleted(Value barrier, Value parity) {
    return mlir::NVVM::MBarrierTestWaitOp::create(b, loc, i1(), barrier, parity);
  }
  /// Waits about so long.
  void pause(int64_t nanoseconds) {
    mlir::NVVM::NanosleepOp::create(b, loc, constI32(nanoseconds));
  }
  /// The same, for what other blocks of the cluster have sent.
  void waitOfCluster(Value barrier, Value parity);

  // Asynchronous copies.
  /// Since sm_90, by one thread: arrives at `barrier`, whose phase then completes only after
  /// `bytes` more have been copied.
  void expectBytes(Value barrier, Value bytes);
  /// Since sm_90, by one thread: copies `bytes` (a multiple of 16) to shared memory and reports
  /// them to `barrier`.
  void bulkCopy(Value to, Value from, Value bytes, Value barrier);
  /// Orders ordinary accesses of global memory before asynchronous copies that follow.
  void fenceAsync();
  /// The same of the block's shared memory.
  void fenceAsyncShared();
  /// Since sm_90, by one thread: has `bytes` (a multiple of 16) brought into the L2 cache.
  void bulkPrefetch(Value from, Value bytes) {
    mlir::NVVM::CpAsyncBulkPrefetchOp::create(b, loc, from, bytes, Value());
  }
  /// Before sm_90: 16 bytes by each thread; the arrival counts when the thread's copies have ended.
  void copy16(Value to, Value from);
  /// Before sm_90: the thread arrives at `barrier` when its copies have completed.
  void arriveAfterCopies(Value barrier);

  // Dependent launch. Emits nothing before sm_90, where kernels never overlap.
  /// Waits until the previous kernel has ended and what it wrote is visible.
  void waitForPredecessor();
  void launchDependents();

  /// Loads four matrices of 8 rows of 16 bytes from shared memory: lane 8m + r names row r of
  /// matrix m, lane l gets word l % 4 of row l / 4 of each (ldmatrix).
  Values loadMatrices(Value row);

  // Tensor cores. Operands are i32 registers; accumulators are four i32 or f32.
  /// `unsignedA`: the first operand's bytes are unsigned.
  Values mmaInt8(const Values &accumulators, llvm::ArrayRef<Value> a, llvm::ArrayRef<Value> b,
                 bool unsignedA = false);
  Values mmaFloat(mlir::Type element, const Values &accumulators, llvm::ArrayRef<Value> a,
                  llvm::ArrayRef<Value> b);

  // Warpgroups, of sm_90a.
  /// Starts products of a warpgroup, a group of their own. What it gives are the sums only after
  /// `waitForProducts` and `takeSums`. `sums` are those of an earlier group, to which these are
  /// added unless `adds` is 0; without `adds` values that are not needed any more, or none.
  Values startProducts(ptx::WarpgroupProducts products, llvm::ArrayRef<Value> operands,
                       Value descriptor, Value adds = {}, mlir::ValueRange sums = {});
  /// Waits until at most `pending` groups are under way.
  void waitForProducts(int64_t pending) {
    mlir::NVVM::WgmmaWaitGroupSyncOp::create(b, loc, pending);
  }
  Values takeSums(mlir::ValueRange sums);
  /// Of operands at `address` in shared memory.
  Value operandDescriptor(Value address);
  /// Changes how many registers the warpgroup's threads have.
  void setRegisters(int64_t count, bool more) {
    mlir::NVVM::SetMaxRegisterOp::create(b, loc, count,
                                         more ? mlir::NVVM::SetMaxRegisterAction::increase
                                              : mlir::NVVM::SetMaxRegisterAction::decrease);
  }

  // Control flow.
  /// Emits a loop whose `body` runs at least once and returns {whether it runs again, the next
  /// values}.
  Values whileLoop(mlir::ValueRange carried,
                   llvm::function_ref<std::pair<Value, Values>(mlir::ValueRange carried)> body);
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_DEVICEBUILDER_H
