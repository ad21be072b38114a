// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// sluice-run: executes artifacts on machines that have nothing but the runtime.

#include "sluice-runtime/Commands.h"
#include "sluice-runtime/sluice.h"

using namespace sluice::runtime;

int main(int argc, char **argv) {
  CLI::App app("Runs models that sluice compiled. Needs nothing but an artifact.", "sluice-run");
  app.set_version_flag("--version", std::string("sluice-run ") + sluice_version());
  app.require_subcommand(1);
  addRunCommand(app);
  addChatCommand(app);
  addPerplexityCommand(app);
  addTokenizeCommand(app);
  addBenchCommand(app);
  addCalibrateCommand(app);
  return runCommandLine(app, argc, argv);
}
