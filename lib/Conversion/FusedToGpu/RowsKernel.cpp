// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Norms and element operations on whole rows: a block has a row, a thread a column at a time.

#include "../FusedKernels/CachePlaces.h"
#include "Kernels.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;

namespace {
/// A place in a row: one column, or the two of a rotary pair where heads are rotated.
class RowColumns {
public:
  using Builder = DeviceBuilder;
  using Values = DeviceBuilder::Values;
  static constexpr llvm::StringLiteral kRegion = "a kernel of rows";

  RowColumns(Kernel &kernel, fused::RowsOp op, const fused::RowsPlan &plan)
      : k(kernel.k), kernel(kernel), op(op), plan(plan), width(op.getWidth()),
        head(op.getHeadDim()) {}

  LogicalResult emit();

  // The place (see RegionEvaluator.h). The loops below visit no column that does not exist.
  DeviceBuilder &k;
  FailureOr<Values> load(Value value);
  FailureOr<kernels::Turn> turn(model::RotaryOp rotary);
  FailureOr<Value> sumRow(llvm::function_ref<FailureOr<Value>(Value)> accumulate);
  Value clearMissing(size_t /*number*/, Value x) { return x; }

private:
  FailureOr<Value> forEachPlace(Value carried,
                                llvm::function_ref<FailureOr<Value>(Value carried)> body);
  LogicalResult emitWrites();
  LogicalResult emitRow();

  Kernel &kernel;
  fused::RowsOp op;
  const fused::RowsPlan &plan;
  int64_t width, head, sumNumber = 0;
  Value row, thread;
  Values columns;
  kernels::NormFactors factors;
};
} // namespace

FailureOr<Value> RowColumns::forEachPlace(Value carried,
                                          llvm::function_ref<FailureOr<Value>(Value)> body) {
  LogicalResult result = success();
  int64_t places = head ? width / 2 : width;
  Values after = k.loop(
      thread, k.constI32(places), plan.warps * kWarp, carried, [&](Value number, ValueRange now) {
        columns = {number};
        if (head) {
          Value first = k.add(k.mul(k.div(number, head / 2), head), k.rem(number, head / 2));
          columns = {first, k.add(first, head / 2)};
        }
        FailureOr<Value> next = body(now[0]);
        if (failed(next))
          result = failure();
        return Values{succeeded(next) ? *next : now[0]};
      });
  if (failed(result))
    return failure();
  return after[0];
}

FailureOr<Value> RowColumns::sumRow(llvm::function_ref<FailureOr<Value>(Value)> accumulate) {
  FailureOr<Value> own = forEachPlace(k.number(0.0), accumulate);
  if (failed(own))
    return failure();
  Value sum = *own;
  for (int64_t distance = kWarp / 2; distance; distance /= 2)
    sum = k.addF(sum, k.shuffleXor(sum, distance));
  // Each of a row's sums has a place of its own, so that one barrier is enough.
  Value place = k.offset(kernel.at(plan.warpSums), sumNumber++ * fused::rowSumStride(plan.warps));
  k.ifThen(k.equal(k.bitAnd(thread, kWarp - 1), k.constI32(0)),
           [&] { k.store(sum, k.at(place, k.shr(thread, 5), 4), 4); });
  k.barrier();
  Value total;
  for (int64_t warp = 0; warp < plan.warps; ++warp) {
    Value part = k.load(k.f32(), k.offset(place, warp * 4), 4);
    total = total ? k.addF(total, part) : part;
  }
  return total;
}

FailureOr<DeviceBuilder::Values> RowColumns::load(Value value) {
  Value pointer = kernel.interface.pointer(value);
  auto type = dyn_cast<RankedTensorType>(value.getType());
  if (!pointer || !kernels::isFloatTensor(value) || type.getShape().back() != width)
    return op.emitOpError() << "reads a value of type " << value.getType()
                            << " in a way that cannot be converted to GPU code";
  Type element = type.getElementType();
  int64_t bytes = bytesOf(element);
  Values elements;
  for (Value column : columns) {
    Value at =
        k.at(pointer, type.getRank() == 2 ? k.add(k.mul(row, width), column) : column, bytes);
    elements.push_back(isConstant(value) ? k.load(element, at, bytes)
                                         : k.loadFresh(element, at, bytes));
  }
  return elements;
}

FailureOr<kernels::Turn> RowColumns::turn(model::RotaryOp rotary) {
  if (!rotary.getTable())
    return rotary.emitOpError() << "needs a table (fused-tabulate-rotary makes one)";
  Value stored = k.load(k.i32(), k.at(kernel.interface.pointer(rotary.getPositions()), row, 4), 4);
  Value position = k.clampIndex(stored, rotary.getTable().getType().getDimSize(0));
  Value entry = k.add(k.mul(position, head), k.rem(columns[0], head));
  Value cosine = k.offset(kernel.interface.pointer(rotary.getTable()), k.mul(k.toI64(entry), 4));
  return kernels::Turn{{k.load(k.f32(), cosine, 4)},
                       {k.load(k.f32(), k.offset(cosine, head / 2 * 4), 4)}};
}

LogicalResult RowColumns::emitWrites() {
  kernels::RegionEvaluator<RowColumns> evaluator(*this, kernel.interface, factors);
  auto append = [&](model::CacheAppendOp append, const Values &elements) {
    FailureOr<kernels::AppendPlace> place =
        kernels::AppendPlace::get(k, kernel.interface, append, quantized::CacheLayout::MmaKeys,
                                  quantized::CacheLayout::MmaValues, "a kernel of rows on a GPU");
    if (failed(place))
      return failure();
    place->moveTo(k, kernel.interface, row);
    for (auto [column, value] : llvm::zip_equal(columns, elements))
      k.store(k.narrow(k.widen(value), place->element()), place->of(k, column), 2);
    return success();
  };
  auto yield = [&](unsigned result, const Values &elements) {
    Type element = cast<RankedTensorType>(op.getResult(result).getType()).getElementType();
    int64_t bytes = bytesOf(element);
    Value base = kernel.interface.resultPointer(result);
    for (auto [column, value] : llvm::zip_equal(columns, elements))
      k.store(k.narrow(k.widen(value), element),
              k.at(base, k.add(k.mul(row, width), column), bytes), bytes);
  };
  return kernels::emitWrites<RowColumns>(
      evaluator, op.getBody().front(), [](Operation &, Value) -> FailureOr<bool> { return true; },
      append, yield);
}

LogicalResult RowColumns::emit() {
  k.launchDependents();
  k.waitForPredecessor();
  row = k.block();
  thread = k.thread();
  LogicalResult result = success();
  ifActive(kernel, op.getActive(), row, [&] { result = emitRow(); });
  return result;
}

LogicalResult RowColumns::emitRow() {
  if (failed(kernels::evaluateNorms(*this, kernel.interface, op.getBody(), factors)))
    return failure();
  return forEachPlace(k.number(0.0), [&](Value carried) -> FailureOr<Value> {
    if (failed(emitWrites()))
      return failure();
    return carried;
  });
}

LogicalResult device::emitRows(Kernel &kernel, fused::RowsOp op) {
  FailureOr<fused::RowsPlan> plan = fused::RowsPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  return RowColumns(kernel, op, *plan).emit();
}
