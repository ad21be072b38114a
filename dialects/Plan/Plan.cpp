// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "dialects/Plan/Plan.h"

#include "dialects/Fused/PreparedInput.h"

#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "llvm/ADT/SetVector.h"
#include "llvm/ADT/TypeSwitch.h"
#include "llvm/Support/MathExtras.h"

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
                                 int64_t block, int64_t shared, int64_t cluster, bool overlap,
                                 bool cooperative) {
  if (grid < 1 || block < 0 || shared < 0 || cluster < 1)
    return emitError()
           << "grid and cluster must be positive, block and shared must not be negative";
  if (grid % cluster)
    return emitError() << "grid (" << grid << ") must be a multiple of cluster (" << cluster << ")";
  if (cooperative && block == 0)
    return emitError() << "only blocks of a GPU can wait for each other (cooperative)";
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

/// Bytes of a tensor's elements (and scales and zero points) without any padding: the least that a
/// buffer of it has. Nothing if that is unknown or more than a 63-bit number.
static std::optional<int64_t> leastBytes(Type type) {
  if (auto prepared = dyn_cast<fused::PreparedType>(type))
    return fused::preparedBytes(prepared);
  if (auto cache = dyn_cast<quantized::CacheType>(type))
    return cache.getBytes();
  int64_t bytes = 0;
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(type)) {
    if (llvm::MulOverflow(quantized.getRows(),
                          quantized.getEncoding().getValue().bytesPerRow(quantized.getColumns()),
                          bytes))
      return std::nullopt;
    return bytes;
  }
  auto tensor = dyn_cast<RankedTensorType>(type);
  if (!tensor || !tensor.hasStaticShape() || !tensor.getElementType().isIntOrFloat())
    return std::nullopt;
  bytes = llvm::divideCeil(tensor.getElementTypeBitWidth(), 8);
  for (int64_t dim : tensor.getShape())
    if (llvm::MulOverflow(bytes, dim, bytes))
      return std::nullopt;
  return bytes;
}

LogicalResult BufferOp::verify() {
  bool arena = getKind() == BufferKind::Arena;
  // Accessors of signless attributes are unsigned.
  auto isNegative = [](std::optional<uint64_t> value) {
    return static_cast<int64_t>(value.value_or(0)) < 0;
  };
  if (isNegative(getBytes()) || getBytes() == 0)
    return emitOpError() << "must have a positive size";
  std::optional<int64_t> least = leastBytes(getType());
  if (!least)
    return emitOpError() << "has type " << getType() << ", expected a tensor of a known size";
  if (static_cast<int64_t>(getBytes()) < *least)
    return emitOpError() << "has " << getBytes() << " bytes, but its type needs " << *least;
  if (arena != getOffset().has_value() || arena != getFirst().has_value() ||
      arena != getLast().has_value())
    return emitOpError() << "an arena buffer, and no other, has an offset and a lifetime";
  if (arena && (isNegative(getOffset()) || isNegative(getFirst()) || *getLast() < *getFirst()))
    return emitOpError() << "offset and lifetime are out of order";
  if (getFedBy() && getKind() != BufferKind::Input)
    return emitOpError() << "only an input can be fed by an output";
  return success();
}

LogicalResult BufferOp::verifySymbolUses(SymbolTableCollection &symbols) {
  FlatSymbolRefAttr feeder = getFedByAttr();
  if (!feeder)
    return success();
  auto output = symbols.lookupNearestSymbolFrom<BufferOp>(*this, feeder);
  if (!output || output.getKind() != BufferKind::Output)
    return emitOpError() << "is fed by " << feeder << ", which is no output";
  if (output.getType() != getType() || output.getBytes() != getBytes())
    return emitOpError() << "is fed by " << feeder << " of type " << output.getType() << " and "
                         << output.getBytes() << " bytes, expected " << getType() << " and "
                         << getBytes();
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

/// No launch uses a buffer that is not alive, and no two buffers share bytes while both are alive.
static LogicalResult verifyLifetimes(StepOp step, SymbolTableCollection &symbols) {
  llvm::SetVector<BufferOp> buffers;
  for (auto [index, launch] : llvm::enumerate(step.getBody().getOps<LaunchOp>()))
    for (auto argument : launch.getArguments().getAsRange<FlatSymbolRefAttr>()) {
      auto buffer = symbols.lookupNearestSymbolFrom<BufferOp>(step, argument);
      if (!buffer || buffer.getKind() != BufferKind::Arena)
        continue;
      if (index < *buffer.getFirst() || index > *buffer.getLast())
        return launch.emitOpError()
               << "is launch " << index << " and uses " << argument << ", which is alive from "
               << *buffer.getFirst() << " to " << *buffer.getLast();
      buffers.insert(buffer);
    }
  auto overlap = [](uint64_t begin, uint64_t end, uint64_t otherBegin, uint64_t otherEnd) {
    return begin < otherEnd && otherBegin < end;
  };
  for (size_t i = 0; i < buffers.size(); ++i)
    for (size_t j = 0; j < i; ++j) {
      BufferOp a = buffers[j], b = buffers[i];
      if (overlap(*a.getOffset(), *a.getOffset() + a.getBytes(), *b.getOffset(),
                  *b.getOffset() + b.getBytes()) &&
          overlap(*a.getFirst(), *a.getLast() + 1, *b.getFirst(), *b.getLast() + 1))
        return b.emitOpError() << "shares bytes with @" << a.getSymName()
                               << " while both are alive";
    }
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
  if (&step.getBody().front().front() == getOperation() && failed(verifyLifetimes(step, symbols)))
    return failure();
  return verifyKernel(*this, getKernel(), symbols);
}

#define GET_OP_CLASSES
#include "dialects/Plan/PlanOps.cpp.inc"
