// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Diagnostics.h"

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/JSON.h"

using namespace llvm;

Error sluice::detail::fail(StringRef file, const Twine &message) {
  return createStringError(inconvertibleErrorCode(), file + ": " + message);
}

std::string sluice::detail::sanitize(StringRef text, size_t limit) {
  bool cut = text.size() > limit;
  std::string result;
  // A cut inside a character leaves broken UTF-8, which is replaced like any other.
  for (char c : json::fixUTF8(text.take_front(limit))) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      result += "\\x";
      result += hexdigit((c >> 4) & 15, true);
      result += hexdigit(c & 15, true);
    } else {
      result += c;
    }
  }
  if (cut)
    result += "...";
  return result;
}

std::string sluice::detail::quote(StringRef text) { return "'" + sanitize(text) + "'"; }

Error sluice::detail::FirstProblem::take() const {
  return text.empty() ? Error::success() : createStringError(inconvertibleErrorCode(), text);
}
