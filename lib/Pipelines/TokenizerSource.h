// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_PIPELINES_TOKENIZERSOURCE_H
#define SLUICE_LIB_PIPELINES_TOKENIZERSOURCE_H

#include "sluice-runtime/Tokenizer.h"
#include "sluice/Import/ModelFiles.h"

namespace sluice {

/// A model's tokenizer, from whichever form its files have it in; they must have one.
llvm::Expected<runtime::Tokenizer> readTokenizer(const ModelFiles &files);

} // namespace sluice

#endif // SLUICE_LIB_PIPELINES_TOKENIZERSOURCE_H
