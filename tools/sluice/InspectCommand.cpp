// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ArtifactReport.h"
#include "Commands.h"
#include "StatisticsReport.h"

#include "sluice-runtime/Artifact.h"
#include "sluice/Import/Listing.h"

#include <nlohmann/json.hpp>

using namespace sluice;
using namespace sluice::driver;

void driver::addInspectCommand(CLI::App &app) {
  struct Options {
    std::string file;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App *command = app.add_subcommand(
      "inspect", "List what is in a model file, an artifact or a file of statistics");
  command->footer("Examples:\n  sluice inspect model.gguf\n  sluice inspect model.sluice --json");
  command
      ->add_option("FILE", options->file,
                   "GGUF, safetensors, Hugging Face directory, artifact or statistics")
      ->required();
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options] {
    std::string text;
    llvm::raw_string_ostream os(text);
    if (runtime::Artifact::isArtifact(options->file)) {
      nlohmann::json plan = readPlan(options->file);
      if (options->json)
        os << plan.dump(2) << "\n";
      else
        printArtifact(plan, os);
      printResult(text);
      return;
    }
    if (calibration::Statistics::isStatistics(options->file)) {
      llvm::Expected<calibration::Statistics> statistics =
          calibration::Statistics::read(options->file);
      if (!statistics)
        throw Failure(statistics.takeError());
      if (options->json)
        os << statisticsJson(*statistics).dump(2) << "\n";
      else
        printStatistics(*statistics, os);
      printResult(text);
      return;
    }
    llvm::Expected<nlohmann::ordered_json> listing = listModelFile(options->file);
    if (!listing)
      throw Failure(listing.takeError());
    if (options->json)
      os << listing->dump(2) << "\n";
    else
      printListing(*listing, os);
    printResult(text);
  });
}
