// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_ERROR_H
#define SLUICE_RUNTIME_ERROR_H

#include "sluice-support/Error.h"

namespace sluice::runtime {

/// What every failure of the runtime's C++ library is thrown as.
using support::Error;

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_ERROR_H
