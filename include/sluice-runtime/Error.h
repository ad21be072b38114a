// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_ERROR_H
#define SLUICE_RUNTIME_ERROR_H

#include <stdexcept>

namespace sluice::runtime {

/// What every failure of the runtime's C++ library is thrown as. what() is one line that names the
/// file, what was found there and what was expected.
class Error : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
};

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_ERROR_H
