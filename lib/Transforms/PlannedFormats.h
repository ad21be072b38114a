// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What the passes that plan formats share: their options as a request, and how a plan is written
// into the IR.

#ifndef SLUICE_LIB_TRANSFORMS_PLANNEDFORMATS_H
#define SLUICE_LIB_TRANSFORMS_PLANNEDFORMATS_H

#include "sluice/Planner/ModelPlan.h"

#include "llvm/ADT/StringMap.h"

namespace sluice {

/// The options of a planning pass, as text.
struct PlannerOptionTexts {
  std::string target, scheme, keys, values, goal;
  int64_t context;
  std::string statistics;
};

/// Errors: what one of the texts says wrong, with the option's name.
llvm::Expected<planner::Request> plannerRequest(const PlannerOptionTexts &texts);

/// "planned: error 0.031e-3 nats, 0.11 us; next int5-g64: 0.12e-3 nats, 0.09 us".
std::string plannedReason(const planner::Decision &decision);

/// What was chosen, by name; not what was fixed.
llvm::StringMap<const planner::Decision *>
plannedByName(llvm::ArrayRef<planner::Decision> decisions);

/// Adds to the module's attribute `sluice.plan` what was decided: of weights, or of caches.
void recordPlan(mlir::ModuleOp module, const planner::ModelPlan &plan,
                const planner::Request &request);

/// The price that recordPlan has written; nothing if the module has no plan.
std::optional<double> recordedPrice(mlir::ModuleOp module);

} // namespace sluice

#endif // SLUICE_LIB_TRANSFORMS_PLANNEDFORMATS_H
