// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The vocabulary that the generators of GPU kernels share: memory spaces, barriers, asynchronous
// copies, tensor cores, arithmetic on scalars, loops.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_DEVICEBUILDER_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_DEVICEBUILDER_H

#include "sluice/Conversion/Passes.h"

#include "mlir/Dialect/LLVMIR/NVVMDialect.h"

namespace sluice::device {

/// Threads of a warp.
inline constexpr int64_t kWarp = 32;

/// Builds the body of one kernel. Integers are i32 unless said otherwise (addresses count bytes);
/// floats of arithmetic are f32.
class DeviceBuilder {
public:
  using Value = mlir::Value;
  using Values = llvm::SmallVector<Value>;

  DeviceBuilder(mlir::OpBuilder builder, mlir::Location loc, int arch)
      : b(builder), loc(loc), arch(arch) {}

  mlir::OpBuilder b;
  const mlir::Location loc;
  /// Compute capability, 80 or more.
  const int arch;

  /// Bulk copies, dependent launch and clusters.
  bool hasBulkCopies() const { return arch >= 90; }

  // Types.
  mlir::Type i1() { return b.getI1Type(); }
  mlir::Type i8() { return b.getI8Type(); }
  mlir::Type i16() { return b.getI16Type(); }
  mlir::Type i32() { return b.getI32Type(); }
  mlir::Type i64() { return b.getI64Type(); }
  mlir::Type f16() { return b.getF16Type(); }
  mlir::Type f32() { return b.getF32Type(); }
  mlir::VectorType vec(int64_t lanes, mlir::Type element) {
    return mlir::VectorType::get({lanes}, element);
  }

  // Constants.
  Value integer(mlir::Type type, int64_t value) {
    return mlir::arith::ConstantOp::create(b, loc, b.getIntegerAttr(type, value));
  }
  Value constI32(int64_t value) { return integer(i32(), value); }
  Value number(double value) {
    return mlir::arith::ConstantOp::create(b, loc, b.getF32FloatAttr(value));
  }

  // Arithmetic.
  Value add(Value x, Value y) { return b.createOrFold<mlir::arith::AddIOp>(loc, x, y); }
  Value sub(Value x, Value y) { return b.createOrFold<mlir::arith::SubIOp>(loc, x, y); }
  Value mul(Value x, Value y) { return b.createOrFold<mlir::arith::MulIOp>(loc, x, y); }
  Value bitAnd(Value x, Value y) { return b.createOrFold<mlir::arith::AndIOp>(loc, x, y); }
  Value bitOr(Value x, Value y) { return b.createOrFold<mlir::arith::OrIOp>(loc, x, y); }
  Value bitXor(Value x, Value y) { return b.createOrFold<mlir::arith::XOrIOp>(loc, x, y); }
  Value add(Value x, int64_t y) { return add(x, integer(x.getType(), y)); }
  Value sub(Value x, int64_t y) { return sub(x, integer(x.getType(), y)); }
  Value mul(Value x, int64_t y) { return mul(x, integer(x.getType(), y)); }
  Value bitAnd(Value x, int64_t y) { return bitAnd(x, integer(x.getType(), y)); }
  Value bitXor(Value x, int64_t y) { return bitXor(x, integer(x.getType(), y)); }
  /// Unsigned.
  Value div(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::DivUIOp>(loc, x, integer(x.getType(), y));
  }
  Value rem(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::RemUIOp>(loc, x, integer(x.getType(), y));
  }
  Value shl(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::ShLIOp>(loc, x, integer(x.getType(), y));
  }
  Value shr(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::ShRUIOp>(loc, x, integer(x.getType(), y));
  }
  Value min(Value x, Value y) { return mlir::LLVM::SMinOp::create(b, loc, x, y); }
  Value max(Value x, Value y) { return mlir::LLVM::SMaxOp::create(b, loc, x, y); }
  Value less(Value x, Value y) {
    return mlir::arith::CmpIOp::create(b, loc, mlir::arith::CmpIPredicate::slt, x, y);
  }
  Value equal(Value x, Value y) {
    return mlir::arith::CmpIOp::create(b, loc, mlir::arith::CmpIPredicate::eq, x, y);
  }
  Value select(Value condition, Value x, Value y) {
    return mlir::arith::SelectOp::create(b, loc, condition, x, y);
  }
  Value extend(Value x, mlir::Type type) { return mlir::arith::ExtSIOp::create(b, loc, type, x); }
  Value extendUnsigned(Value x, mlir::Type type) {
    return mlir::arith::ExtUIOp::create(b, loc, type, x);
  }
  Value truncate(Value x, mlir::Type type) {
    return mlir::arith::TruncIOp::create(b, loc, type, x);
  }
  Value bitcast(Value x, mlir::Type type) { return mlir::LLVM::BitcastOp::create(b, loc, type, x); }
  Value toFloat(Value x) { return mlir::arith::SIToFPOp::create(b, loc, f32(), x); }

  Value addF(Value x, Value y) { return mlir::arith::AddFOp::create(b, loc, x, y); }
  Value subF(Value x, Value y) { return mlir::arith::SubFOp::create(b, loc, x, y); }
  Value mulF(Value x, Value y) { return mlir::arith::MulFOp::create(b, loc, x, y); }
  Value divF(Value x, Value y) { return mlir::arith::DivFOp::create(b, loc, x, y); }
  Value fma(Value x, Value y, Value z) { return mlir::LLVM::FMAOp::create(b, loc, x, y, z); }
  Value maxF(Value x, Value y) { return mlir::LLVM::MaxNumOp::create(b, loc, x, y); }
  Value sqrt(Value x) { return mlir::LLVM::SqrtOp::create(b, loc, x); }
  /// 2^x, by the machine's approximation (2 ulp); 0 for minus infinity.
  Value exp2(Value x) { return mlir::LLVM::Exp2Op::create(b, loc, x); }
  Value lessF(Value x, Value y) {
    return mlir::arith::CmpFOp::create(b, loc, mlir::arith::CmpFPredicate::OLT, x, y);
  }
  /// f16, bf16 or f32 to f32, and back to nearest even.
  Value widen(Value x);
  Value narrow(Value x, mlir::Type element);
  /// x / (1 + exp(-x))
  Value silu(Value x);
  /// Two f32 to two f16 or bf16 in an i32, the first in the low half.
  Value packPair(Value low, Value high, mlir::Type element);

