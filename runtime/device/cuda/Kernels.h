// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// Which of an artifact's files of GPU kernels a GPU can run, and the kernels loaded from it.
//
// Roles of files: "cubin.sm_NN", machine code for compute capability N.N and later minor ones of
// the same major; "ptx", text that the driver compiles for any GPU of the target's architecture or
// newer. An architecture that ends in "a" is for that capability alone (PTX ISA, ".target").
//
// Kernels that a device itself launches, where the artifact's plan lists them under "utilities":
//
//   sluice_synthesize       generates weights: sluice-runtime/SyntheticWords.h
//   sluice_read_ceiling(ptr buffer, ptr parameters, ptr out)
//     Reads the buffer (aligned to 256) once, as fast as the GPU can, from any number of blocks.
//     `parameters` is one u64, the buffer's bytes, a multiple of 65536; `out` has room for 8 bytes
//     a block, to which a block may write something of what it has read.

#ifndef SLUICE_RUNTIME_DEVICE_CUDA_KERNELS_H
#define SLUICE_RUNTIME_DEVICE_CUDA_KERNELS_H

#include "runtime/device/cuda/Driver.h"
#include "sluice-runtime/Artifact.h"

#include <optional>

namespace sluice::runtime::cuda {

constexpr const char *synthesizeKernel = "sluice_synthesize";
constexpr const char *readCeilingKernel = "sluice_read_ceiling";
constexpr uint64_t readCeilingUnit = 65536;

/// What load() asks of a GPU before it allocates anything.
struct Gpu {
  DeviceHandle handle = 0;
  std::string name;
  /// Compute capability as 10 * major + minor.
  int capability = 0;
  int multiprocessors = 0, maxThreads = 0, maxShared = 0, l2Bytes = 0;
  uint64_t memoryBytes = 0;

  static Gpu query(const Driver &driver);
  /// "sm_90".
  std::string arch() const { return "sm_" + std::to_string(capability); }
};

struct KernelFile {
  const MappedFile *file = nullptr;
  bool isPtx = false;
};

/// Throws Error if the artifact has no GPU kernels at all.
void checkHasGpuKernels(const Artifact &artifact);

/// Throws Error if the GPU can run none of the artifact's files.
KernelFile chooseKernels(const Artifact &artifact, const Gpu &gpu);

/// Throws Error if a launch of the plan asks for more than the GPU has.
void checkLaunches(const Artifact &artifact, const Gpu &gpu);

/// A module in the current context; to be destroyed in it.
class LoadedKernels {
public:
  LoadedKernels(std::shared_ptr<const Driver> driver, const KernelFile &file);
  ~LoadedKernels();
  LoadedKernels(const LoadedKernels &) = delete;
  LoadedKernels &operator=(const LoadedKernels &) = delete;

  /// A kernel that may be launched with these extents. `what` ends messages: "launch ...".
  Function find(const std::string &name, int64_t block, int64_t shared, int64_t cluster,
                const std::string &what) const;

private:
  std::shared_ptr<const Driver> driver;
  std::string path;
  Module module = nullptr;
};

} // namespace sluice::runtime::cuda

#endif // SLUICE_RUNTIME_DEVICE_CUDA_KERNELS_H
