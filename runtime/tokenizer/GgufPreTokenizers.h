// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the names in tokenizer.ggml.pre stand for.

#ifndef SLUICE_RUNTIME_TOKENIZER_GGUFPRETOKENIZERS_H
#define SLUICE_RUNTIME_TOKENIZER_GGUFPRETOKENIZERS_H

#include <string>
#include <string_view>

namespace sluice::runtime::tokenizer {

struct GgufPreTokenizer {
  /// Names that mean the same, separated by spaces.
  std::string_view names;
  /// Each cuts what the one before it left; the rest is null.
  const char *patterns[6];
  bool ignoreMerges = false, addBos = false;
  /// Words are spelled in characters, a space as U+2581, and not in byte characters.
  bool plainText = false;
};

/// Empty stands for "default". Throws Error for a name that is not known; `file` starts the
/// message.
const GgufPreTokenizer &findGgufPreTokenizer(const std::string &name, const std::string &file);

} // namespace sluice::runtime::tokenizer

#endif // SLUICE_RUNTIME_TOKENIZER_GGUFPRETOKENIZERS_H
