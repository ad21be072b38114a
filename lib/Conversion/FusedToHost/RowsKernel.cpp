// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Norms and element operations on whole rows. Work items are rows.

#include "../FusedKernels/CachePlaces.h"
#include "../FusedKernels/RegionEvaluator.h"
#include "ActiveTokens.h"
#include "Products.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;

namespace {
/// A place in a row: 16 columns, or fewer last ones; where heads are rotated, such columns of the
/// first half of a head and the same of the second.
class RowColumns {
public:
  using Builder = KernelBuilder;
  static constexpr llvm::StringLiteral kRegion = "a kernel of rows";

  RowColumns(KernelBuilder &k, fused::RowsOp op, const KernelInterface &interface)
      : k(k), op(op), interface(interface), width(op.getWidth()), head(op.getHeadDim()) {}

  /// Emits the row `number` (i64).
  LogicalResult emit(Value number);

  // The place (see RegionEvaluator.h).
  KernelBuilder &k;
  FailureOr<kernels::Values> load(Value value);
  FailureOr<kernels::Turn> turn(model::RotaryOp rotary);
  FailureOr<Value> sumRow(llvm::function_ref<FailureOr<Value>(Value)> accumulate);
  Value clearMissing(size_t /*number*/, Value x) {
    return mask() ? k.select(mask(), x, k.number(x.getType(), 0.0)) : x;
  }

private:
  /// Null if all lanes are columns.
  Value mask() { return count < kLanes ? k.firstLanes(kLanes, k.index(count)) : Value(); }
  /// Moves through the row; `body` takes the values carried and returns the next ones.
  FailureOr<Value> forEachPlace(Value carried,
                                llvm::function_ref<FailureOr<Value>(Value carried)> body);
  LogicalResult emitWrites();

  fused::RowsOp op;
  const KernelInterface &interface;
  int64_t width, head, count = 0;
  Value row;
  SmallVector<Value, 2> columns; ///< first columns of the place's registers
  kernels::NormFactors factors;
};
} // namespace

FailureOr<Value> RowColumns::forEachPlace(Value carried,
                                          llvm::function_ref<FailureOr<Value>(Value)> body) {
  LogicalResult result = success();
  auto visit = [&](Value first, int64_t lanes, Value now) {
    count = lanes;
    columns = {first};
    if (head)
      columns.push_back(k.add(first, head / 2));
    FailureOr<Value> next = body(now);
    if (failed(next))
      result = failure();
    return succeeded(next) ? *next : now;
  };
  // Columns [base, base + length).
  auto visitRun = [&](Value base, int64_t length, Value now) {
    int64_t full = length / kLanes * kLanes;
    if (full)
      now = k.loop(k.index(0), k.index(full), kLanes, now, [&](Value place, ValueRange inner) {
        return kernels::Values{visit(k.add(base, place), kLanes, inner[0])};
      })[0];
    return length > full ? visit(k.add(base, full), length - full, now) : now;
  };
  if (head)
    carried = k.loop(k.index(0), k.index(width), head, carried, [&](Value first, ValueRange outer) {
      return kernels::Values{visitRun(first, head / 2, outer[0])};
    })[0];
  else
    carried = visitRun(k.index(0), width, carried);
  if (failed(result))
    return failure();
  return carried;
}

FailureOr<Value> RowColumns::sumRow(llvm::function_ref<FailureOr<Value>(Value)> accumulate) {
  FailureOr<Value> sums = forEachPlace(k.number(k.vec(kLanes, k.f32()), 0.0), accumulate);
  if (failed(sums))
    return failure();
  return k.sumLanes(*sums);
}

FailureOr<kernels::Values> RowColumns::load(Value value) {
  Value pointer = interface.pointer(value);
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!pointer || !kernels::isFloatTensor(value) || type.getShape().back() != width)
    return op.emitOpError() << "reads a value of type " << value.getType()
                            << " in a way that cannot be converted to host code";
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  kernels::Values elements;
  for (Value column : columns) {
    Value place = type.getRank() == 2 ? k.add(k.mul(row, width), column) : column;
    elements.push_back(
        k.loadFloats(kLanes, element, k.offset(pointer, k.mul(place, bytes)), bytes, mask()));
  }
  return elements;
}

FailureOr<kernels::Turn> RowColumns::turn(model::RotaryOp rotary) {
  if (!rotary.getTable())
    return rotary.emitOpError() << "needs a table (fused-tabulate-rotary makes one)";
  Value stored = k.load(k.i32(), k.at(interface.pointer(rotary.getPositions()), row, 4), 4);
  Value position = k.toIndex(k.clampIndex(stored, rotary.getTable().getType().getDimSize(0)));
  Value entry = k.add(k.mul(position, head), k.rem(columns[0], head));
  Value cosines = k.at(interface.pointer(rotary.getTable()), entry, 4);
  auto angles = [&](Value from) { return k.loadFloats(kLanes, k.f32(), from, 4, mask()); };
  return kernels::Turn{{angles(cosines)}, {angles(k.offset(cosines, head / 2 * 4))}};
}

LogicalResult RowColumns::emitWrites() {
  kernels::RegionEvaluator<RowColumns> evaluator(*this, interface, factors);
  auto append = [&](model::CacheAppendOp append, const kernels::Values &elements) {
    FailureOr<kernels::AppendPlace> place = kernels::AppendPlace::get(
        k, interface, append, quantized::CacheLayout::LanesKeys,
        quantized::CacheLayout::LanesValues, "a kernel of rows on a host");
    if (failed(place))
      return failure();
    place->moveTo(k, interface, row);
    for (auto [column, value] : llvm::zip_equal(columns, elements)) {
      Value bits =
          k.bitcast(k.narrow(k.widen(value), place->element()), k.like(value.getType(), k.i16()));
      for (int64_t lane = 0; lane < count; ++lane)
        k.store(vector::ExtractOp::create(k.b, k.loc, bits, lane),
                place->of(k, k.add(column, lane)), 2);
    }
    return success();
  };
  auto yield = [&](unsigned result, const kernels::Values &elements) {
    Type element = cast<RankedTensorType>(op.getResult(result).getType()).getElementType();
    int64_t bytes = bytesOf(element);
    for (auto [column, value] : llvm::zip_equal(columns, elements))
      k.storeFloats(k.widen(value), element,
                    k.at(interface.resultPointer(result), k.add(k.mul(row, width), column), bytes),
                    bytes, mask());
  };
  return kernels::emitWrites<RowColumns>(
      evaluator, op.getBody().front(), [](Operation &, Value) -> FailureOr<bool> { return true; },
      append, yield);
}

LogicalResult RowColumns::emit(Value number) {
  row = number;
  if (failed(kernels::evaluateNorms(*this, interface, op.getBody(), factors)))
    return failure();
  return forEachPlace(k.number(k.f32(), 0.0), [&](Value carried) -> FailureOr<Value> {
    if (failed(emitWrites()))
      return failure();
    return carried;
  });
}

FailureOr<int64_t> sluice::host::emitRows(KernelBuilder &k, fused::RowsOp op,
                                          const KernelInterface &interface, Value begin,
                                          Value end) {
  LogicalResult result = success();
  RowColumns columns(k, op, interface);
  if (op.getActive())
    std::tie(begin, end) = shareOf(k, activeTokens(k, interface, op.getActive(), op.getTokens()),
                                   begin, end, op.getTokens());
  k.loop(begin, end, 1, [&](Value number) { result = columns.emit(number); });
  if (failed(result))
    return failure();
  return op.getTokens();
}
