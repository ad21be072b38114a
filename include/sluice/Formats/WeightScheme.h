// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What is asked for the weights of a model: a number format for all, and others for some.

#ifndef SLUICE_FORMATS_WEIGHTSCHEME_H
#define SLUICE_FORMATS_WEIGHTSCHEME_H

#include "sluice/Formats/Encoding.h"

#include "llvm/Support/Error.h"
#include "llvm/Support/GlobPattern.h"

#include <memory>

namespace sluice::formats {

/// FORMAT[,PATTERN=FORMAT...]: the first for all weights, the others for those whose names match
/// the pattern (`*`, `?`, `[...]`; the last one that matches counts). FORMAT is `auto`, as the
/// planner decides; `keep`, as the model's file has the weight; or a name that Encoding::fromName
/// takes. For example `q4_k,blk.*.ffn_down=q6_k,output=q6_k` or `auto,blk.*.attn_v=int8-g64`.
class WeightScheme {
public:
  /// Errors: a name that is no format, a pattern that is none.
  static llvm::Expected<WeightScheme> parse(llvm::StringRef text);

  /// What is asked for a weight; nothing: it stays as it is, unless the planner decides.
  std::optional<Encoding> formatOf(llvm::StringRef weight) const { return of(weight).encoding; }
  /// Whether the planner decides about a weight.
  bool isAutomatic(llvm::StringRef weight) const { return of(weight).automatic; }
  /// Whether that may be so for some weight.
  bool hasAutomatic() const;
  /// Whether no weight is asked to have a format.
  bool asksForNothing() const;

private:
  struct Format {
    bool automatic = false;
    std::optional<Encoding> encoding;
  };
  static llvm::Expected<Format> parseFormat(llvm::StringRef name);
  const Format &of(llvm::StringRef weight) const;

  Format all;
  std::vector<std::pair<llvm::GlobPattern, Format>> others;
  /// What the patterns refer to; a scheme may outlive the text that it was made of.
  std::shared_ptr<const std::string> patterns;
};

} // namespace sluice::formats

#endif // SLUICE_FORMATS_WEIGHTSCHEME_H
