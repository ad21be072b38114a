// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// How a multiprocessor's registers are given to threads: what the plans of kernels divide among
// their warpgroups, and what the emulator lets them have.

#ifndef SLUICE_TARGET_THREADREGISTERS_H
#define SLUICE_TARGET_THREADREGISTERS_H

#include <algorithm>
#include <cstdint>

namespace sluice::ptx {

/// Registers of a multiprocessor, in 32 bits; what `setmaxnreg` may name (PTX ISA, "setmaxnreg").
inline constexpr int64_t multiprocessorRegisters = 65536;
inline constexpr int64_t fewestRegisters = 24, mostRegisters = 256, registerStep = 8;

/// Registers of a thread when a kernel with blocks of so many warps starts, as ptxas chooses them
/// for a kernel that changes them. A multiprocessor has four parts, each with a quarter of the
/// warps and of the registers: 17 warps leave a thread what 20 leave.
inline int64_t registersAtLaunch(int64_t warps, int64_t residentBlocks = 1) {
  int64_t perPart = (warps + 3) / 4 * residentBlocks;
  int64_t registers = multiprocessorRegisters / 4 / (perPart * 32) / registerStep * registerStep;
  return std::min(registers, mostRegisters);
}

} // namespace sluice::ptx

#endif // SLUICE_TARGET_THREADREGISTERS_H