  // Vectors: only what memory and tensor cores take as one.
  Value lane(Value vector, int64_t lane);
  Values lanes(Value vector);
  Value vectorOf(mlir::ValueRange lanes);

  // Memory. Pointers are of space 1 (global), 3 (shared) or 7 (shared, of the cluster).
  Value offset(Value pointer, Value bytes);
  Value offset(Value pointer, int64_t bytes);
  Value load(mlir::Type type, Value pointer, unsigned alignment) {
    return mlir::LLVM::LoadOp::create(b, loc, type, pointer, alignment);
  }
  /// A load of what an earlier kernel wrote while this one may have been running already: it must
  /// not be served by a cache that nothing invalidates.
  Value loadFresh(mlir::Type type, Value pointer, unsigned alignment) {
    return mlir::LLVM::LoadOp::create(b, loc, type, pointer, alignment, /*isVolatile=*/true);
  }
  void store(Value value, Value pointer, unsigned alignment) {
    mlir::LLVM::StoreOp::create(b, loc, value, pointer, alignment);
  }

  // Threads.
  Value thread() { return mlir::NVVM::ThreadIdXOp::create(b, loc, i32()); }
  Value block() { return mlir::NVVM::BlockIdXOp::create(b, loc, i32()); }
  /// All threads of the block.
  void barrier() { mlir::NVVM::Barrier0Op::create(b, loc); }
  /// The first `threads` threads of the block.
  void barrier(int64_t id, int64_t threads);
  void syncWarp() { mlir::NVVM::SyncWarpOp::create(b, loc, constI32(-1)); }
  Value shuffleXor(Value x, int64_t mask);
  /// What lane `source` of the warp has.
  Value shuffleFrom(Value x, Value source);
  /// Bytes of two words, numbered 0 to 3 (`low`) and 4 to 7: nibble i of the selector is the number
  /// of byte i.
  Value permute(Value low, Value high, Value selector);

  // Clusters. A barrier is two halves, so that there can be work between them.
  void clusterArrive() { mlir::NVVM::ClusterArriveOp::create(b, loc, b.getUnitAttr()); }
  void clusterWait() { mlir::NVVM::ClusterWaitOp::create(b, loc, b.getUnitAttr()); }
  /// Where block `rank` of the cluster has what this one has at `place` of its shared memory.
  Value ofBlock(Value place, Value rank);

  // Barriers in shared memory.
  void initBarrier(Value barrier, int64_t count) {
    mlir::NVVM::MBarrierInitOp::create(b, loc, barrier, constI32(count), Value());
  }
  /// Makes barriers known to asynchronous copies (and to the cluster).
  void fenceBarrierInit() {
    if (hasBulkCopies())
      mlir::NVVM::FenceMbarrierInitOp::create(b, loc);
  }
  void arrive(Value barrier);
  /// Returns when the phase of that parity has ended. A fresh barrier is in phase 0, so that
  /// waiting for parity 1 returns at once.
  void wait(Value barrier, Value parity);

  // Asynchronous copies.
  /// Copies `bytes` (a multiple of 16) to shared memory and arrives at `barrier`; by one thread.
  void expectBytes(Value barrier, Value bytes);
  void bulkCopy(Value to, Value from, Value bytes, Value barrier);
  /// Orders ordinary accesses before asynchronous copies that follow: of this block's shared
  /// memory, or of global memory.
  void fenceAsync(bool shared);
  /// Before sm_90: 16 bytes by each thread; the arrival counts when the thread's copies have ended.
  void copy16(Value to, Value from);
  void arriveAfterCopies(Value barrier);

  // Dependent launch; nothing before sm_90, where kernels never overlap.
  /// What this kernel's predecessor wrote is there.
  void waitForPredecessor();
  void launchDependents();

  // Tensor cores. Operands are i32; accumulators four i32 or f32.
  Values mmaInt8(const Values &accumulators, llvm::ArrayRef<Value> a, llvm::ArrayRef<Value> b);
  Values mmaFloat(mlir::Type element, const Values &accumulators, llvm::ArrayRef<Value> a,
                  llvm::ArrayRef<Value> b);

  // Control flow.
  Values loop(Value lower, Value upper, Value step, mlir::ValueRange carried,
              llvm::function_ref<Values(Value index, mlir::ValueRange carried)> body);
  void loop(Value lower, Value upper, Value step, llvm::function_ref<void(Value index)> body);
  /// Emits `body` once before it is known whether it runs again: {again, the next values}.
  Values whileLoop(mlir::ValueRange carried,
                   llvm::function_ref<std::pair<Value, Values>(mlir::ValueRange carried)> body);
  void ifThen(Value condition, llvm::function_ref<void()> then);
  void ifElse(Value condition, llvm::function_ref<void()> then,
              llvm::function_ref<void()> otherwise);
  Values ifElseYield(Value condition, llvm::function_ref<Values()> then,
                     llvm::function_ref<Values()> otherwise);
};

/// Bytes of a float or integer element, 1 or more.
inline int64_t bytesOf(mlir::Type element) { return element.getIntOrFloatBitWidth() / 8; }

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_DEVICEBUILDER_H
