// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_TOKENIZER_NORMALIZATION_H
#define SLUICE_RUNTIME_TOKENIZER_NORMALIZATION_H

#include "Charsmap.h"
#include "Data.h"
#include "Regex.h"

#include <optional>
#include <string>
#include <vector>

namespace sluice::runtime::tokenizer {

/// The steps that change a text before it is cut into words. Refers to the data, which have to
/// outlive it.
class Normalization {
public:
  /// Throws Error, starting with `name`, if a pattern or a character map is wrong.
  Normalization(const Data &data, const std::string &name);

  bool empty() const { return steps.empty(); }
  /// `text` is valid UTF-8, and so is the result.
  std::string apply(std::string text) const;

private:
  const std::vector<Normalizer> &steps;
  /// One per step; only steps that replace have one.
  std::vector<std::optional<Regex>> patterns;
  /// One per step; empty but for those of kind Precompiled.
  std::vector<Charsmap> charsmaps;
};

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_NORMALIZATION_H
