// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_SUPPORT_ERROR_H
#define SLUICE_SUPPORT_ERROR_H

#include <stdexcept>

namespace sluice::support {

/// What every failure of this library and of the runtime is thrown as. what() is one line that
/// names the file, what was found there and what was expected.
class Error : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
  // Not inline: the class is emitted once, with the run-time type information that the compiler's
  // own files are compiled without.
  ~Error() override;
};

} // namespace sluice::support

#endif // SLUICE_SUPPORT_ERROR_H
