// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The commands of the driver that need the compiler. Each adds itself to the command line; what it
// does happens when the command line has been parsed.

#ifndef SLUICE_TOOLS_SLUICE_COMMANDS_H
#define SLUICE_TOOLS_SLUICE_COMMANDS_H

#include "sluice/Pipelines/Compiler.h"

#include <CLI/CLI.hpp>

#include <chrono>

namespace sluice::driver {

/// Thrown for a failure that is to be shown as `sluice: error: ...`.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
  explicit Failure(llvm::Error error) : Failure(llvm::toString(std::move(error))) {}
};

/// --target and number formats, for every command that may compile a model.
void addFormatOptions(CLI::App &command, CompileOptions &options);
/// --context and --batch.
void addSizeOptions(CLI::App &command, CompileOptions &options);

void addCalibrateCommand(CLI::App &app);
void addCompileCommand(CLI::App &app);
void addExplainCommand(CLI::App &app);
void addInspectCommand(CLI::App &app);
void addMeasureCommand(CLI::App &app);

/// Writes a command's result to standard output, all of it or throws.
void printResult(llvm::StringRef text);

/// "sluice: warning: ..." on standard error.
void printWarning(llvm::StringRef line);

/// A line on standard error, if that is a terminal, that says what is done and how much of it.
/// Short work stays silent: a line that flashes by tells nobody anything.
class ProgressLine {
public:
  ProgressLine();
  ~ProgressLine() { clear(); }
  ProgressLine(const ProgressLine &) = delete;
  ProgressLine &operator=(const ProgressLine &) = delete;
  void show(llvm::StringRef what, double done);
  /// Before anything else is written.
  void clear();

private:
  bool isTerminal, visible = false;
  std::chrono::steady_clock::time_point start, shown;
};

/// Compiles and, on a terminal, shows how far it is.
void compileWithProgress(CompileOptions options);

} // namespace sluice::driver

#endif // SLUICE_TOOLS_SLUICE_COMMANDS_H
