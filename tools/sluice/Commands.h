// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The commands of the driver that need the compiler. Each adds itself to the command line; what it
// does happens when the command line has been parsed.

#ifndef SLUICE_TOOLS_SLUICE_COMMANDS_H
#define SLUICE_TOOLS_SLUICE_COMMANDS_H

#include "sluice/Pipelines/Compiler.h"

#include <CLI/CLI.hpp>

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

/// Writes a command's result to standard output, all of it or throws.
void printResult(llvm::StringRef text);

/// "sluice: warning: ..." on standard error.
void printWarning(llvm::StringRef line);

/// Calls `work` with a function that shows on a terminal what is being done and how much of it.
using ShowProgress = std::function<void(llvm::StringRef what, double done)>;
llvm::Error withProgress(llvm::function_ref<llvm::Error(const ShowProgress &show)> work);

/// Compiles and, on a terminal, shows how far it is.
void compileWithProgress(CompileOptions options);

} // namespace sluice::driver

#endif // SLUICE_TOOLS_SLUICE_COMMANDS_H
