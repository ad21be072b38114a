// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "ArtifactReport.h"
#include "Commands.h"

#include "sluice-runtime/Artifact.h"
#include "sluice-runtime/Commands.h"

using namespace sluice;
using namespace sluice::driver;

void driver::addExplainCommand(CLI::App &app) {
  struct Options {
    CompileOptions compile;
    ExplainOptions explain;
    std::string measured;
    bool recommend = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App *command = app.add_subcommand(
      "explain", "Show what a decode step has to move, part by part, what was decided of weights "
                 "and caches and why, and how long it takes");
  command->footer(
      "Examples:\n"
      "  sluice explain models/llama-4m --weights int8-g128 --target h200\n"
      "  sluice explain Llama-2-7B/config.json --weights int8-g128 --target h100 --context 4096\n"
      "  sluice explain models/llama-4m --stats llama-4m.stats --html page.html\n"
      "  sluice explain models/llama-4m --stats llama-4m.stats --recommend");
  command
      ->add_option("MODEL", options->compile.model,
                   "A model file or directory, a config.json alone, or an artifact")
      ->required();
  command->add_flag("--json", options->explain.json, "Print JSON");
  command->add_flag("--decisions", options->explain.decisions,
                    "Print what was decided of every weight and cache");
  CLI::Option *html = command
                          ->add_option("--html", options->explain.html,
                                       "Write a page with figures, which needs no other file")
                          ->type_name("FILE");
  command
      ->add_option("--layer", options->explain.layer,
                   "The layer whose stages the page shows (default: 0)")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 24))
      ->transform(runtime::wholeNumber())
      ->needs(html)
      ->type_name("N");
  command
      ->add_option("--measured", options->measured,
                   "Of an artifact: what sluice bench --per-kernel --json printed, to stand beside "
                   "what was predicted on the page")
      ->needs(html)
      ->type_name("FILE");
  command->add_flag("--recommend", options->recommend,
                    "Rank formats of weights and caches by predicted time and error");
  addFormatOptions(*command, options->compile);
  addSizeOptions(*command, options->compile);
  command->callback([options, command] {
    const std::string &model = options->compile.model;
    if (runtime::Artifact::isArtifact(model)) {
      for (const char *name :
           {"--weights", "--stats", "--k-cache", "--v-cache", "--batch", "--recommend"})
        if (command->count(name))
          throw Failure(std::string(name) +
                        (options->recommend && name == std::string("--recommend")
                             ? std::string()
                             : " " + command->get_option(name)->results().front()) +
                        ": " + model +
                        " is an artifact, which is compiled already; give the model instead");
      std::string text;
      llvm::raw_string_ostream os(text);
      nlohmann::json plan = readPlan(model);
      explainArtifact(plan, options->compile.target, options->compile.context,
                      options->explain.json, os);
      if (!options->explain.html.empty())
        writeArtifactPage(plan, model, options->compile, options->explain, options->measured);
      printResult(text);
      return;
    }
    if (!options->measured.empty())
      throw Failure("--measured " + options->measured + ": " + model +
                    " is no artifact, whose kernels could have been measured");
    if (options->compile.target.empty())
      options->compile.target = "host";
    ProgressLine line;
    options->compile.progress = [&](llvm::StringRef what, double done) { line.show(what, done); };
    options->compile.warn = [&](llvm::StringRef text) {
      line.clear();
      printWarning(text);
    };
    llvm::Expected<std::string> text =
        options->recommend ? recommendFormats(options->compile, options->explain.json)
                           : explainModel(options->compile, options->explain);
    line.clear();
    if (!text)
      throw Failure(text.takeError());
    printResult(*text);
  });
}
