// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Error lines of the file readers: text from a file may hold anything, an error is one short line.

#ifndef SLUICE_LIB_IMPORT_DIAGNOSTICS_H
#define SLUICE_LIB_IMPORT_DIAGNOSTICS_H

#include "sluice-support/Text.h"

#include "llvm/ADT/StringRef.h"
#include "llvm/ADT/Twine.h"
#include "llvm/Support/Error.h"

#include <string>

namespace sluice::detail {

/// "FILE: MESSAGE".
llvm::Error fail(llvm::StringRef file, const llvm::Twine &message);

using support::printable;
using support::quote;

/// Collects the first of several checks that failed, where checking on is harmless and returning at
/// each one would hide what is read.
class FirstProblem {
public:
  void set(llvm::StringRef file, const llvm::Twine &message) {
    if (text.empty())
      text = (file + ": " + message).str();
  }
  void set(std::string line) {
    if (text.empty())
      text = std::move(line);
  }
  explicit operator bool() const { return !text.empty(); }
  llvm::Error take() const;

private:
  std::string text;
};

} // namespace sluice::detail

#endif // SLUICE_LIB_IMPORT_DIAGNOSTICS_H
