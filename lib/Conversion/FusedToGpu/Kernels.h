// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The stages of a GPU kernel of a matrix-vector product, and the kernels.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H

#include "../FusedToHost/KernelInterface.h"
#include "DeviceBuilder.h"

#include "sluice/Formats/Packing.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"

namespace sluice::device {

using host::KernelInterface;

/// How a kernel is launched, except for its name.
struct Launch {
  int64_t grid = 1;
  int64_t block = 1;
  int64_t shared = 0;
  int64_t cluster = 1;
  /// Blocks that should fit on a multiprocessor, 0 if it does not matter.
  int64_t resident = 0;
  bool overlap = false;
};

/// Hands out the places of a block's dynamic shared memory.
class SharedMemory {
public:
  explicit SharedMemory(mlir::Value base) : base(base) {}

  mlir::Value take(DeviceBuilder &k, int64_t bytes, int64_t alignment = 16) {
    used = llvm::alignTo(used, alignment);
    mlir::Value place = k.offset(base, used);
    used += bytes;
    return place;
  }
  int64_t bytes() const { return used; }

private:
  mlir::Value base;
  int64_t used = 0;
};

/// What every generator gets.
struct Kernel {
  DeviceBuilder &k;
  const KernelInterface &interface;
  SharedMemory &shared;
  fused::GpuScheduleAttr schedule;
  /// Bytes of shared memory that a block of the target may have.
  int64_t sharedLimit;
};

/// The format of a quantized tensor or of a builtin tensor of floats.
formats::Format formatOf(mlir::Type weight);

/// Whether nothing in a step writes the value: it may be read before the previous kernel has ended.
bool isConstant(mlir::Value value);

/// The input of a product in shared memory, as operands of the tensor cores' 8 columns.
///
/// Integer weights (two columns, high and low byte, a token), for every 32 columns of the
/// weight: [2 * token + low][lane % 4][8 bytes]; a float32 step a token and group of 128
/// columns; for zero points an int32 sum of x16 a token and unit.
/// Float weights (one column a token), for every 16 columns: [token][lane % 4][8 bytes].
struct PreparedInput {
  formats::Format format;
  int64_t tokens = 1;
  int64_t columns = 0; ///< K
  int64_t padded = 0;  ///< K rounded up to a multiple of 128
  int64_t unit = 0;    ///< columns of an exact integer sum; integer weights only
  mlir::Value fragments, scales, unitSums;

  bool isInteger() const { return format.isInteger(); }
  int64_t fragmentColumns() const { return isInteger() ? 32 : 16; }
  /// Bytes of a fragment.
  int64_t fragmentBytes() const { return (isInteger() ? 64 : 32) * tokens; }
  /// Lanes of a warp that own a part of it.
  int64_t fragmentLanes() const { return (isInteger() ? 8 : 4) * tokens; }
};

/// Computes the prologue with `threads` threads: `preload` emits what may run before the previous
/// kernel has ended, `emit` the rest up to a barrier of these threads.
class Prologue {
public:
  Prologue(Kernel &kernel, fused::MatvecOp op, mlir::Value thread, int64_t threads);
  mlir::FailureOr<PreparedInput> preload(formats::Format format);
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

// The kernels. Each fills the body of a function whose arguments the interface has.
mlir::FailureOr<Launch> emitMatvec(Kernel &kernel, fused::MatvecOp op);
mlir::FailureOr<Launch> emitAttention(Kernel &kernel, fused::AttentionOp op);
mlir::FailureOr<Launch> emitEmbedding(Kernel &kernel, fused::EmbeddingOp op);
mlir::FailureOr<Launch> emitSample(Kernel &kernel, fused::SampleOp op);

/// Adds the kernels that the runtime launches for itself; `shared` names the block's dynamic shared
/// memory. Each has its launch's extents in the attribute kUtilityAttr.
void addUtilityKernels(mlir::gpu::GPUModuleOp module, int arch, int64_t sharedLimit,
                       llvm::StringRef shared);

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H
