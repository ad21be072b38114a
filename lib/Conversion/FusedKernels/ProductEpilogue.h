// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The epilogue of a product, for the rows of one tile of its packed weight and one token.
//
// What differs between the host and a GPU is a class `Rows`: how many rows a register has, how they
// are read and written, and which layouts caches have.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_PRODUCTEPILOGUE_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_PRODUCTEPILOGUE_H

#include "CachePlaces.h"
#include "PackedSegments.h"
#include "RegionEvaluator.h"

#include "sluice/Formats/Packing.h"

#include "llvm/ADT/MapVector.h"

namespace sluice::kernels {

/// The rows of a source that one register has: `count` consecutive ones from `first` on (an index
/// of the builder). `exists` says which of them the source has, null if all; `first` is a row that
/// it has in any case.
struct RowRun {
  mlir::Value first, exists;
  int64_t count = 1;
};

/// The registers that an epilogue loads, by the value (or the rotary operation) that they are for.
/// Loads before the sums are known keep the memory's latency off the end of a kernel.
using EpilogueLoads = llvm::MapVector<void *, Values>;

template <typename R>
concept EpilogueRows =
    std::derived_from<typename R::Builder, ComputeBuilder> &&
    requires(R &rows, mlir::Value value, mlir::Type element, const RowRun &run, int64_t number,
             llvm::function_ref<mlir::Value(mlir::Value)> place) {
      { rows.k } -> std::convertible_to<typename R::Builder &>;
      // Whether, in natural order, a register has all 16 rows of a tile instead of 8.
      { R::kWholeTiles } -> std::convertible_to<bool>;
      // The run of `count` rows from `first` + `offset` on, of a source of `limit` rows. `first` is
      // a multiple of `step`.
      { rows.run(value, number, number, number, number) } -> std::same_as<RowRun>;
      // A run's elements at `pointer`; `isConstant` says whether nothing in a step writes them.
      { rows.load(value, element, run, true) } -> std::convertible_to<mlir::Value>;
      // Writes the elements that exist, from `place` of the run's first row on.
      { rows.store(value, element, run, place) };
      // The same for elements that do not lie side by side: `place` gives that of each row.
      { rows.scatter(value, element, run, place) };
      // The layouts of caches, and who has them, for messages: "a host".
      { R::kKeys } -> std::convertible_to<quantized::CacheLayout>;
      { R::kValues } -> std::convertible_to<quantized::CacheLayout>;
      { R::kDevice } -> std::convertible_to<llvm::StringRef>;
    };

/// The place of a RegionEvaluator, and where the region's results go.
template <EpilogueRows R> class ProductEpilogue {
public:
  using Builder = typename R::Builder;
  static constexpr llvm::StringLiteral kRegion = "an epilogue";

  /// `tile` counts from the segment's first; `token` is the row of the input, an index.
  ProductEpilogue(R &rows, fused::ProductOp op, const KernelInterface &interface,
                  const PackedSegment &segment, mlir::Value tile, mlir::Value token)
      : k(rows.k), rows(rows), op(op), interface(interface), segment(segment), token(token),
        sources(op) {
    findRows(tile);
  }

  /// Emits the loads of values that earlier kernels wrote (`fresh`), or of all others.
  void preload(bool fresh, EpilogueLoads &result);

  /// Emits the epilogue. `sums` are those of the tile's first 8 and last 8 rows; in natural order,
  /// where a register has 16 rows, one value has all.
  mlir::LogicalResult emit(const Values &sums, const EpilogueLoads &preloaded = {});

  // The place (see RegionEvaluator.h).
  Builder &k;
  mlir::FailureOr<Values> load(mlir::Value value);
  mlir::FailureOr<Turn> turn(model::RotaryOp rotary);

private:
  void findRows(mlir::Value tile);
  Values loadRows(mlir::Value value);
  /// Cosines and sines of the runs' rotary pairs; for rows in the order `pairs`.
  Values loadTurn(model::RotaryOp rotary);
  /// The position of the token, clamped to [0, limit), as an index.
  mlir::Value position(mlir::Value positions, int64_t limit) {
    mlir::Value place = k.at(interface.pointer(positions), token, 4);
    return k.toIndex(k.clampIndex(k.load(k.i32(), place, 4), limit));
  }
  /// The token's row of an array of rows.
  mlir::Value rowOf(mlir::Value array, mlir::RankedTensorType type) {
    return k.at(array, k.toI64(token), type.getDimSize(1) * bytesOf(type.getElementType()));
  }
  mlir::LogicalResult append(model::CacheAppendOp append, const Values &elements);
  /// Writes elements to row `token` of a result.
  void storeResult(unsigned result, const Values &elements);
  void store(const Values &elements, mlir::Type element,
             llvm::function_ref<mlir::Value(mlir::Value)> place) {
    for (auto [run, value] : llvm::zip_equal(runs, elements))
      rows.store(value, element, run, place);
  }

  R &rows;
  fused::ProductOp op;
  const KernelInterface &interface;
  const PackedSegment &segment;
  mlir::Value token;
  EpilogueSources sources;
  llvm::SmallVector<RowRun, 2> runs;
  EpilogueLoads loads;
};

template <EpilogueRows R> void ProductEpilogue<R>::findRows(mlir::Value tile) {
  constexpr int64_t half = formats::tileRows / 2;
  int64_t count = op.getSegments()[segment.order.getFirst()];
  if (segment.order.isNatural()) {
    mlir::Value first = k.mul(tile, formats::tileRows);
    if (R::kWholeTiles)
      runs = {rows.run(first, 0, count, formats::tileRows, formats::tileRows)};
    else
      runs = {rows.run(first, 0, count, formats::tileRows, half),
              rows.run(first, half, count, formats::tileRows, half)};
    return;
  }
  if (segment.order.isZip()) {
    runs = {rows.run(k.mul(tile, half), 0, count, half, half)};
    return;
  }
  // Pairs: tiles of a head, then of the next one.
  int64_t head = segment.order.getSecond(), headTiles = llvm::divideCeil(head / 2, half);
  RowRun run = rows.run(k.mul(k.rem(tile, headTiles), half), 0, head / 2, half, half);
  run.first = k.add(k.mul(k.div(tile, headTiles), head), run.first);
  RowRun partner = run;
  partner.first = k.add(run.first, head / 2);
  runs = {run, partner};
}

template <EpilogueRows R> Values ProductEpilogue<R>::loadRows(mlir::Value value) {
  auto type = cast<mlir::RankedTensorType>(value.getType());
  int64_t bytes = bytesOf(type.getElementType());
  // A vector is for all tokens; else each has its row.
  mlir::Value base = interface.pointer(value);
  if (type.getRank() == 2)
    base = rowOf(base, type);
  Values elements;
  for (const RowRun &run : runs)
    elements.push_back(rows.load(k.offset(base, k.mul(run.first, bytes)), type.getElementType(),
                                 run, isConstant(value)));
  return elements;
}

template <EpilogueRows R> mlir::FailureOr<Values> ProductEpilogue<R>::load(mlir::Value value) {
  if (auto found = loads.find(value.getAsOpaquePointer()); found != loads.end())
    return found->second;
  if (!interface.pointer(value))
    return op->emitOpError() << "epilogue combines rows of different segments";
  if (!isFloatTensor(value))
    return op->emitOpError() << "epilogue reads a value of type " << value.getType()
                             << " in a way that cannot be converted to " << Builder::kCode;
  return loadRows(value);
}

template <EpilogueRows R> Values ProductEpilogue<R>::loadTurn(model::RotaryOp rotary) {
  int64_t head = rotary.getHeadDim();
  mlir::Value row =
      k.mul(position(rotary.getPositions(), rotary.getTable().getType().getDimSize(0)), head);
  // Row i of the first half turns by angle i of the head.
  mlir::Value place = k.add(row, k.rem(runs.front().first, head));
  mlir::Value cosines = k.offset(interface.pointer(rotary.getTable()), k.mul(k.toI64(place), 4));
  auto load = [&](mlir::Value from) {
    return rows.load(from, k.f32(), runs.front(), /*isConstant=*/true);
  };
  return {load(cosines), load(k.offset(cosines, head / 2 * 4))};
}

template <EpilogueRows R> mlir::FailureOr<Turn> ProductEpilogue<R>::turn(model::RotaryOp rotary) {
  int64_t head = rotary.getHeadDim();
  if (rotary.getInterleaved())
    return rotary.emitOpError() << "of interleaved pairs in " << kRegion
                                << " cannot be converted to " << Builder::kCode;
  if (!segment.order.isPairs() || segment.order.getSecond() != head)
    return rotary.emitOpError() << "needs its rows in the order pairs(" << segment.order.getFirst()
                                << ", " << head << "), found " << segment.order;
  if (!rotary.getTable())
    return rotary.emitOpError() << "needs a table (fused-tabulate-rotary makes one)";
  auto found = loads.find(rotary.getOperation());
  Values both = found != loads.end() ? found->second : loadTurn(rotary);
  return Turn{{both[0]}, {both[1]}};
}

template <EpilogueRows R>
mlir::LogicalResult ProductEpilogue<R>::append(model::CacheAppendOp append,
                                               const Values &elements) {
  mlir::FailureOr<AppendPlace> place = AppendPlace::get(k, interface, append, R::kKeys, R::kValues,
                                                        ("an epilogue on " + R::kDevice).str());
  if (failed(place))
    return mlir::failure();
  place->moveTo(k, interface, token);
  for (auto [run, value] : llvm::zip_equal(runs, elements))
    rows.scatter(value, place->element(), run, [&](mlir::Value row) { return place->of(k, row); });
  return mlir::success();
}

template <EpilogueRows R>
void ProductEpilogue<R>::storeResult(unsigned result, const Values &elements) {
  auto type = cast<mlir::RankedTensorType>(op->getResult(result).getType());
  int64_t bytes = bytesOf(type.getElementType());
  mlir::Value base = rowOf(interface.resultPointer(result), type);
  store(elements, type.getElementType(),
        [&](mlir::Value row) { return k.offset(base, k.mul(row, bytes)); });
}

template <EpilogueRows R> void ProductEpilogue<R>::preload(bool fresh, EpilogueLoads &result) {
  if (op.getEpilogue().empty())
    return;
  for (mlir::Operation &inner : op.getEpilogue().front()) {
    bool concernsSegment = llvm::any_of(inner.getResults(), [&](mlir::Value value) {
      return llvm::any_of(sources.of(value).set_bits(),
                          [&](unsigned source) { return segment.holds(source); });
    });
    if (!concernsSegment)
      continue;
    if (auto rotary = dyn_cast<model::RotaryOp>(inner)) {
      if (!fresh && rotary.getTable() && segment.order.isPairs())
        result[&inner] = loadTurn(rotary);
      continue;
    }
    for (mlir::Value operand : inner.getOperands())
      if (interface.pointer(operand) && isConstant(operand) != fresh && isFloatTensor(operand))
        result[operand.getAsOpaquePointer()] = loadRows(operand);
  }
}

template <EpilogueRows R>
mlir::LogicalResult ProductEpilogue<R>::emit(const Values &sums, const EpilogueLoads &preloaded) {
  int64_t first = segment.order.getFirst();
  if (op.getEpilogue().empty()) {
    if (segment.order.isZip())
      return op->emitOpError() << "with zipped rows needs an epilogue";
    storeResult(first, sums);
    return mlir::success();
  }
  loads = preloaded;
  NormFactors noNorms;
  RegionEvaluator<ProductEpilogue> evaluator(*this, interface, noNorms);
  mlir::Block &block = op.getEpilogue().front();
  if (segment.order.isZip()) {
    evaluator.bind(block.getArgument(first), {sums[0]});
    evaluator.bind(block.getArgument(segment.order.getSecond()), {sums[1]});
  } else {
    evaluator.bind(block.getArgument(first), sums);
  }
  return emitWrites(
      evaluator, block,
      [&](mlir::Operation &writer, mlir::Value value) {
        return sources.areIn(segment, &writer, value);
      },
      [&](model::CacheAppendOp cacheAppend, const Values &elements) {
        return append(cacheAppend, elements);
      },
      [&](unsigned result, const Values &elements) { storeResult(result, elements); });
}

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_PRODUCTEPILOGUE_H
