// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The vocabulary that the generators of host kernels share: memory, arithmetic on scalars and
// vectors, loops.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELBUILDER_H
#define SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELBUILDER_H

#include "sluice/Conversion/Passes.h"
#include "sluice/Target/HostTarget.h"

namespace sluice::host {

/// Lanes of the vectors that kernels compute with: the rows of a tile. Narrower machines split
/// them.
inline constexpr unsigned kLanes = 16;

/// Builds the body of one kernel. Integers of addresses and counts are i64; floats of arithmetic
/// are f32, scalars or vectors alike.
class KernelBuilder {
public:
  using Value = mlir::Value;
  using Body = llvm::function_ref<llvm::SmallVector<Value>(Value index, mlir::ValueRange carried)>;

  KernelBuilder(mlir::OpBuilder builder, mlir::Location loc, Isa isa)
      : b(builder), loc(loc), isa(isa) {}

  mlir::OpBuilder b;
  const mlir::Location loc;
  const Isa isa;

  // Types.
  mlir::Type i8() { return b.getI8Type(); }
  mlir::Type i16() { return b.getI16Type(); }
  mlir::Type i32() { return b.getI32Type(); }
  mlir::Type i64() { return b.getI64Type(); }
  mlir::Type f16() { return b.getF16Type(); }
  mlir::Type f32() { return b.getF32Type(); }
  mlir::Type ptr() { return mlir::LLVM::LLVMPointerType::get(b.getContext()); }
  mlir::VectorType vec(int64_t lanes, mlir::Type element) {
    return mlir::VectorType::get({lanes}, element);
  }
  /// `shape`'s type (scalar or vector) with another element.
  mlir::Type like(mlir::Type shape, mlir::Type element);

  // Constants: of scalars, or the same in all lanes of a vector.
  Value integer(mlir::Type type, int64_t value);
  Value number(mlir::Type type, double value);
  Value index(int64_t value) { return integer(i64(), value); }
  /// Lanes 0, 1, 2, ...
  Value laneNumbers(int64_t lanes);

  // Arithmetic.
  Value add(Value x, Value y) { return b.createOrFold<mlir::arith::AddIOp>(loc, x, y); }
  Value sub(Value x, Value y) { return b.createOrFold<mlir::arith::SubIOp>(loc, x, y); }
  Value mul(Value x, Value y) { return b.createOrFold<mlir::arith::MulIOp>(loc, x, y); }
  Value add(Value x, int64_t y) { return add(x, integer(x.getType(), y)); }
  Value mul(Value x, int64_t y) { return mul(x, integer(x.getType(), y)); }
  Value div(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::DivUIOp>(loc, x, integer(x.getType(), y));
  }
  Value rem(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::RemUIOp>(loc, x, integer(x.getType(), y));
  }
  Value shl(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::ShLIOp>(loc, x, integer(x.getType(), y));
  }
  Value sar(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::ShRSIOp>(loc, x, integer(x.getType(), y));
  }
  Value shr(Value x, int64_t y) {
    return b.createOrFold<mlir::arith::ShRUIOp>(loc, x, integer(x.getType(), y));
  }
  Value min(Value x, Value y) { return b.createOrFold<mlir::arith::MinSIOp>(loc, x, y); }
  Value max(Value x, Value y) { return b.createOrFold<mlir::arith::MaxSIOp>(loc, x, y); }
  Value addF(Value x, Value y) { return mlir::arith::AddFOp::create(b, loc, x, y); }
  Value subF(Value x, Value y) { return mlir::arith::SubFOp::create(b, loc, x, y); }
  Value mulF(Value x, Value y) { return mlir::arith::MulFOp::create(b, loc, x, y); }
  Value divF(Value x, Value y) { return mlir::arith::DivFOp::create(b, loc, x, y); }
  Value fma(Value x, Value y, Value z) { return mlir::math::FmaOp::create(b, loc, x, y, z); }
  /// The greater, or `y` if `x` is not a number.
  Value maxF(Value x, Value y);
  Value less(Value x, Value y) {
    return mlir::arith::CmpIOp::create(b, loc, mlir::arith::CmpIPredicate::slt, x, y);
  }
  Value lessF(Value x, Value y) {
    return mlir::arith::CmpFOp::create(b, loc, mlir::arith::CmpFPredicate::OLT, x, y);
  }
  Value select(Value condition, Value x, Value y) {
    return mlir::arith::SelectOp::create(b, loc, condition, x, y);
  }
  Value extend(Value x, mlir::Type element);   ///< sign-extends integers
  Value truncate(Value x, mlir::Type element); ///< integers
  /// The same bits as another type; vectors may have another number of lanes.
  Value bitcast(Value x, mlir::Type type);
  Value toFloat(Value x); ///< i32 to f32
  /// Lanes of i32 plus the products of two words each: lane i of `words` (twice as many i16) and of
  /// the two words in `pair` (i32).
  Value multiplyAddPairs(Value sums, Value words, Value pair);
  /// E4M3 numbers (formats::floatToE4M3): f32 to i8 and i8 to f32.
  Value encodeE4M3(Value x);
  Value decodeE4M3(Value codes);
  /// Rounds to nearest even, result i32.
  Value roundToInt(Value x);

