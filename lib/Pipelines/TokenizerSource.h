// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_PIPELINES_TOKENIZERSOURCE_H
#define SLUICE_LIB_PIPELINES_TOKENIZERSOURCE_H

#include "sluice/Import/ModelFiles.h"

namespace sluice {

/// The artifact's tokenizer.json for a model's tokenizer, from whichever form its files have it in;
/// empty if they have none.
llvm::Expected<std::string> tokenizerJson(const ModelFiles &files);

} // namespace sluice

#endif // SLUICE_LIB_PIPELINES_TOKENIZERSOURCE_H
