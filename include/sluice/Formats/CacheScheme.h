// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What a user asks caches to be: the text of --k-cache and --v-cache.

#ifndef SLUICE_FORMATS_CACHESCHEME_H
#define SLUICE_FORMATS_CACHESCHEME_H

#include "sluice/Formats/CacheEncoding.h"

#include "llvm/ADT/SmallVector.h"
#include "llvm/Support/Error.h"

namespace sluice::formats {

/// How one layer's keys or values are cached.
struct CacheChoice {
  CacheEncoding encoding;
  /// Keys and queries are rotated by a Walsh-Hadamard matrix first.
  bool rotated = false;
  /// Nobody asked for it: "auto", or no format at all.
  bool automatic = false;

  bool operator==(const CacheChoice &) const = default;
  /// "int8", "int4-h32-rot".
  std::string name() const { return encoding.name() + (rotated ? "-rot" : ""); }
};

/// Choices for all layers: one for most, others for some.
struct CacheScheme {
  struct Exception {
    int64_t first = 0, last = 0; ///< layers, both included
    CacheChoice choice;
  };
  CacheChoice common{.encoding = {}, .rotated = false, .automatic = true};
  llvm::SmallVector<Exception> exceptions;

  const CacheChoice &layer(int64_t number) const;
  /// Such a list as `parse` takes, with what "auto" stands for.
  std::string name() const;

  /// Parses a list of formats, of which one may be for all layers and others for `N=` or `N-M=`:
  /// "int4-rot,0-1=int8". A format is a name of CacheEncoding but f32, or "auto" (f16), and may end
  /// in "-rot" if `rotates`. The error says what is wrong, without the option's name.
  static llvm::Expected<CacheScheme> parse(llvm::StringRef text, bool rotates);
  /// Whether all layers that are named are among the first `layers`; the error names one that is
  /// not.
  llvm::Error checkLayers(int64_t layers) const;
};

} // namespace sluice::formats

#endif // SLUICE_FORMATS_CACHESCHEME_H
