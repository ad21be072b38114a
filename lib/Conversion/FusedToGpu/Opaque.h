// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_OPAQUE_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_OPAQUE_H

#include "DeviceBuilder.h"

namespace sluice::device {

/// A copy of an i32 of which the optimizer knows nothing: what is computed from it is not computed
/// earlier, and kept in registers until it is needed.
inline mlir::Value opaqueCopy(DeviceBuilder &k, mlir::Value x) {
  return mlir::LLVM::InlineAsmOp::create(
             k.b, k.loc, k.i32(), x, ptx::opaqueCopy, ptx::opaqueCopyConstraints,
             /*has_side_effects=*/true, /*is_align_stack=*/false, mlir::LLVM::TailCallKind::None,
             mlir::LLVM::AsmDialectAttr::get(k.b.getContext(), mlir::LLVM::AsmDialect::AD_ATT),
             mlir::ArrayAttr())
      .getRes();
}

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_OPAQUE_H