  /// f16, bf16 or f32 to f32.
  Value widen(Value x);
  /// f32 to f16, bf16 or f32, to nearest even, never by a call into a library.
  Value narrow(Value x, mlir::Type element);
  /// exp(x), within 2e-7 relative; infinity and zero where it leaves float32's range.
  Value exp(Value x);
  /// 2^x, likewise.
  Value exp2(Value x);
  /// x / (1 + exp(-x))
  Value silu(Value x);

  // Vectors.
  Value splat(Value scalar, int64_t lanes);
  Value shuffle(Value x, Value y, llvm::ArrayRef<int64_t> lanes) {
    return mlir::vector::ShuffleOp::create(b, loc, x, y, lanes);
  }
  Value slice(Value x, int64_t first, int64_t lanes);
  Value concat(Value x, Value y);
  /// Halves are combined until one lane is left: lane i with lane i + n/2, and so on.
  Value reduce(Value x, llvm::function_ref<Value(Value, Value)> combine);
  Value sumLanes(Value x) {
    return reduce(x, [&](Value l, Value r) { return addF(l, r); });
  }
  /// Lanes below `count` (i64).
  Value firstLanes(int64_t lanes, Value count);

  // Memory. Alignments are in bytes; addresses count bytes.
  Value offset(Value pointer, Value bytes);
  Value offset(Value pointer, int64_t bytes);
  Value load(mlir::Type type, Value pointer, unsigned alignment);
  void store(Value value, Value pointer, unsigned alignment);
  /// With a mask, lanes that are off are neither read (they are zero) nor written. A null mask is
  /// all lanes.
  Value load(mlir::VectorType type, Value pointer, unsigned alignment, Value mask);
  void store(Value value, Value pointer, unsigned alignment, Value mask);
  /// Floats of a narrower type in memory, float32 in registers. bfloat16 goes through integers:
  /// LLVM's own conversions are library calls on most machines, and appear where none was written.
  Value loadFloats(int64_t lanes, mlir::Type element, Value pointer, unsigned alignment,
                   Value mask = {});
  void storeFloats(Value value, mlir::Type element, Value pointer, unsigned alignment,
                   Value mask = {});
  /// 64-byte aligned stack memory of the whole call, in the function's entry block.
  Value scratch(int64_t bytes);
  /// A place that may lie outside of what `pointer` points to: for prefetch only.
  Value outside(Value pointer, Value bytes);
  /// Asks for a line, to be kept in all caches (locality 3), from the second on (2), or nowhere for
  /// long (0).
  void prefetch(Value pointer, unsigned locality);

  Value intrinsic(llvm::StringRef name, mlir::Type result, mlir::ValueRange operands);

  // Control flow.
  llvm::SmallVector<Value> loop(Value lower, Value upper, int64_t step, mlir::ValueRange carried,
                                Body body);
  void loop(Value lower, Value upper, int64_t step, llvm::function_ref<void(Value index)> body);
  void ifElse(Value condition, llvm::function_ref<void()> then,
              llvm::function_ref<void()> otherwise);
};

/// Bytes of a float or integer element, 1 or more.
inline int64_t bytesOf(mlir::Type element) { return element.getIntOrFloatBitWidth() / 8; }

} // namespace sluice::host

#endif // SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELBUILDER_H
