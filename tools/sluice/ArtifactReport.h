// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// What is in an artifact, and why: tables made from its plan.json.

#ifndef SLUICE_TOOLS_SLUICE_ARTIFACTREPORT_H
#define SLUICE_TOOLS_SLUICE_ARTIFACTREPORT_H

#include "sluice/Pipelines/Compiler.h"

#include "llvm/Support/raw_ostream.h"

#include <nlohmann/json.hpp>
#include <string>

namespace sluice::driver {

/// plan.json of the artifact, once the artifact has been opened and checked. Throws.
nlohmann::json readPlan(const std::string &artifact);

/// Model, target, files, memory and launches.
void printArtifact(const nlohmann::json &plan, llvm::raw_ostream &os);

/// Traffic of each launch at a context, the floor on the target named, and the decisions with their
/// reasons. `target` empty: the plan's own.
void explainArtifact(const nlohmann::json &plan, const std::string &target, int64_t context,
                     bool json, llvm::raw_ostream &os);

/// Writes explain's page of an artifact: with what `bench --per-kernel --json` wrote to the file
/// `measured`, unless that is empty, and with the stages in its folder ir, if it has that. Throws.
void writeArtifactPage(const nlohmann::json &plan, const std::string &artifact,
                       const CompileOptions &options, const ExplainOptions &explain,
                       const std::string &measured);

} // namespace sluice::driver

#endif // SLUICE_TOOLS_SLUICE_ARTIFACTREPORT_H
