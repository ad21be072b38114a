// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_LIB_PIPELINES_KERNELLOADS_H
#define SLUICE_LIB_PIPELINES_KERNELLOADS_H

#include "sluice/Analysis/TimeModel.h"
#include "sluice/Pipelines/Compiler.h"

namespace sluice {

/// What each launch of a step reads, in order: of `decode`, or of `prefill_16` and so on.
llvm::Expected<std::vector<KernelLoad>> kernelLoads(const CompileOptions &options,
                                                    llvm::StringRef step = "decode");

} // namespace sluice

#endif // SLUICE_LIB_PIPELINES_KERNELLOADS_H
