// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The target description of a pass.

#ifndef SLUICE_TARGET_LOADTARGET_H
#define SLUICE_TARGET_LOADTARGET_H

#include "sluice/Target/TargetDescription.h"

#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/Operation.h"

namespace sluice {

/// As loadTarget(nameOrPath), with an error at `op` if that fails.
inline mlir::FailureOr<TargetDescription> loadTarget(mlir::Operation *op,
                                                     llvm::StringRef nameOrPath) {
  llvm::Expected<TargetDescription> description = loadTarget(nameOrPath);
  if (description)
    return std::move(*description);
  mlir::emitError(op->getLoc()) << llvm::toString(description.takeError());
  return mlir::failure();
}

} // namespace sluice

#endif // SLUICE_TARGET_LOADTARGET_H
