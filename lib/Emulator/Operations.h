// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The functions that compiled kernels call where the device has an instruction of its own.

#ifndef SLUICE_LIB_EMULATOR_OPERATIONS_H
#define SLUICE_LIB_EMULATOR_OPERATIONS_H

#include "llvm/ADT/ArrayRef.h"
#include "llvm/ADT/StringRef.h"

#include <cstdint>

namespace sluice::emulator {

/// A function's name in compiled kernels, and its address.
struct HostFunction {
  llvm::StringRef name;
  void *address;
};

llvm::ArrayRef<HostFunction> hostFunctions();

/// Special registers, the argument of sluice_emu_register.
enum class Register : uint32_t {
  ThreadIndex,
  BlockThreads,
  BlockIndex,
  GridBlocks,
  Lane,
  WarpIndex,
  Warps,
  ClusterIndex,
  Clusters,
  ClusterRank,
  ClusterBlocks,
  SharedBytes,
  LanesEqual,
  LanesLess,
  LanesLessEqual,
  LanesGreater,
  LanesGreaterEqual,
};

enum class MmaKind : uint32_t { S8K32, U8K32, F16K16, Bf16K16, F16K8, Bf16K8, S8K16, U8S8K32 };

} // namespace sluice::emulator

#endif // SLUICE_LIB_EMULATOR_OPERATIONS_H
