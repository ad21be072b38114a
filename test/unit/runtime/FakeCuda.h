// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// A CUDA driver without a GPU, for tests: a library with the driver API's entry points that the
// runtime uses, whose device memory is host memory and whose kernels are host functions. It records
// what it is asked for, and complains about what a driver would not forgive. Streams hold their
// work back until somebody waits for it, so that whoever does not wait finds old bytes; or they do
// it as soon as they may, so that whoever does not keep them back finds bytes that are too new.

#ifndef SLUICE_TEST_UNIT_RUNTIME_FAKECUDA_H
#define SLUICE_TEST_UNIT_RUNTIME_FAKECUDA_H

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace sluice::runtime::test {

struct FakeLaunch {
  std::string kernel;
  unsigned grid = 0, block = 0, shared = 0, cluster = 1;
  bool overlap = false, captured = false, cooperative = false;
  std::vector<uint64_t> arguments = {};
};

/// When streams do their work: as late as they can, as early as events allow, or early only on
/// streams that graphs were launched on, whose work the others' does not keep up with.
enum class WorkOrder { Late, Early, GraphsEarly };

struct FakeCuda {
  // What the driver and the GPU are.
  int version = 12040, devices = 1, major = 9, minor = 0, multiprocessors = 4;
  /// Clusters, and blocks of a multiprocessor, that live at the same time.
  int residentClusters = 16, residentBlocks = 2;
  int maxThreads = 1024, maxShared = 232448, l2Bytes = 1 << 20, kernelMaxThreads = 1024;
  size_t totalBytes = size_t(1) << 30, freeBytes = size_t(1) << 30;
  int initResult = 0;
  /// The entry point that fails, after `failAfter` calls that do not, and how.
  std::string failing;
  int failAfter = 0, failure = 719;
  /// What the driver's compiler says; empty compiles everything.
  std::string jitLog;
  WorkOrder order = WorkOrder::Late;

  // What happened. Calls in order, without queries.
  std::vector<std::string> calls;
  std::vector<FakeLaunch> launches;
  /// By kernel: the largest dynamic shared memory that was allowed.
  std::map<std::string, int> sharedLimit;
  std::map<std::string, bool> nonPortable;
  std::vector<std::string> images;
  /// Bytes of device memory that are allocated, and the most that ever were.
  size_t allocated = 0, peak = 0;
  size_t uploadedBytes = 0, largestUpload = 0;
  /// Bytes of each copy to the host.
  std::vector<size_t> downloads;
  /// Kernels that have run, in order; graphs' ones included.
  std::vector<std::string> executed;
  /// Things that are alive.
  int contexts = 0, modules = 0, streams = 0, events = 0, graphs = 0, graphExecs = 0, pinned = 0,
      current = 0;
  /// Misuse: wrong handles, calls without a context, accesses outside of memory.
  std::vector<std::string> complaints;
};

/// The entry point of the library that tests use: its state.
using FakeCudaState = FakeCuda *(*)();

} // namespace sluice::runtime::test

#endif // SLUICE_TEST_UNIT_RUNTIME_FAKECUDA_H
