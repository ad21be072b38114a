// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Times a kernel of the host against what the machine's memory gives to a loop that only reads, on
// the same buffer and threads.

#ifndef SLUICE_BENCHMARKS_HOSTBENCHMARK_H
#define SLUICE_BENCHMARKS_HOSTBENCHMARK_H

#include "sluice/Target/HostTarget.h"

#include <benchmark/benchmark.h>
#include <functional>
#include <string>
#include <vector>

namespace sluice::bench {

/// Prints "PROGRAM: MESSAGE" and exits.
[[noreturn]] void fail(const llvm::Twine &message);

/// The instruction set of kernels and of the reading loop: the machine's best, or `--isa=NAME`.
extern host::Isa isa;

/// Parses the command line: `--isa`, `--cached`, the program's own options, for which `option`
/// returns true, and those of Google Benchmark.
void initialize(int argc, char **argv, llvm::function_ref<bool(llvm::StringRef)> option);

using KernelFunction = void (*)(void *const *, int64_t, int64_t);

struct Kernel {
  KernelFunction run = nullptr;
  int64_t items = 0; ///< work items of a launch
};

/// Compiles the module `text` and returns its kernels in the order of its operations. They stay
/// loaded until the process ends.
std::vector<Kernel> compileKernels(const std::string &text);

/// 1 and, if there are more, the number of hardware threads.
std::vector<int> threadCounts();

/// What a launch reads: `items` pieces of `itemBytes` bytes one behind the other.
struct Launch {
  int64_t items = 0, itemBytes = 0;
  /// Carries out items [begin, end) on memory that has their bytes.
  std::function<void(uint8_t *memory, int64_t begin, int64_t end)> run;
};

/// Runs the launch on `threads` threads in turn with a loop that reads as many other bytes. Each
/// run takes the next bytes of a buffer that is greater than any cache, so that none is found in
/// one; with `--cached`, all take the same bytes, and what a small launch takes is its arithmetic.
/// `bytes` are those that count; counters are GB/s of the launch, those of the loop, and the share.
void measure(benchmark::State &state, const Launch &launch, int64_t bytes, int threads);

} // namespace sluice::bench

#endif // SLUICE_BENCHMARKS_HOSTBENCHMARK_H
