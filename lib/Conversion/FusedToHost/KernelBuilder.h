// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What generators of host kernels need beyond ComputeBuilder: vectors, masks, conversions.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELBUILDER_H
#define SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELBUILDER_H

#include "../FusedKernels/ComputeBuilder.h"

#include "sluice/Target/HostTarget.h"

namespace sluice::host {

using kernels::bytesOf;

/// Lanes of the vectors that kernels compute with: the rows of a tile. Narrower machines split
/// them.
inline constexpr unsigned kLanes = 16;

/// Builds the body of one kernel. Indices are i64.
class KernelBuilder : public kernels::ComputeBuilder {
public:
  /// What is generated, for messages.
  static constexpr llvm::StringLiteral kCode = "host code";

  KernelBuilder(mlir::OpBuilder builder, mlir::Location loc, Isa isa)
      : ComputeBuilder(builder, loc, builder.getI64Type()), isa(isa) {}

  const Isa isa;

  mlir::Type ptr() { return mlir::LLVM::LLVMPointerType::get(b.getContext()); }

  /// Lanes 0, 1, 2, ...
  Value laneNumbers(int64_t lanes);

  // Arithmetic.
  /// The greater of the two, or `y` if `x` is NaN.
  Value maxF(Value x, Value y);
  /// Lanes of i32 plus the products of two words each: lane i of `words` (twice as many i16) and of
  /// the two words in `pair` (i32).
  Value multiplyAddPairs(Value sums, Value words, Value pair);
  /// The same of four bytes each: lane i of `bytes` (i8 without a sign) and of the four with a sign
  /// in `four` (i32). Only where there is AVX-512 VNNI.
  Value multiplyAddBytes(Value sums, Value bytes, Value four);
  /// The E4M3 number (formats::floatToE4M3) nearest to an f32, i8.
  Value encodeE4M3(Value x);
  /// The E4M3 numbers in the low or in the high bytes of i16, divided by e4m3Divisor: an f16,
  /// exact.
  Value decodeE4M3Words(Value words, bool high);
  /// E4M3 numbers, i8, none of which is NaN, divided by e4m3Divisor: an f16, exact.
  Value decodeE4M3(Value codes);
  static constexpr double e4m3Divisor = 256;
  /// Rounds to nearest even, result i32.
  Value roundToInt(Value x);
  /// Converts f16, bf16 or f32 to f32.
  Value widen(Value x);
  /// Converts f32 to f16, bf16 or f32, to nearest even, never by a call into a library.
  Value narrow(Value x, mlir::Type element);
  /// exp(x), within 2e-7 relative; infinity and zero where it leaves float32's range.
  Value exp(Value x);
  Value erf(Value x) { return kernels::erf(*this, x); }
  /// 2^x for x below 127, within 2e-7 relative or 2^-125; NaN stays NaN, and 0 is exact.
  Value exp2(Value x);

  // Vectors.
  Value splat(Value scalar, int64_t lanes);
  Value shuffle(Value x, Value y, llvm::ArrayRef<int64_t> lanes) {
    return mlir::vector::ShuffleOp::create(b, loc, x, y, lanes);
  }
  Value slice(Value x, int64_t first, int64_t lanes);
  Value concat(Value x, Value y);
  /// Combines halves until one lane is left: lane i with lane i + n/2, and so on.
  Value reduce(Value x, llvm::function_ref<Value(Value, Value)> combine);
  Value sumLanes(Value x) {
    return reduce(x, [&](Value l, Value r) { return addF(l, r); });
  }
  /// The mask of lanes below `count` (i64).
  Value firstLanes(int64_t lanes, Value count);

  /// Lets no vector stay in a register from here on. For a loop that needs all of them, behind code
  /// with many constants: LLVM moves those to the function's start and keeps them, and the loop's
  /// sums go to the stack instead.
  void emptyRegisters();

  // Memory.
  using ComputeBuilder::load;
  using ComputeBuilder::store;
  /// Lanes that a mask turns off are neither read (they are zero) nor written. A null mask turns
  /// all lanes on.
  Value load(mlir::VectorType type, Value pointer, unsigned alignment, Value mask);
  void store(Value value, Value pointer, unsigned alignment, Value mask);
  /// Loads and stores floats of a narrower type that are float32 in registers. bfloat16 goes
  /// through integers: LLVM's own conversions are library calls on most machines, and appear where
  /// none was written.
  Value loadFloats(int64_t lanes, mlir::Type element, Value pointer, unsigned alignment,
                   Value mask = {});
  void storeFloats(Value value, mlir::Type element, Value pointer, unsigned alignment,
                   Value mask = {});
  /// 64-byte aligned stack memory, allocated in the function's entry block.
  Value scratch(int64_t bytes);
  /// A pointer that may lie outside of what `pointer` points to: for prefetch only.
  Value outside(Value pointer, Value bytes);
  /// Prefetches a line into all caches (locality 3), from the second on (2), or without keeping it
  /// (0).
  void prefetch(Value pointer, unsigned locality);

  Value intrinsic(llvm::StringRef name, mlir::Type result, mlir::ValueRange operands);
};

} // namespace sluice::host

#endif // SLUICE_LIB_CONVERSION_FUSEDTOHOST_KERNELBUILDER_H
