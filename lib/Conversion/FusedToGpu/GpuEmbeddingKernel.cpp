// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Kernels.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Format;

/// Neighbouring columns that a thread reads at a time.
static constexpr int64_t kColumns = 2;

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

FailureOr<Launch> device::emitEmbedding(Kernel &kernel, fused::EmbeddingOp op) {
  DeviceBuilder &k = kernel.k;
  Type table = op.getTable().getType(), element;
  int64_t rows, width = op.getResult().getType().getDimSize(1);
  if (auto quantized = dyn_cast<quantized::QuantizedTensorType>(table)) {
    if (quantized.getLayout().getKind() != quantized::LayoutKind::Rows)
      return op.emitOpError() << "table must have layout rows, found " << table;
    rows = quantized.getRows();
    element = quantized.getFormat().getElement();
  } else {
    rows = cast<RankedTensorType>(table).getDimSize(0);
    element = cast<RankedTensorType>(table).getElementType();
  }
  if (width % kColumns)
    return op.emitOpError() << "has rows of " << width
                            << " columns, GPU kernels need an even number";
  auto shape =
      formats::PackedShape::get(formatOf(table), {formats::Layout::Kind::Rows}, rows, width);
  if (!shape)
    return op.emitOpError() << llvm::toString(shape.takeError());

  Launch launch;
  int64_t tokens = op.getTokens().getType().getDimSize(0);
  launch.block = kernel.schedule.getWarps() * kWarp;
  if (launch.block < kWarp || launch.block > 1024)
    return op.emitOpError() << "cannot run with " << kernel.schedule << ": warps must be 1 to 32";
  // What the schedule leaves of blocks for each token.
  int64_t parts = std::max<int64_t>(1, kernel.schedule.getBlocks() / tokens);
  launch.grid = parts * tokens;

  k.launchDependents();
  Value block = k.block();
  Value number = tokens == 1 ? k.constI32(0) : k.div(block, parts);
  Value part = tokens == 1 ? block : k.rem(block, parts);
  Value token =
      k.load(k.i32(), k.offset(kernel.interface.pointer(op.getTokens()), k.shl(number, 2)), 4);
  // The runtime checks tokens; a wrong one must not reach memory outside the table.
  token = k.max(k.min(token, k.constI32(rows - 1)), k.constI32(0));
  Value row = k.offset(kernel.interface.pointer(op.getTable()),
                       k.mul(k.extendUnsigned(token, k.i64()), shape->tileBytes()));
  Value result = k.offset(kernel.interface.resultPointer(0), k.mul(number, width * 4));
  Value first = k.shl(k.add(k.mul(part, launch.block), k.thread()), 1);
  auto store = [&](Value column) {
    DeviceBuilder::Values values = emitPair(k, *shape, element, row, column);
    k.store(k.vectorOf(values), k.offset(result, k.shl(column, 2)), 8);
  };
  int64_t atOnce = parts * launch.block * kColumns;
  if (atOnce >= width)
    k.ifThen(k.less(first, k.constI32(width)), [&] { store(first); });
  else
    k.loop(first, k.constI32(width), k.constI32(atOnce), store);
  return launch;
}
