// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_CONVERSION_FUSEDTOGPU_THREADROWS_H
#define SLUICE_LIB_CONVERSION_FUSEDTOGPU_THREADROWS_H

#include "Kernels.h"

namespace sluice::device {

/// A thread owns rows r and r + 8 of a tile (pairs and zip orders fill them with what belongs
/// together), each in a register.
struct ThreadRows {
  using Builder = DeviceBuilder;
  static constexpr bool kWholeTiles = false;
  static constexpr quantized::CacheLayout kKeys = quantized::CacheLayout::MmaKeys,
                                          kValues = quantized::CacheLayout::MmaValues;
  static constexpr llvm::StringLiteral kDevice = "a GPU";

  DeviceBuilder &k;
  mlir::Value row; ///< 0 <= r < 8

  kernels::RowRun run(mlir::Value first, int64_t offset, int64_t limit, int64_t step,
                      int64_t /*count*/) {
    mlir::Value index = k.add(k.add(first, row), offset);
    if (limit % step == 0)
      return {index, mlir::Value()};
    return {k.min(index, k.constI32(limit - 1)), k.less(index, k.constI32(limit))};
  }
  mlir::Value load(mlir::Value pointer, mlir::Type element, const kernels::RowRun &,
                   bool isConstant) {
    return isConstant ? k.load(element, pointer, bytesOf(element))
                      : k.loadFresh(element, pointer, bytesOf(element));
  }
  void store(mlir::Value value, mlir::Type element, const kernels::RowRun &run,
             llvm::function_ref<mlir::Value(mlir::Value)> place) {
    auto storeOne = [&] {
      k.store(k.narrow(k.widen(value), element), place(run.first), bytesOf(element));
    };
    if (run.exists)
      k.ifThen(run.exists, storeOne);
    else
      storeOne();
  }
  void scatter(mlir::Value value, mlir::Type element, const kernels::RowRun &run,
               llvm::function_ref<mlir::Value(mlir::Value)> place) {
    store(value, element, run, place);
  }
};

/// The same, but what the epilogue writes stays in registers.
struct CapturedRows : ThreadRows {
  kernels::Values written; ///< in the order of the runs

  void store(mlir::Value value, mlir::Type element, const kernels::RowRun &,
             llvm::function_ref<mlir::Value(mlir::Value)>) {
    written.push_back(k.narrow(k.widen(value), element));
  }
  void scatter(mlir::Value value, mlir::Type element, const kernels::RowRun &run,
               llvm::function_ref<mlir::Value(mlir::Value)> place) {
    store(value, element, run, place);
  }
};

} // namespace sluice::device

#endif // SLUICE_LIB_CONVERSION_FUSEDTOGPU_THREADROWS_H
