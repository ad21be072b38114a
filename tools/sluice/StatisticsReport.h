// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What is in a file of statistics.

#ifndef SLUICE_TOOLS_SLUICE_STATISTICSREPORT_H
#define SLUICE_TOOLS_SLUICE_STATISTICSREPORT_H

#include "sluice/Calibration/Statistics.h"

#include "llvm/Support/raw_ostream.h"

#include <nlohmann/json_fwd.hpp>

namespace sluice::driver {

/// A table of weights and one of caches.
void printStatistics(const calibration::Statistics &statistics, llvm::raw_ostream &os);

/// {"format", "model", "tokens", "sensitivity_tokens", "text_xxh3", "seed",
///  "weights": [{"name", "input", "columns", "mean_square", "hessian", "sensitivity"?}],
///  "keys", "values": {"formats": [...], "nats": [one list a layer]}}.
/// Weights of the same "input" read the same value; a loss without bound is null.
nlohmann::ordered_json statisticsJson(const calibration::Statistics &statistics);

} // namespace sluice::driver

#endif // SLUICE_TOOLS_SLUICE_STATISTICSREPORT_H
