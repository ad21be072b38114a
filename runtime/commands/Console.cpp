// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/commands/Console.h"

#include "sluice-runtime/Commands.h"

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstring>
#include <unistd.h>

using namespace sluice::runtime;

[[noreturn]] static void failOutput() {
  if (errno == EPIPE)
    throw CommandExit{128 + SIGPIPE};
  throw Error(std::string("cannot write the output: ") + std::strerror(errno));
}

void sluice::runtime::writeText(std::FILE *out, std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), out) != text.size())
    failOutput();
}

void sluice::runtime::flush(std::FILE *out) {
  if (std::fflush(out) || std::ferror(out))
    failOutput();
}

bool sluice::runtime::isTerminal() { return isatty(STDERR_FILENO); }

Progress::Progress() : enabled(isTerminal()), last(std::chrono::steady_clock::now()) {}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (shown)
    std::fputs("\r\033[K", stderr);
  shown = false;
}

void Progress::show(const std::string &line) {
  auto now = std::chrono::steady_clock::now();
  if (!enabled || now - last < std::chrono::milliseconds(100))
    return;
  last = now;
  shown = true;
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
}

static volatile std::sig_atomic_t interruptSeen = 0;
static struct sigaction formerInterrupt, formerTerminate;

InterruptGuard::InterruptGuard() {
  interruptSeen = 0;
  struct sigaction action = {};
  // Once only: the second signal does what it did before.
  action.sa_handler = [](int signal) {
    interruptSeen = signal;
    sigaction(signal, signal == SIGINT ? &formerInterrupt : &formerTerminate, nullptr);
  };
  // No SA_RESTART: reading from a terminal must end.
  sigaction(SIGINT, &action, &formerInterrupt);
  sigaction(SIGTERM, &action, &formerTerminate);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &formerInterrupt, nullptr);
  sigaction(SIGTERM, &formerTerminate, nullptr);
}

bool InterruptGuard::interrupted() { return interruptSeen; }

bool InterruptGuard::terminated() { return interruptSeen == SIGTERM; }

void InterruptGuard::check() {
  if (interruptSeen)
    throw CommandExit{128 + SIGINT};
}

std::string sluice::runtime::format(const char *pattern, ...) {
  va_list arguments, copy;
  va_start(arguments, pattern);
  va_copy(copy, arguments);
  int length = std::vsnprintf(nullptr, 0, pattern, copy);
  va_end(copy);
  std::string result(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  std::vsnprintf(result.data(), result.size() + 1, pattern, arguments);
  va_end(arguments);
  return result;
}

std::string sluice::runtime::formatBytes(double bytes) {
  static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  int unit = 0;
  while (bytes >= 999.5 && unit < 5) {
    bytes /= 1000;
    ++unit;
  }
  int decimals = unit == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
  return format("%.*f %s", decimals, bytes, units[unit]);
}
