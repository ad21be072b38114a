// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Instructions that kernels use and that have no nvvm operation: the exact text of their
// `nvvm.inline_ptx`, which the emulator recognises.

#ifndef SLUICE_TARGET_INLINEPTX_H
#define SLUICE_TARGET_INLINEPTX_H

namespace sluice::ptx {

/// Transposes an 8 x 8 matrix of 16-bit elements that a warp holds: lane l has elements
/// (l / 4, 2 * (l % 4)) and (l / 4, 2 * (l % 4) + 1) in an i32, before and after (PTX ISA,
/// "movmatrix"). One read-only operand, one result, i32; all lanes take part.
inline constexpr char moveMatrixTransposed[] =
    "movmatrix.sync.aligned.m8n8.trans.b16 {$w0}, {$r0};";

} // namespace sluice::ptx

#endif // SLUICE_TARGET_INLINEPTX_H
