// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Generates the kernel of a step's layers. Code of a layer is generated once, from the operations
// of the first one. What differs between layers are addresses, which every block keeps in shared
// memory.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_STEPCODE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_STEPCODE_H

#include "AttentionJoin.h"
#include "Opaque.h"
#include "ResidualExchange.h"
#include "StepKernel.h"
#include "TileAttention.h"
#include "WeightStream.h"

#include "dialects/Fused/Weights.h"

#include "llvm/Support/SaveAndRestore.h"

namespace sluice::device {

inline model::RmsNormOp normOf(fused::MatvecOp product) {
  return cast<model::RmsNormOp>(product.getPrologue().front().front());
}

inline model::ParameterOp parameterOf(mlir::Value value) {
  return value.getDefiningOp<model::ParameterOp>();
}

/// The rotary operations of an epilogue.
inline llvm::SmallVector<model::RotaryOp> rotariesOf(fused::MatvecOp product) {
  if (product.getEpilogue().empty())
    return {};
  return llvm::to_vector(product.getEpilogue().front().getOps<model::RotaryOp>());
}

class StepKernel {
public:
  using Values = DeviceBuilder::Values;
  using Extent = StreamedPart::Extent;

  StepKernel(DeviceBuilder &k, StepInterface &interface, mlir::Value shared,
             const fused::GpuDevice &device, mlir::ValueRange arguments);
  mlir::LogicalResult emit();

private:
  /// An operation of the first layer, with the interface that its code is generated from.
  struct Template {
    explicit Template(mlir::Operation *op) : op(op), interface(llvm::cantFail(expected(op))) {}
    mlir::Operation *op;
    kernels::KernelInterface interface;

  private:
    static llvm::Expected<kernels::KernelInterface> expected(mlir::Operation *op) {
      mlir::FailureOr<kernels::KernelInterface> found = kernels::KernelInterface::get(op);
      if (mlir::failed(found))
        return llvm::createStringError("an interface that was found before");
      return std::move(*found);
    }
  };
  /// Numbers of the block that are kept in shared memory. Of ranges the begin, then the size.
  enum Number : int64_t {
    InnerOfBlock = 0,
    InnerOfCluster = 2,
    SumTiles = 4,
    Last = 6, ///< the token's position
    FirstPiece,
    PieceCount,     ///< of the block
    ProjectionTiles ///< of each part of query, key and value
  };
  static constexpr int64_t tilesOf(size_t number) { return ProjectionTiles + 2 * number; }
  static_assert(ProjectionTiles + 2 * fused::DecoderShape::kMostProjections <=
                fused::PersistentPlan::kExtents);

  int64_t ranks() const { return plan.schedule.clusterBlocks; }
  int64_t warps() const { return plan.schedule.warps; }
  int64_t threads() const { return warps() * kWarp; } ///< that compute
  int64_t allThreads() const { return plan.launchWarps() * kWarp; }
  int64_t headTiles() const { return plan.shape.dim / fused::PersistentPlan::kTile; }
  int64_t queryTiles() const { return plan.clusterHeads() * plan.shape.group() * headTiles(); }
  int64_t keyTiles() const { return plan.clusterHeads() * headTiles(); }
  int64_t pieceTiles() const { return attention.warpTiles; }

  mlir::Value place(fused::SharedRange range) { return k.offset(shared, range.offset); }
  mlir::Value zero() { return k.constI32(0); }
  mlir::Value number(int64_t index) {
    return k.load(k.i32(), k.offset(place(plan.extents), 4 * index), 4);
  }
  void storeNumbers();
  void storePointers();
  void storeRotary();
  void initBarriers();
  /// Address `slot` of a layer.
  mlir::Value pointer(mlir::Value layer, int64_t slot);
  /// The kernel's argument for something that layers read.
  mlir::Value argumentOf(mlir::Value value) {
    return arguments[StepInterface::kConstants +
                     (llvm::find(interface.constants, value) - interface.constants.begin())];
  }
  /// What a layer has in the place of the first one's `value`, or of its constant `index`.
  mlir::Value constant(mlir::Value layer, mlir::Value value) {
    return constantAt(layer, llvm::find(constants, value) - constants.begin());
  }
  mlir::Value constantAt(mlir::Value layer, int64_t index);
  mlir::Value cache(mlir::Value layer, bool isKeys) {
    return pointer(layer, plan.shape.layerPointers - (isKeys ? 2 : 1));
  }
  /// Gives an operation's values the addresses of a layer. `others`: of values that another
  /// operation of the layer computes, in shared memory.
  void bind(Template &target, mlir::Value layer,
            const llvm::DenseMap<mlir::Value, mlir::Value> &others =
                llvm::DenseMap<mlir::Value, mlir::Value>());

  void waitForAll() { k.barrier(1, threads()); }
  mlir::Value roundingPlace() {
    return k.at(place(plan.scratch), warp, fused::PersistentPlan::kGroupBytes);
  }

  ResidualExchange stream() {
    mlir::Value sums = arguments[StepInterface::kSums];
    return {k,
            plan,
            {shared, arguments[StepInterface::kEmbedding], sums,
             k.offset(sums, (interface.sumWords() - 1) * 8)},
            thread};
  }
  AttentionJoin join() { return {k, plan, shared, thread}; }
  /// While it lives, what is computed from the thread's numbers is not computed before. Else all
  /// layers' addresses were, and kept in registers.
  struct Fresh {
    explicit Fresh(StepKernel &kernel)
        : thread(kernel.thread, opaqueCopy(kernel.k, kernel.thread)),
          lane(kernel.lane, kernel.k.bitAnd(kernel.thread, kWarp - 1)),
          warp(kernel.warp, kernel.k.shr(kernel.thread, 5)),
          cluster(kernel.cluster, opaqueCopy(kernel.k, kernel.cluster)),
          rank(kernel.rank, opaqueCopy(kernel.k, kernel.rank)) {}
    llvm::SaveAndRestore<mlir::Value> thread, lane, warp, cluster, rank;
  };

