// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Diagnostics.h"

using namespace llvm;

Error sluice::detail::fail(StringRef file, const Twine &message) {
  return createStringError(inconvertibleErrorCode(), file + ": " + message);
}

Error sluice::detail::FirstProblem::take() const {
  return text.empty() ? Error::success() : createStringError(inconvertibleErrorCode(), text);
}
