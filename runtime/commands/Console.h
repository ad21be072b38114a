// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Terminal, output and signals, as all commands treat them.

#ifndef SLUICE_RUNTIME_COMMANDS_CONSOLE_H
#define SLUICE_RUNTIME_COMMANDS_CONSOLE_H

#include "sluice-runtime/Session.h"

#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>

namespace sluice::runtime {

/// Writes all of it or throws: CommandExit if the reader is gone, else Error.
void writeText(std::FILE *out, std::string_view text);
/// Hands everything written to the system, with the same errors.
void flush(std::FILE *out);

/// One line on standard error that is rewritten, when that is a terminal, at most ten times a
/// second; erased in the end.
class Progress {
public:
  Progress();
  ~Progress();
  void show(const std::string &line);
  /// Erases the line.
  void clear();

private:
  bool enabled, shown = false;
  std::chrono::steady_clock::time_point last;
};

/// Whether remarks for people have a reader: standard error is a terminal.
bool isTerminal();

/// While it lives, the first Ctrl-C (or SIGTERM) is only noted and the second one ends the process.
class InterruptGuard {
public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard &) = delete;
  InterruptGuard &operator=(const InterruptGuard &) = delete;
  static bool interrupted();
  /// Whether it was SIGTERM.
  static bool terminated();
  /// Throws CommandExit if there was a Ctrl-C.
  static void check();
};

/// ", the context is full": how a generation ended, to stand after other remarks.
const char *finishNote(FinishReason reason);

/// "8.4 MB", "4.53 TB": three digits, powers of 1000.
std::string formatBytes(double bytes);
/// printf into a string.
std::string format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));

} // namespace sluice::runtime

#endif // SLUICE_RUNTIME_COMMANDS_CONSOLE_H
