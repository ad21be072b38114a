// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Which products of one input can be one kernel: `fused-merge-matvecs` merges them, and whoever
// chooses their formats has to know.

#ifndef SLUICE_ANALYSIS_MERGING_H
#define SLUICE_ANALYSIS_MERGING_H

#include "sluice/Formats/Encoding.h"

#include "mlir/IR/Operation.h"

namespace sluice {

/// Whether elementwise operations combine a result of `product` with one of `other`, as an MLP does
/// gate and up: their rows then belong into the same tiles, which have one format.
bool areCombined(mlir::Operation *product, mlir::Operation *other);

/// Whether a kernel for GPUs reads a weight of this format beside others of other formats.
bool mergesWithOtherFormats(const formats::Encoding &encoding);

} // namespace sluice

#endif // SLUICE_ANALYSIS_MERGING_H
