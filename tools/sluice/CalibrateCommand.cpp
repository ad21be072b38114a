// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "Commands.h"

#include "sluice-runtime/Commands.h"
#include "sluice/Pipelines/Calibrate.h"
#include "sluice/Target/ScratchDirectory.h"

#include "llvm/Support/Path.h"

using namespace sluice;
using namespace sluice::driver;

void driver::addCalibrateCommand(CLI::App &app) {
  struct Options {
    std::string target = "host", output, pack, from;
    runtime::BenchOptions bench;
    bool quick = false;
  };
  auto options = std::make_shared<Options>();
  options->bench.repetitions = 2;
  CLI::App *command = app.add_subcommand(
      "calibrate", "Measure how fast this machine is, and write a target description that predicts "
                   "the time of models on it");
  command->footer("Examples:\n"
                  "  sluice calibrate -o mine.json                      (this CPU)\n"
                  "  sluice calibrate --target h100 -o mine.json        (the GPU of this machine)\n"
                  "  sluice calibrate --target h100 --pack probes       (for a machine that has\n"
                  "                                                      only the runtime)\n"
                  "  sluice-run calibrate probes > results.json         (there)\n"
                  "  sluice calibrate --from results.json -o mine.json  (here)\n"
                  "  sluice explain MODEL --target mine.json");
  command
      ->add_option("--target", options->target,
                   "The description to start from: that of the machine, or of the most similar one")
      ->capture_default_str()
      ->type_name("NAME");
  CLI::Option *output =
      command->add_option("-o,--output", options->output, "The target description to write")
          ->type_name("FILE");
  CLI::Option *pack =
      command
          ->add_option("--pack", options->pack,
                       "Only compile what is to be measured, into this directory, which must not "
                       "exist")
          ->type_name("DIR")
          ->excludes(output);
  command->add_option("--from", options->from, "Take the measurements from what sluice-run wrote")
      ->type_name("FILE")
      ->excludes(pack);
  command->add_option("--device", options->bench.session.device,
                      "Where to measure: cpu or cuda (default: what the target is)");
  command->add_flag("--quick", options->quick,
                    "Tiny models: shows that it works, the numbers mean nothing");
  command->callback([options, command] {
    if (options->output.empty() && options->pack.empty())
      throw Failure("calibrate: needs -o FILE, or --pack DIR");
    auto check = [](llvm::Error error) {
      if (error)
        throw Failure(std::move(error));
    };
    std::string name = llvm::sys::path::stem(options->output).str();
    if (!options->output.empty() &&
        (!llvm::StringRef(options->output).ends_with(".json") ||
         name.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != name.npos))
      throw Failure("-o " + options->output +
                    ": expected a name of letters, digits, '-' and '_' that ends in .json");
    ProbeOptions probes{options->target, options->pack, options->quick, {}};
    std::string results, path = options->from;
    ScratchDirectory scratch;
    if (options->from.empty()) {
      llvm::Expected<ScratchDirectory> made = options->pack.empty()
                                                  ? ScratchDirectory::createTemporary("sluice")
                                                  : ScratchDirectory::create(options->pack);
      if (!made)
        throw Failure(made.takeError());
      scratch = std::move(*made);
      probes.directory = scratch.path().str();
      ProgressLine line;
      probes.progress = [&](llvm::StringRef what, double done) { line.show(what, done); };
      check(compileProbes(probes));
      line.clear();
      if (!options->pack.empty()) {
        check(scratch.keepAs(options->pack));
        return;
      }
      results = runtime::measureProbes(probes.directory, options->bench);
      path = "the measurements";
    } else {
      results = runtime::readTextFile(options->from);
    }
    // Results know the target that they were compiled for.
    llvm::Expected<Calibration> calibration = calibrateTarget(
        results, path, command->count("--target") ? options->target : std::string(), name);
    if (!calibration)
      throw Failure(calibration.takeError());
    if (std::error_code code = writeFile(options->output, calibration->text))
      throw Failure(options->output + ": " + code.message());
    printResult(options->output + ": " + calibration->summary + "\n");
  });
}
