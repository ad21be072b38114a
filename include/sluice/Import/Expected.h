// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Turns the exceptions of the support library and of the runtime into LLVM's errors.

#ifndef SLUICE_IMPORT_EXPECTED_H
#define SLUICE_IMPORT_EXPECTED_H

#include "sluice-support/Error.h"

#include "llvm/Support/Error.h"

#include <type_traits>

namespace sluice {

/// Calls `function` and returns what it does, or what it throws as a support::Error. A function
/// without a result gives an llvm::Error, any other an llvm::Expected of its result.
template <typename F> auto toExpected(F &&function) {
  using Result = decltype(function());
  using Returned =
      std::conditional_t<std::is_void_v<Result>, llvm::Error,
                         llvm::Expected<std::conditional_t<std::is_void_v<Result>, int, Result>>>;
  try {
    if constexpr (std::is_void_v<Result>) {
      function();
      return Returned(llvm::Error::success());
    } else {
      return Returned(function());
    }
  } catch (const support::Error &error) {
    return Returned(llvm::createStringError(error.what()));
  }
}

} // namespace sluice

#endif // SLUICE_IMPORT_EXPECTED_H
