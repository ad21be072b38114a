// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Kernels.h"

#include "dialects/Fused/Weights.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Format;

static constexpr int64_t kColumns = fused::EmbeddingPlan::kColumns;

/// Columns `column` and `column` + 1 of a row, as float32.
static DeviceBuilder::Values emitPair(DeviceBuilder &k, const formats::PackedShape &shape,
                                      Type element, Value row, Value column) {
  Format format = shape.format();
  if (!format.isInteger()) {
    int64_t bytes = bytesOf(element);
    Value place = k.offset(row, k.mul(column, bytes));
    // A plain row may start at any element.
    DeviceBuilder::Values values;
    for (int64_t c = 0; c < kColumns; ++c)
      values.push_back(k.widen(k.load(element, k.offset(place, c * bytes), bytes)));
    return values;
  }
  DeviceBuilder::Values q;
  if (format.element == Format::Element::I8) {
    for (Value byte : k.lanes(k.load(k.vec(2, k.i8()), k.offset(row, column), 2)))
      q.push_back(k.extend(byte, k.i32()));
  } else {
    Value byte = k.extend(k.load(k.i8(), k.offset(row, k.shr(column, 1)), 1), k.i32());
    auto signedNibble = [&](int64_t shift) {
      Value top = k.shl(byte, shift);
      return arith::ShRSIOp::create(k.b, k.loc, top, k.constI32(28)).getResult();
    };
    q = {signedNibble(28), signedNibble(24)};
  }
  // Groups have an even number of columns or are the whole row, so both columns share one.
  Value group = format.group == Format::channel ? k.constI32(0) : k.div(column, format.group);
  Value scales = k.offset(row, shape.chunkScales(0));
  Value scale = k.widen(k.load(k.f16(), k.offset(scales, k.shl(group, 1)), 2));
  if (format.zeroPoint) {
    Value zeros = k.offset(row, shape.chunkZeros(0));
    Value zero = k.extend(k.load(k.i8(), k.offset(zeros, group), 1), k.i32());
    for (Value &value : q)
      value = k.sub(value, zero);
  }
  DeviceBuilder::Values values;
  for (Value value : q)
    values.push_back(k.mulF(k.toFloat(value), scale));
  return values;
}

LogicalResult device::emitEmbedding(Kernel &kernel, fused::EmbeddingOp op) {
  FailureOr<fused::EmbeddingPlan> plan =
      fused::EmbeddingPlan::get(op, kernel.schedule, kernel.device);
  if (failed(plan))
    return failure();
  DeviceBuilder &k = kernel.k;
  const formats::PackedShape &shape = plan->shape;
  Type element = fused::elementOf(op.getTable().getType());
  int64_t width = shape.columns(), tokens = plan->tokens, parts = plan->parts;

  k.launchDependents();
  Value block = k.block();
  Value number = tokens == 1 ? k.constI32(0) : k.div(block, parts);
  Value part = tokens == 1 ? block : k.rem(block, parts);
  Value token =
      k.load(k.i32(), k.offset(kernel.interface.pointer(op.getTokens()), k.shl(number, 2)), 4);
  Value row = k.offset(kernel.interface.pointer(op.getTable()),
                       k.mul(k.toI64(k.clampIndex(token, shape.rows())), shape.tileBytes()));
  Value result = k.offset(kernel.interface.resultPointer(0), k.mul(number, width * 4));
  Value first = k.shl(k.add(k.mul(part, plan->threads), k.thread()), 1);
  auto store = [&](Value column) {
    DeviceBuilder::Values values = emitPair(k, shape, element, row, column);
    k.store(k.vectorOf(values), k.offset(result, k.shl(column, 2)), 8);
  };
  int64_t atOnce = parts * plan->threads * kColumns;
  if (atOnce >= width)
    k.ifThen(k.less(first, k.constI32(width)), [&] { store(first); });
  else
    k.loop(first, k.constI32(width), k.constI32(atOnce), store);
  return success();
}
