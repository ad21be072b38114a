// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Plan/Plan.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::plan;

#include "dialects/Plan/PlanDialect.cpp.inc"
#include "dialects/Plan/PlanEnums.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "dialects/Plan/PlanAttrs.cpp.inc"

void PlanDialect::initialize() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "dialects/Plan/PlanAttrs.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialects/Plan/PlanOps.cpp.inc"
      >();
}

LogicalResult LaunchAttr::verify(function_ref<InFlightDiagnostic()> emitError, int64_t grid,
                                 int64_t block, int64_t shared, int64_t cluster, bool overlap) {
  if (grid < 1 || block < 0 || shared < 0 || cluster < 1)
    return emitError()
           << "grid and cluster must be positive, block and shared must not be negative";
  if (grid % cluster)
    return emitError() << "grid (" << grid << ") must be a multiple of cluster (" << cluster << ")";
  return success();
}

static LogicalResult verifyKernel(Operation *op, SymbolRefAttr kernel,
                                  SymbolTableCollection &symbols) {
  if (!symbols.lookupNearestSymbolFrom(op, kernel))
    return op->emitOpError() << "names an unknown kernel " << kernel;
  return success();
}

LogicalResult DispatchOp::verifySymbolUses(SymbolTableCollection &symbols) {
  for (auto cache : getCaches().getAsRange<FlatSymbolRefAttr>())
    if (!symbols.lookupNearestSymbolFrom<model::CacheOp>(*this, cache))
      return emitOpError() << "names an unknown cache " << cache;
  return verifyKernel(*this, getKernel(), symbols);
}

LogicalResult BufferOp::verify() {
  bool arena = getKind() == BufferKind::Arena;
  // Accessors of signless attributes are unsigned.
  auto isNegative = [](std::optional<uint64_t> value) {
    return static_cast<int64_t>(value.value_or(0)) < 0;
  };
  if (isNegative(getBytes()) || getBytes() == 0)
    return emitOpError() << "must have a positive size";
  if (arena != getOffset().has_value() || arena != getFirst().has_value() ||
      arena != getLast().has_value())
    return emitOpError() << "an arena buffer, and no other, has an offset and a lifetime";
  if (arena && (isNegative(getOffset()) || isNegative(getFirst()) || *getLast() < *getFirst()))
    return emitOpError() << "offset and lifetime are out of order";
  return success();
}

LogicalResult StepOp::verify() {
  if (static_cast<int64_t>(getArenaBytes()) < 0)
    return emitOpError() << "arena must not be negative";
  for (Operation &op : getBody().front())
    if (!isa<LaunchOp>(op))
      return emitOpError() << "holds launches only, found " << op.getName();
  return success();
}

LogicalResult LaunchOp::verifySymbolUses(SymbolTableCollection &symbols) {
  auto step = cast<StepOp>((*this)->getParentOp());
  for (auto argument : getArguments().getAsRange<FlatSymbolRefAttr>()) {
    auto buffer = symbols.lookupNearestSymbolFrom<BufferOp>(step, argument);
    if (!buffer)
      return emitOpError() << "names an unknown buffer " << argument;
    if (buffer.getKind() == BufferKind::Arena &&
        (buffer.getBytes() > step.getArenaBytes() ||
         *buffer.getOffset() > step.getArenaBytes() - buffer.getBytes()))
      return emitOpError() << "uses " << argument << ", which ends outside the arena of "
                           << step.getArenaBytes() << " bytes";
  }
  return verifyKernel(*this, getKernel(), symbols);
}

#define GET_OP_CLASSES
#include "dialects/Plan/PlanOps.cpp.inc"
