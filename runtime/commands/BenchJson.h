// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#ifndef SLUICE_RUNTIME_COMMANDS_BENCHJSON_H
#define SLUICE_RUNTIME_COMMANDS_BENCHJSON_H

#include "sluice-runtime/Commands.h"

#include <nlohmann/json.hpp>

namespace sluice::runtime {

/// What `bench --json` prints.
nlohmann::json benchJson(const BenchResult &result, const Artifact &artifact,
                         const std::string &device);

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_COMMANDS_BENCHJSON_H
