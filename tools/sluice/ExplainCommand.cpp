// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ArtifactReport.h"
#include "Commands.h"

#include "sluice-runtime/Artifact.h"

using namespace sluice;
using namespace sluice::driver;

void driver::addExplainCommand(CLI::App &app) {
  struct Options {
    CompileOptions compile;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App *command = app.add_subcommand(
      "explain",
      "Show what a decode step has to move, part by part, and the least time it can take");
  command->footer(
      "Examples:\n"
      "  sluice explain models/llama-4m --weights int8-g128 --target h200\n"
      "  sluice explain Llama-2-7B/config.json --weights int8-g128 --target h100 --context 4096");
  command
      ->add_option("MODEL", options->compile.model,
                   "A model file or directory, a config.json alone, or an artifact")
      ->required();
  command->add_flag("--json", options->json, "Print JSON");
  addFormatOptions(*command, options->compile);
  addSizeOptions(*command, options->compile);
  command->callback([options, command] {
    if (runtime::Artifact::isArtifact(options->compile.model)) {
      for (const char *name : {"--weights", "--stats", "--k-cache", "--v-cache", "--batch"})
        if (command->count(name))
          throw Failure(std::string(name) + " " + command->get_option(name)->results().front() +
                        ": " + options->compile.model +
                        " is an artifact, which is compiled already; give the model instead");
      std::string text;
      llvm::raw_string_ostream os(text);
      explainArtifact(readPlan(options->compile.model), options->compile.target,
                      options->compile.context, options->json, os);
      printResult(text);
      return;
    }
    if (options->compile.target.empty())
      options->compile.target = "host";
    options->compile.warn = printWarning;
    llvm::Expected<std::string> text = explainModel(options->compile, options->json);
    if (!text)
      throw Failure(text.takeError());
    printResult(*text);
  });
}