  // The parts of a layer.
  /// A part of a product, as layers have it whose weights differ in their encodings.
  struct Variants {
    struct Variant {
      StreamedPart part;
      int64_t firstTile; ///< of the weight, in the product
      llvm::SmallVector<int64_t> kinds = {};
    };
    std::vector<Variant> all;

    /// `weight` and `groups`: as of StreamedPart.
    void add(int64_t kind, const fused::PackedPart &weight, int64_t groups,
             const fused::PersistentPlan &plan);
  };
  /// Emits `body` for each variant; it runs for that of the layer.
  Values forVariant(mlir::Value layer, const Variants &variants,
                    llvm::function_ref<Values(const Variants::Variant &)> body);
  /// Of part `number` of query, key and value: a cluster's tiles of it.
  Extent projectionExtent(mlir::Value layer, size_t number, const Variants::Variant &variant);
  /// The product's tile of a cluster's query, key and value tile.
  mlir::Value projectionPlace(mlir::Value tile);
  /// Tiles of a cluster in the parts before.
  int64_t tilesBefore(size_t number) {
    int64_t tiles = 0;
    for (size_t before = 0; before < number; ++before)
      tiles += plan.projectionTiles(before);
    return tiles;
  }
  Extent outputExtent(mlir::Value layer);
  Extent gateExtent(mlir::Value layer);
  Extent downExtent(mlir::Value layer);
  mlir::Value innerBytes();
  mlir::Value projectionBytes();

  Values copyPieces(mlir::Value layer, mlir::Value head, const WeightStream::Later *later,
                    mlir::ValueRange carried);
  void copyAll();

  /// Each takes and gives the stages that have passed.
  mlir::LogicalResult computeAll();
  mlir::Value project(mlir::Value layer, mlir::Value passed);
  void finishProjection(mlir::Value layer, mlir::Value ofCluster, mlir::Value inRank,
                        mlir::Value row, mlir::Value low, mlir::Value high);
  void sendProjections(mlir::Value layer);
  /// Sends `count` of the cluster's tiles from `begin` on, which are the rank's from `inRank` on.
  void sendTiles(mlir::Value begin, mlir::Value count, mlir::Value inRank);
  mlir::Value attend(mlir::Value layer, mlir::Value passed);
  /// Where rows of the cluster's query, key and value heads are.
  llvm::DenseMap<mlir::Value, mlir::Value> projected();
  void makeQueries(mlir::Value layer);
  void readPieces(mlir::Value layer, mlir::Value head, mlir::Value passed);
  /// Outputs of the warps that read pieces.
  TileAttention::Parts attentionParts() {
    int64_t count = plan.pieceReaders() * attention.group;
    mlir::Value maxima = k.offset(place(plan.sums), count * attention.partRow() * 4);
    return {place(plan.sums), maxima, k.offset(maxima, count * 4), plan.pieceReaders()};
  }
  /// Barriers of the newest piece: a reader has got it; it has the token's row.
  mlir::Value reachedBarrier() { return place(plan.appended); }
  mlir::Value appendedBarrier() { return k.offset(place(plan.appended), 8); }
  void patchNewest(mlir::Value layer, mlir::Value head, mlir::Value passed);
  /// As WeightStream's, of the layer's variant.
  mlir::Value forBatches(mlir::Value layer, const Variants &variants, const Extent &extent,
                         int64_t mostTiles, mlir::Value passed,
                         llvm::function_ref<void(const StreamedPart &part, const Extent &batch,
                                                 mlir::Value firstTile, mlir::Value passed)>
                             body);
  /// Multiplies a product whose rows are added to the residual stream: `add` gets a row, and what
  /// the clusters' parts of `input` make of it.
  mlir::Value addRows(mlir::Value layer, const Variants &variants, const Extent &extent,
                      mlir::Value passed, const GroupExchange &input,
                      llvm::function_ref<void(mlir::Value row, mlir::Value x)> add);
  mlir::Value addOutput(mlir::Value layer, mlir::Value passed);
  mlir::Value multiplyGates(mlir::Value layer, mlir::Value passed);
  mlir::Value addDown(mlir::Value layer, mlir::Value passed);

  DeviceBuilder &k;
  StepInterface &interface;
  fused::DecoderStep::Layer first;
  const fused::PersistentPlan &plan;
  mlir::Value shared;
  fused::GpuDevice device;
  mlir::ValueRange arguments;
  llvm::SmallVector<mlir::Value> constants; ///< of the first layer
  llvm::SmallBitVector common;              ///< those that all layers have
  Template projections, attentionOp, gates;
  llvm::SmallVector<PackedSegment> projectionRows, gateRows;
  mlir::Value thread, block, lane, warp, cluster, rank;
  fused::AttentionShape attention;
  WeightStream ring;
  GroupExchange inner, projected_;
  std::vector<Variants> projectionParts;
  Variants outputPart, gatePart, downPart;
  mlir::LogicalResult result = mlir::success();
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_STEPCODE_H
