// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a group of a packed matrix is multiplied by and what is added to it
// (sluice/Formats/Encoding.h, Packing.h), as code.

#ifndef SLUICE_LIB_CONVERSION_FUSEDKERNELS_GROUPNUMBERS_H
#define SLUICE_LIB_CONVERSION_FUSEDKERNELS_GROUPNUMBERS_H

#include "ComputeBuilder.h"

#include "sluice/Formats/Packing.h"

namespace sluice::kernels {

/// How a kernel reads the numbers that stand behind the elements: of one row, or of several rows in
/// the lanes of a vector. `section` is where numbers of a kind begin (PackedShape::chunkScales,
/// chunkOffsets, chunkSupers), `number` (index type) counts them, a row's own ones only.
struct GroupReader {
  /// A float of type `element`, as float32.
  llvm::function_ref<mlir::Value(int64_t section, mlir::Value number, mlir::Type element)> real;
  /// A byte, zero-extended to i32.
  llvm::function_ref<mlir::Value(int64_t section, mlir::Value number)> byte;
};

/// The type of scales that are floats themselves: f16, bf16 or f32.
mlir::Type scaleType(ComputeBuilder &k, const formats::Encoding &format);

/// A group's numbers, each of the shape that the reader gives; null if the encoding has none.
struct GroupNumbers {
  mlir::Value scale;  ///< float32
  mlir::Value offset; ///< float32
  mlir::Value zero;   ///< i32
};

/// Emits the numbers of group `group` (index type), which lies in super-block `super`. `odd` says
/// whether the group's number is odd, if that is known.
GroupNumbers emitGroupNumbers(ComputeBuilder &k, const formats::PackedShape &shape,
                              const GroupReader &reader, mlir::Value group, mlir::Value super,
                              std::optional<bool> odd = std::nullopt);

} // namespace sluice::kernels

#endif // SLUICE_LIB_CONVERSION_FUSEDKERNELS_GROUPNUMBERS_H
