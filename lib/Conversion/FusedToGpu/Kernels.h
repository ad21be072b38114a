// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The stages of a GPU kernel of a matrix-vector product, and the kernels.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H

#include "../FusedKernels/ProductEpilogue.h"
#include "DeviceBuilder.h"

#include "dialects/Fused/GpuPlan.h"

#include "mlir/Dialect/GPU/IR/GPUDialect.h"

namespace sluice::device {

using kernels::encodingOf;
using kernels::EpilogueLoads;
using kernels::isConstant;
using kernels::KernelInterface;
using kernels::PackedSegment;

/// What the generators of all kernels share.
struct Kernel {
  DeviceBuilder &k;
  const KernelInterface &interface;
  /// Start of the block's dynamic shared memory.
  mlir::Value shared;
  fused::GpuScheduleAttr schedule;
  fused::GpuDevice device;

  /// Null for a range that the kernel does not need.
  mlir::Value at(fused::SharedRange range) const {
    return range.bytes ? k.offset(shared, range.offset) : mlir::Value();
  }
};

/// The input of a product in shared memory: its order (fused::InputPlan) and its addresses.
struct PreparedInput : fused::InputPlan {
  mlir::Value fragmentsAt, scalesAt, inputSumsAt, zerosAt;
};

/// Computes the prologue with `threads` threads: `preload` emits what may run before the previous
/// kernel has ended, `emit` the rest up to a barrier of these threads.
class Prologue {
public:
  /// `region` is the prologue of `op`, perhaps empty, and `source` what it begins with.
  Prologue(Kernel &kernel, mlir::Operation *op, mlir::Region &region, mlir::Value source,
           const fused::InputPlan &plan, mlir::Value thread, int64_t threads);
  mlir::FailureOr<PreparedInput> preload();
  mlir::LogicalResult emit(PreparedInput &input);
  /// Instead: writes token `token` of a prepared input at `base`, zeros if it is not active.
  mlir::LogicalResult emitToImage(const fused::PreparedImage &image, mlir::Value base,
                                  mlir::Value token, mlir::Value isActive);

  // The place (see RegionEvaluator.h): vector `current` of the row.
  using Builder = DeviceBuilder;
  using Values = DeviceBuilder::Values;
  static constexpr llvm::StringLiteral kRegion = "a prologue";
  DeviceBuilder &k;
  mlir::FailureOr<Values> load(mlir::Value value);
  mlir::FailureOr<mlir::Value>
  sumRow(llvm::function_ref<mlir::FailureOr<mlir::Value>(mlir::Value)> accumulate);
  mlir::Value clearMissing(size_t number, mlir::Value x);
  mlir::FailureOr<Values> elsewhere(const Values &columns,
                                    llvm::function_ref<mlir::FailureOr<Values>()> body);

private:
  /// A thread handles 8 neighbouring columns at a time; vector n of a thread is columns
  /// 8 * (thread + n * threads) on.
  static constexpr int64_t kVector = 8;

  int64_t rounds() const { return llvm::divideCeil(padded, kVector * threads); }
  mlir::Value vectorIndex(int64_t n);
  /// Whether vector n lies in a row of `width` columns; null if that is so for all threads.
  mlir::Value vectorExists(int64_t n, int64_t width);
  /// Whether column `number` (0 to 7) of vector n lies in the row.
  mlir::Value columnExists(int64_t n, int64_t number);
  Values loadVector(mlir::Value pointer, mlir::RankedTensorType type, mlir::Value row, int64_t n,
                    bool fresh);
  /// The elements of the current row that `others` names.
  Values loadOthers(mlir::Value pointer, mlir::RankedTensorType type, bool fresh);
  mlir::LogicalResult emitRow(PreparedInput &input, mlir::Value row);
  /// Rounds and stores vector n of a row.
  void emitVector(PreparedInput &input, mlir::Value row, int64_t n, const Values &x);
  /// Rounds for scaled weights: to fixed point, or to f16 numbers.
  void emitScaled(PreparedInput &input, mlir::Value row, int64_t n, const Values &x);
  /// Its rest for E4M3 weights; `x` is scaled.
  void emitHalves(PreparedInput &input, mlir::Value row, int64_t n, const Values &x,
                  mlir::Value scale);
  /// Stores a number of `columns` columns, which their first vector has, in an array of them.
  void storeFirst(PreparedInput &input, mlir::Value row, mlir::Value vector, int64_t columns,
                  mlir::Value value, mlir::Value array);
  /// Its rest for weights in records; the functions give 4 bytes from an element on.
  void emitDiagonal(PreparedInput &input, mlir::Value row, int64_t n, const Values &fixed,
                    mlir::Value scale, llvm::function_ref<mlir::Value(int64_t)> highBytes,
                    llvm::function_ref<mlir::Value(int64_t)> lowBytes);
  void emitRounded(PreparedInput &input, mlir::Value row, int64_t n, const Values &x);
  /// The place of chunk `chunk` (16 bytes, of piece `piece`) of the image's token.
  mlir::Value imageChunk(mlir::Value piece, mlir::Value chunk);
  /// As storeFirst, into an image's numbers of groups from byte `section` on.
  void storeFirstOfImage(mlir::Value vector, int64_t columns, mlir::Value value, int64_t section);
  // Their rests for an image.
  void emitFixedOfImage(int64_t n, const Values &fixed, mlir::Value scale,
                        llvm::function_ref<mlir::Value(int64_t)> highBytes,
                        llvm::function_ref<mlir::Value(int64_t)> lowBytes);
  /// A row for weights in records: with one scale.
  void emitRowOfImage(llvm::ArrayRef<Values> x);
  void emitHalvesOfImage(int64_t n, const Values &x, mlir::Type element, mlir::Value scale);

