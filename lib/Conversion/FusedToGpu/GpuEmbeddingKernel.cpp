// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "../FusedKernels/GroupNumbers.h"
#include "Kernels.h"

#include "dialects/Fused/Weights.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::device;
using formats::Encoding;

static constexpr int64_t kColumns = fused::EmbeddingPlan::kColumns;

/// The entry of the encoding's table that an index of 4 bits names.
static Value lookUp(DeviceBuilder &k, const Encoding &format, Value index) {
  auto eight = [&](size_t first) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < 8; ++i)
      bytes |= uint64_t(static_cast<uint8_t>(format.table()[first + i])) << (8 * i);
    return k.integer(k.i64(), static_cast<int64_t>(bytes));
  };
  Value half = k.select(k.less(index, k.constI32(8)), eight(0), eight(8));
  Value shift = k.toI64(k.shl(k.bitAnd(index, 7), 3));
  Value found = arith::ShRUIOp::create(k.b, k.loc, half, shift);
  return k.extend(k.truncate(found, k.i8()), k.i32());
}

/// The numbers of columns `column` (even) and `column` + 1 of a row: i32, of E4M3 float32.
static DeviceBuilder::Values emitNumbers(DeviceBuilder &k, const formats::PackedShape &shape,
                                         Value row, Value column) {
  const Encoding &format = shape.format();
  DeviceBuilder::Values q(kColumns);
  if (!format.isInteger()) {
    Value word = k.extendUnsigned(k.load(k.i16(), k.offset(row, column), 2), k.i32());
    Value pair = k.bitcast(k.decodeE4M3(word, /*mayBeNan=*/false)[0], k.vec(2, k.f16()));
    for (auto [c, half] : llvm::enumerate(k.lanes(pair)))
      q[c] = k.mulF(k.widen(half), k.number(DeviceBuilder::e4m3Divisor));
    return q;
  }
  if (format.bits() == 8) {
    for (auto [c, byte] :
         llvm::enumerate(k.lanes(k.load(k.vec(2, k.i8()), k.offset(row, column), 2))))
      q[c] = k.extend(byte, k.i32());
    return q;
  }
  // A plane has both columns in one byte.
  int64_t start = 0;
  for (Encoding::Plane plane : format.planes()) {
    Value bit = k.mul(column, plane.width);
    Value at = k.offset(k.offset(row, start), k.shr(bit, 3));
    Value byte = k.extendUnsigned(k.load(k.i8(), at, 1), k.i32());
    if (plane.width < 4)
      byte = arith::ShRUIOp::create(k.b, k.loc, byte, k.bitAnd(bit, 7));
    for (int64_t c = 0; c < kColumns; ++c) {
      Value piece = c ? k.shr(byte, c * plane.width) : byte;
      piece = k.shl(k.bitAnd(piece, (1 << plane.width) - 1), plane.low);
      q[c] = q[c] ? k.bitOr(q[c], piece) : piece;
    }
    start += (shape.columns() * plane.width + 7) / 8;
  }
  for (Value &value : q) {
    if (format.code() == Encoding::Code::Signed)
      value = k.sar(k.shl(value, 32 - format.bits()), 32 - format.bits());
    else if (format.code() == Encoding::Code::Table)
      value = lookUp(k, format, value);
  }
  return q;
}

/// Columns `column` (even) and `column` + 1 of a row, as float32.
static DeviceBuilder::Values emitPair(DeviceBuilder &k, const formats::PackedShape &shape,
                                      Type element, Value row, Value column) {
  const Encoding &format = shape.format();
  DeviceBuilder::Values values;
  if (!format.isScaled()) {
    int64_t bytes = bytesOf(element);
    Value place = k.offset(row, k.mul(column, bytes));
    // A plain row may start at any element.
    for (int64_t c = 0; c < kColumns; ++c)
      values.push_back(k.widen(k.load(element, k.offset(place, c * bytes), bytes)));
    return values;
  }
  DeviceBuilder::Values numbersOfPair = emitNumbers(k, shape, row, column);
  // Groups have an even number of columns or are the whole row, so both columns share one.
  auto real = [&](int64_t section, Value number, Type type) {
    int64_t bytes = bytesOf(type);
    return k.widen(k.load(type, k.offset(k.offset(row, section), k.mul(number, bytes)), bytes));
  };
  auto byte = [&](int64_t section, Value number) {
    return k.extendUnsigned(k.load(k.i8(), k.offset(k.offset(row, section), number), 1), k.i32());
  };
  Value group = format.group == Encoding::channel ? k.constI32(0) : k.div(column, format.group);
  kernels::GroupNumbers numbers = kernels::emitGroupNumbers(k, shape, {real, byte}, group,
                                                            k.div(column, Encoding::superColumns));
  for (Value value : numbersOfPair) {
    if (numbers.zero)
      value = k.sub(value, numbers.zero);
    value = k.mulF(format.isInteger() ? k.toFloat(value) : value, numbers.scale);
    values.push_back(numbers.offset ? k.addF(value, numbers.offset) : value);
  }
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
  ifActive(kernel, op.getActive(), number, [&] {
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
  });
  return success();
}
