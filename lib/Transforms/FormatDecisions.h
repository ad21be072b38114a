// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How a decision about a number format is written into the IR, whoever makes it.

#ifndef SLUICE_LIB_TRANSFORMS_FORMATDECISIONS_H
#define SLUICE_LIB_TRANSFORMS_FORMATDECISIONS_H

#include "sluice/Formats/CacheScheme.h"

#include "dialects/Model/Model.h"
#include "dialects/Quantized/Quantized.h"

namespace sluice {

/// The name of a weight's symbol, behind quantize and dequantize; "a weight" if it has none.
std::string weightName(mlir::Value weight);

/// Whether `sluice.decision` stands on an operation.
bool isDecided(mlir::Operation *op);

/// Writes `sluice.decision` and `sluice.reason` onto an operation.
void setDecision(mlir::Operation *op, llvm::StringRef decision, llvm::StringRef reason);

/// Puts quantize and dequantize behind `weight`, and returns the dequantized matrix.
mlir::Value quantizeWeight(mlir::Value weight, quantized::EncodingAttr encoding,
                           llvm::StringRef reason);

/// Gives a cache its encoding.
void decideCache(model::CacheOp cache, const formats::CacheChoice &choice, llvm::StringRef reason);

/// Rotates the query of a layer and what is appended to its keys. The head size is even.
void rotateKeys(model::AttentionOp attention);

} // namespace sluice

#endif // SLUICE_LIB_TRANSFORMS_FORMATDECISIONS_H
