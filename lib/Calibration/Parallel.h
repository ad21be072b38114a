// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_CALIBRATION_PARALLEL_H
#define SLUICE_LIB_CALIBRATION_PARALLEL_H

#include "llvm/ADT/STLFunctionalExtras.h"
#include "llvm/Support/Error.h"
#include "llvm/Support/Parallel.h"

#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace sluice::calibration {

/// Runs tasks 0 to count - 1 on all cores. Returns the error of the least task that had one, so
/// that the message does not depend on how they ran.
inline llvm::Error parallelTasks(size_t count, llvm::function_ref<llvm::Error(size_t)> task) {
  std::mutex mutex;
  std::optional<std::pair<size_t, std::string>> first;
  llvm::parallelFor(0, count, [&](size_t i) {
    if (llvm::Error error = task(i)) {
      std::lock_guard lock(mutex);
      std::string message = llvm::toString(std::move(error));
      if (!first || i < first->first)
        first = {i, message};
    }
  });
  return first ? llvm::createStringError(first->second) : llvm::Error::success();
}

} // namespace sluice::calibration

#endif // SLUICE_LIB_CALIBRATION_PARALLEL_H
