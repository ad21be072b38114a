// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The stages of a GPU kernel of a matrix-vector product, and the kernels.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H

#include "../FusedToHost/KernelInterface.h"
#include "DeviceBuilder.h"

#include "dialects/Fused/GpuPlan.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"

namespace sluice::device {

using host::KernelInterface;

/// What every generator gets.
struct Kernel {
  DeviceBuilder &k;
  const KernelInterface &interface;
  /// Where the block's dynamic shared memory starts.
  mlir::Value shared;
  fused::GpuScheduleAttr schedule;
  fused::GpuDevice device;

  /// Null for a range that the kernel does not need.
  mlir::Value at(fused::SharedRange range) const {
    return range.bytes ? k.offset(shared, range.offset) : mlir::Value();
  }
};

/// Whether nothing in a step writes the value: it may be read before the previous kernel has ended.
bool isConstant(mlir::Value value);

/// The input of a product in shared memory (fused::InputPlan says in which order) and where.
struct PreparedInput : fused::InputPlan {
  mlir::Value fragmentsAt, scalesAt, unitSumsAt;
};

/// Computes the prologue with `threads` threads: `preload` emits what may run before the previous
/// kernel has ended, `emit` the rest up to a barrier of these threads.
class Prologue {
public:
  Prologue(Kernel &kernel, fused::MatvecOp op, const fused::InputPlan &plan, mlir::Value thread,
           int64_t threads);
  mlir::FailureOr<PreparedInput> preload();
  mlir::LogicalResult emit(PreparedInput &input);

private:
  using Values = DeviceBuilder::Values;
  /// A thread handles 8 neighbouring columns at a time; unit n of a thread is columns
  /// 8 * (thread + n * threads) on.
  static constexpr int64_t kUnit = 8;

  int64_t rounds() const { return llvm::divideCeil(padded, kUnit * threads); }
  mlir::Value unitIndex(int64_t n);
  /// Null if all threads have such a unit.
  mlir::Value unitExists(int64_t n, int64_t width);
  Values loadUnit(mlir::Value pointer, mlir::RankedTensorType type, mlir::Value row, int64_t n,
                  bool fresh);
  mlir::LogicalResult emitRow(PreparedInput &input, mlir::Value row);
  mlir::FailureOr<Values> evaluate(mlir::Value value, int64_t n);
  mlir::FailureOr<mlir::Value> normFactor(model::RmsNormOp norm);
  void emitFixedPoint(PreparedInput &input, mlir::Value row, int64_t n, const Values &x);
  void emitRounded(PreparedInput &input, mlir::Value row, int64_t n, const Values &x);

  Kernel &kernel;
  DeviceBuilder &k;
  fused::MatvecOp op;
  const fused::InputPlan &plan;
  mlir::Value thread;
  int64_t threads, padded;
  mlir::Value scratch, currentRow;
  llvm::DenseMap<std::pair<mlir::Value, int64_t>, Values> constants, loaded;
  llvm::DenseMap<mlir::Operation *, mlir::Value> factors;
};

/// A segment of the packed weight: the sources (arguments of the epilogue) whose rows it holds.
struct PackedSegment {
  quantized::RowOrderAttr order;
  int64_t firstTile = 0, tiles = 0;
};

/// What an epilogue reads from memory, by the value (or the rotary operation) that it is for. Read
/// ahead of the sums, it does not add a memory's latency to the end of a kernel.
using EpilogueLoads = llvm::MapVector<void *, DeviceBuilder::Values>;

/// Emits the loads of the epilogue for rows `row` and `row` + 8 (0 <= row < 8) of tile `tile`,
/// which counts from the segment's first: `fresh` says whether of what earlier kernels wrote, or of
/// all else.
void preloadEpilogue(Kernel &kernel, fused::MatvecOp op, const PackedSegment &segment,
                     mlir::Value tile, mlir::Value row, int64_t token, bool fresh,
                     EpilogueLoads &loads);

/// Emits the epilogue for the sums of these rows.
mlir::LogicalResult emitEpilogue(Kernel &kernel, fused::MatvecOp op, const PackedSegment &segment,
                                 mlir::Value tile, mlir::Value row, mlir::Value low,
                                 mlir::Value high, int64_t token, const EpilogueLoads &loads);

/// Emits an operation on single elements (additions, conversions, silu). Null if it is no such
/// operation.
mlir::Value emitElementwise(DeviceBuilder &k, mlir::Operation *op, mlir::ValueRange operands);

// The kernels. Each fills the body of a function whose arguments the interface has, as the
// operation's plan (dialects/Fused/GpuPlan.h) says.
mlir::LogicalResult emitMatvec(Kernel &kernel, fused::MatvecOp op);
mlir::LogicalResult emitAttention(Kernel &kernel, fused::AttentionOp op);
mlir::LogicalResult emitEmbedding(Kernel &kernel, fused::EmbeddingOp op);
mlir::LogicalResult emitSample(Kernel &kernel, fused::SampleOp op);

/// Adds the kernels that the runtime launches for itself; `shared` names the block's dynamic shared
/// memory. Each has its launch's extents in the attribute kUtilityAttr.
void addUtilityKernels(mlir::gpu::GPUModuleOp module, int arch, int64_t sharedLimit,
                       llvm::StringRef shared);

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H
