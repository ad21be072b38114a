// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The tokens of a step that are there (`active`). A launch's grid is for as many as the step is
// made for.

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOHOST_ACTIVETOKENS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOHOST_ACTIVETOKENS_H

#include "Products.h"

namespace sluice::host {

/// How many of `tokens` tokens are active (i64, 0 to `tokens`): what `active` holds, or all of them
/// if it is null.
mlir::Value activeTokens(KernelBuilder &k, const KernelInterface &interface, mlir::Value active,
                         int64_t tokens);

/// The part of `work` pieces of work (i64) that items [begin, end) of a launch of `items` carry
/// out: pieces [first, second). So threads, to which items are divided evenly, get as much work
/// each whatever the number of active tokens.
std::pair<mlir::Value, mlir::Value> shareOf(KernelBuilder &k, mlir::Value work, mlir::Value begin,
                                            mlir::Value end, int64_t items);

} // namespace sluice::host

#endif // SLUICE_LIB_CONVERSION_FUSEDTOHOST_ACTIVETOKENS_H
