// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice/Transforms/Passes.h"

#include "llvm/ADT/MapVector.h"
#include "llvm/Support/DebugLog.h"

#define DEBUG_TYPE "fused-tabulate-rotary"

namespace sluice {
#define GEN_PASS_DEF_FUSEDTABULATEROTARY
#include "lib/Transforms/Passes.h.inc"

namespace {
using namespace mlir;

struct FusedTabulateRotary : impl::FusedTabulateRotaryBase<FusedTabulateRotary> {
  using FusedTabulateRotaryBase::FusedTabulateRotaryBase;
  void runOnOperation() override;

private:
  /// The number of rows of every table; emits an error if it cannot be known.
  FailureOr<int64_t> chooseRows(model::RotaryOp first);
};

FailureOr<int64_t> FusedTabulateRotary::chooseRows(model::RotaryOp first) {
  if (context > static_cast<uint64_t>(std::numeric_limits<int32_t>::max()))
    return emitError(getOperation().getLoc())
           << "context must be at most 2147483647, found " << context.getValue();
  int64_t rows = static_cast<int64_t>(context);
  model::CacheOp largest;
  for (auto cache : getOperation().getOps<model::CacheOp>())
    if (!largest || cache.getCacheType().getPositions() > largest.getCacheType().getPositions())
      largest = cache;
  int64_t positions = largest ? largest.getCacheType().getPositions() : 0;
  if (rows && rows < positions)
    return emitError(getOperation().getLoc())
           << "context must be at least the " << positions << " positions of @"
           << largest.getSymName() << ", found " << rows;
  if (!rows && !positions)
    return first.emitOpError()
           << "needs option context, as the module has no cache to take the positions from";
  return rows ? rows : positions;
}

void FusedTabulateRotary::runOnOperation() {
  SmallVector<model::RotaryOp> rotaries;
  getOperation().walk([&](model::RotaryOp op) {
    if (!op.getTable())
      rotaries.push_back(op);
  });
  if (rotaries.empty())
    return markAllAnalysesPreserved();
  FailureOr<int64_t> rows = chooseRows(rotaries.front());
  if (failed(rows))
    return signalPassFailure();

  SymbolTable symbols(getOperation());
  OpBuilder builder(&getContext());
  Type f32 = builder.getF32Type();
  // Tables that an earlier run or a hand has made serve again.
  DenseMap<std::pair<model::RopeAttr, Type>, model::RopeTableOp> tables;
  for (auto table : getOperation().getOps<model::RopeTableOp>())
    tables.try_emplace({table.getRope(), table.getType()}, table);
  DenseMap<std::pair<Operation *, model::RopeTableOp>, Value> values;

  for (model::RotaryOp op : rotaries) {
    auto function = op->getParentOfType<func::FuncOp>();
    if (!function || function->getParentOp() != getOperation()) {
      op.emitOpError() << "is not inside a function of the module";
      return signalPassFailure();
    }
    auto type = RankedTensorType::get({*rows, static_cast<int64_t>(op.getHeadDim())}, f32);
    model::RopeTableOp &table = tables[{op.getRope(), type}];
    if (!table) {
      builder.setInsertionPoint(function);
      table = model::RopeTableOp::create(builder, op.getLoc(), "rope", op.getRope(), type);
      symbols.insert(table);
      LDBG() << "made @" << table.getSymName();
    }
    Value &value = values[{function, table}];
    if (!value) {
      builder.setInsertionPointToStart(&function.front());
      value = model::ParameterOp::create(builder, op.getLoc(), type,
                                         FlatSymbolRefAttr::get(table.getSymNameAttr()));
    }
    op.getTableMutable().assign(value);
  }
}
} // namespace
} // namespace sluice