  Kernel &kernel;
  mlir::Operation *op;
  mlir::Region &region;
  mlir::Value source;
  const fused::InputPlan &plan;
  const fused::PreparedImage *image = nullptr;
  mlir::Value imageBase, imageToken;
  mlir::Value thread;
  int64_t threads, padded, current = 0, sumNumber = 0;
  mlir::Value scratch, currentRow;
  llvm::DenseMap<std::pair<mlir::Value, int64_t>, Values> constants, loaded;
  /// Not empty: the columns (i32) that are loaded instead of the current vector's.
  Values others;
  kernels::NormFactors factors;
};

/// Emits the loads of the epilogue for rows `row` and `row` + 8 (0 <= row < 8) of tile `tile`,
/// which counts from the segment's first: with `fresh` those of values that
/// earlier kernels wrote, without it all others.
void preloadEpilogue(Kernel &kernel, fused::ProductOp op, const PackedSegment &segment,
                     mlir::Value tile, mlir::Value row, mlir::Value token, bool fresh,
                     EpilogueLoads &loads);

/// Emits the epilogue for the sums of these rows.
mlir::LogicalResult emitEpilogue(Kernel &kernel, fused::ProductOp op, const PackedSegment &segment,
                                 mlir::Value tile, mlir::Value row, mlir::Value low,
                                 mlir::Value high, mlir::Value token, const EpilogueLoads &loads);

/// The active rows of a step, between 0 and `most`; these if `active` is null. Not to be read
/// before the previous kernel has ended.
mlir::Value emitActiveRows(Kernel &kernel, mlir::Value active, int64_t most);
/// Emits `body` for a row that is there: of number `row` below `active`, one i32 in memory, if that
/// is not null.
void ifActive(Kernel &kernel, mlir::Value active, mlir::Value row, llvm::function_ref<void()> body);

// The kernels. Each fills the body of a function whose arguments the interface has, as the
// operation's plan (dialects/Fused/GpuPlan.h) says.
mlir::LogicalResult emitMatvec(Kernel &kernel, fused::MatvecOp op);
mlir::LogicalResult emitPrepare(Kernel &kernel, fused::PrepareOp op);
mlir::LogicalResult emitMatmul(Kernel &kernel, fused::MatmulOp op);
mlir::LogicalResult emitAttention(Kernel &kernel, fused::AttentionOp op);
/// The same of many tokens of one sequence, or of several that are packed.
mlir::LogicalResult emitPrefillAttention(Kernel &kernel, fused::AttentionOp op);
mlir::LogicalResult emitAppend(Kernel &kernel, fused::AppendOp op);
mlir::LogicalResult emitLastRow(Kernel &kernel, fused::LastRowOp op);
mlir::LogicalResult emitEmbedding(Kernel &kernel, fused::EmbeddingOp op);
mlir::LogicalResult emitRows(Kernel &kernel, fused::RowsOp op);
mlir::LogicalResult emitSample(Kernel &kernel, fused::SampleOp op);

/// Adds the kernels that no step launches but the runtime itself; `shared` names the block's
/// dynamic shared memory. Each has its launch's extents in the attribute kUtilityAttr.
void addUtilityKernels(mlir::gpu::GPUModuleOp module, int arch, int64_t sharedLimit,
                       llvm::StringRef shared);

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_KERNELS_H
