// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "../FusedKernels/GroupNumbers.h"
#include "ActiveTokens.h"
#include "Products.h"

#include "dialects/Fused/Weights.h"

using namespace mlir;
using namespace sluice;
using namespace sluice::host;
using formats::Encoding;

/// One plane of 16 elements, from the row's element `column` (a multiple of 16) on, in lanes of i32
/// whose other bits are zero. Bytes beyond a row's last element are its scales: a row ends with
/// those.
static Value emitPlane(KernelBuilder &k, Value elements, Value column, int64_t width) {
  VectorType words = k.vec(kLanes, k.i32());
  Value pointer = k.offset(elements, k.div(k.mul(column, width), 8));
  Value lanes = k.laneNumbers(kLanes);
  if (width == 1) {
    Value bits = k.extendUnsigned(k.load(k.i16(), pointer, 1), k.i32());
    Value shifted = arith::ShRUIOp::create(k.b, k.loc, k.splat(bits, kLanes), lanes);
    return k.bitAnd(shifted, k.integer(words, 1));
  }
  // A word has 32 / width elements.
  int64_t inWord = 32 / width;
  Value bits = k.splat(k.load(k.i32(), pointer, 1), kLanes);
  if (inWord < kLanes) {
    assert(width == 4 && "bytes are loaded as such");
    Value upper = k.splat(k.load(k.i32(), k.offset(pointer, 4), 1), kLanes);
    bits = k.select(k.less(lanes, k.integer(words, inWord)), bits, upper);
  }
  Value shift = k.mul(k.bitAnd(lanes, k.integer(words, inWord - 1)), width);
  Value shifted = arith::ShRUIOp::create(k.b, k.loc, bits, shift);
  return k.bitAnd(shifted, k.integer(words, (1 << width) - 1));
}

/// The numbers that 16 elements stand for, as float32 (E4M3: divided by 256) or i32.
static Value emitNumbers(KernelBuilder &k, const formats::PackedShape &shape, Value row,
                         Value column, Value mask) {
  const Encoding &format = shape.format();
  if (format.bits() == 8) {
    Value bytes = k.load(k.vec(kLanes, k.i8()), k.offset(row, column), 1, mask);
    return format.isInteger() ? k.extend(bytes, k.i32()) : k.widen(k.decodeE4M3(bytes));
  }
  Value q, elements = row;
  for (Encoding::Plane plane : format.planes()) {
    Value piece = emitPlane(k, elements, column, plane.width);
    elements = k.offset(elements, (shape.columns() * plane.width + 7) / 8);
    if (plane.low)
      piece = k.shl(piece, plane.low);
    q = q ? k.bitOr(q, piece) : piece;
  }
  if (format.code() == Encoding::Code::Signed) {
    int64_t unused = 32 - format.bits();
    return k.sar(k.shl(q, unused), unused);
  }
  if (format.code() == Encoding::Code::Unsigned)
    return q;
  SmallVector<int8_t> entries(format.table());
  VectorType bytes = k.vec(kLanes, k.i8());
  Value table = arith::ConstantOp::create(k.b, k.loc,
                                          DenseElementsAttr::get(bytes, ArrayRef<int8_t>(entries)));
  Value found = k.intrinsic("llvm.x86.ssse3.pshuf.b.128", bytes, {table, k.truncate(q, k.i8())});
  return k.extend(found, k.i32());
}

/// Columns [column, column + 16) of the row at `row`, as float32; `count` of them exist.
static Value emitColumns(KernelBuilder &k, const formats::PackedShape &shape, Type element,
                         Value row, Value column, int64_t count) {
  const Encoding &format = shape.format();
  Value mask = count < kLanes ? k.firstLanes(kLanes, k.index(count)) : Value();
  if (!format.isScaled()) {
    int64_t bytes = bytesOf(element);
    return k.loadFloats(kLanes, element, k.offset(row, k.mul(column, bytes)), bytes, mask);
  }
  Value elements = emitNumbers(k, shape, row, column, mask);
  // A group is a multiple of 16 columns or the whole row, so these share one.
  auto real = [&](int64_t section, Value number, Type type) {
    int64_t bytes = bytesOf(type);
    return k.widen(k.load(type, k.offset(row, k.add(k.mul(number, bytes), section)), bytes));
  };
  auto byte = [&](int64_t section, Value number) {
    return k.extendUnsigned(k.load(k.i8(), k.offset(row, k.add(number, section)), 1), k.i32());
  };
  Value group = format.group == Encoding::channel ? k.index(0) : k.div(column, format.group);
  kernels::GroupNumbers numbers = kernels::emitGroupNumbers(k, shape, {real, byte}, group,
                                                            k.div(column, Encoding::superColumns));
  if (numbers.zero)
    elements = k.sub(elements, k.splat(numbers.zero, kLanes));
  Value floats = format.isInteger()
                     ? k.toFloat(elements)
                     : k.mulF(elements, k.constantLike(elements, KernelBuilder::e4m3Divisor));
  Value values = k.mulF(floats, k.splat(numbers.scale, kLanes));
  return numbers.offset ? k.addF(values, k.splat(numbers.offset, kLanes)) : values;
}

FailureOr<int64_t> sluice::host::emitEmbedding(KernelBuilder &k, fused::EmbeddingOp op,
                                               const KernelInterface &interface, Value begin,
                                               Value end) {
  FailureOr<formats::PackedShape> table = fused::tableShape(op);
  if (failed(table))
    return failure();
  const formats::PackedShape &shape = *table;
  Type element = fused::elementOf(op.getTable().getType());
  int64_t width = shape.columns();

  int64_t tokens = op.getTokens().getType().getDimSize(0);
  if (op.getActive())
    std::tie(begin, end) =
        shareOf(k, activeTokens(k, interface, op.getActive(), tokens), begin, end, tokens);
  k.loop(begin, end, 1, [&](Value number) {
    Value token = k.load(k.i32(), k.offset(interface.pointer(op.getTokens()), k.mul(number, 4)), 4);
    Value row = k.offset(interface.pointer(op.getTable()),
                         k.mul(k.toIndex(k.clampIndex(token, shape.rows())), shape.tileBytes()));
    Value result = k.offset(interface.resultPointer(0), k.mul(number, width * 4));
    int64_t full = width / kLanes * kLanes;
    if (full)
      k.loop(k.index(0), k.index(full), kLanes, [&](Value column) {
        k.store(emitColumns(k, shape, element, row, column, kLanes),
                k.offset(result, k.mul(column, 4)), 4);
      });
    if (full < width) {
      Value lanes = emitColumns(k, shape, element, row, k.index(full), width - full);
      k.store(lanes, k.offset(result, full * 4), 4, k.firstLanes(kLanes, k.index(width - full)));
    }
  });
  return tokens;
}
