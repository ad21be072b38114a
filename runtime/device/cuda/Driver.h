// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The part of the CUDA driver API that the cuda device uses, found in the driver's library when a
// device is loaded: nothing of CUDA is needed to build or to start. Names, numbers and layouts are
// those of the "CUDA Driver API" reference manual, version 12.3; entry points with a version suffix
// are named with it, as the library exports them.

#ifndef SLUICE_RUNTIME_DEVICE_CUDA_DRIVER_H
#define SLUICE_RUNTIME_DEVICE_CUDA_DRIVER_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace sluice::runtime::cuda {

using Result = int;
using DeviceHandle = int;
using DevicePointer = uint64_t;
using Context = struct ContextTag *;
using Module = struct ModuleTag *;
using Function = struct FunctionTag *;
using Stream = struct StreamTag *;
using Event = struct EventTag *;
using Graph = struct GraphTag *;
using GraphExec = struct GraphExecTag *;

constexpr Result success = 0, errorOutOfMemory = 2, errorStubLibrary = 34, errorNoDevice = 100,
                 errorNotFound = 500;

/// CUdevice_attribute.
enum DeviceAttribute : int {
  maxThreadsPerBlock = 1,
  multiprocessorCount = 16,
  l2CacheSize = 38,
  capabilityMajor = 75,
  capabilityMinor = 76,
  maxSharedMemoryPerBlockOptin = 97,
};

/// CUfunction_attribute.
enum FunctionAttribute : int {
  functionMaxThreadsPerBlock = 0,
  functionStaticSharedBytes = 1,
  functionMaxDynamicSharedBytes = 8,
  functionNonPortableClusterSizeAllowed = 14,
};

/// CUjit_option.
enum JitOption : int {
  jitErrorLogBuffer = 5,
  jitErrorLogBufferBytes = 6,
};

constexpr unsigned streamNonBlocking = 1;
/// Of events that only order work, which are cheaper.
constexpr unsigned eventDisableTiming = 2;
constexpr int captureModeThreadLocal = 1;

/// CUlaunchAttributeID.
enum LaunchAttributeId : int {
  launchCooperative = 2,
  launchClusterDimension = 4,
  launchProgrammaticStreamSerialization = 6,
};

/// CUlaunchAttribute: an id and a union of 64 bytes.
struct LaunchAttribute {
  LaunchAttributeId id;
  union {
    char padding[64];
    uint64_t alignment;
    struct {
      unsigned x, y, z;
    } clusterDimension;
    int programmaticStreamSerializationAllowed;
    int cooperative;
  };
};
static_assert(sizeof(LaunchAttribute) == 72 && offsetof(LaunchAttribute, padding) == 8);

/// CUlaunchConfig.
struct LaunchConfig {
  unsigned gridX = 1, gridY = 1, gridZ = 1;
  unsigned blockX = 1, blockY = 1, blockZ = 1;
  unsigned sharedBytes = 0;
  Stream stream = nullptr;
  LaunchAttribute *attributes = nullptr;
  unsigned attributeCount = 0;
};
static_assert(sizeof(LaunchConfig) == 56 && offsetof(LaunchConfig, stream) == 32 &&
              offsetof(LaunchConfig, attributeCount) == 48);

// X(entry point, arguments): all return CUresult.
#define SLUICE_CUDA_ENTRY_POINTS(X)                                                                \
  X(cuGetErrorName, (Result, const char **))                                                       \
  X(cuGetErrorString, (Result, const char **))                                                     \
  X(cuInit, (unsigned))                                                                            \
  X(cuDriverGetVersion, (int *))                                                                   \
  X(cuDeviceGetCount, (int *))                                                                     \
  X(cuDeviceGet, (DeviceHandle *, int))                                                            \
  X(cuDeviceGetName, (char *, int, DeviceHandle))                                                  \
  X(cuDeviceGetAttribute, (int *, int, DeviceHandle))                                              \
  X(cuDeviceTotalMem_v2, (size_t *, DeviceHandle))                                                 \
  X(cuDevicePrimaryCtxRetain, (Context *, DeviceHandle))                                           \
  X(cuDevicePrimaryCtxRelease_v2, (DeviceHandle))                                                  \
  X(cuCtxPushCurrent_v2, (Context))                                                                \
  X(cuCtxPopCurrent_v2, (Context *))                                                               \
  X(cuMemGetInfo_v2, (size_t *, size_t *))                                                         \
  X(cuModuleLoadDataEx, (Module *, const void *, unsigned, int *, void **))                        \
  X(cuModuleUnload, (Module))                                                                      \
  X(cuModuleGetFunction, (Function *, Module, const char *))                                       \
  X(cuFuncGetAttribute, (int *, int, Function))                                                    \
  X(cuFuncSetAttribute, (Function, int, int))                                                      \
  X(cuOccupancyMaxActiveClusters, (int *, Function, const LaunchConfig *))                         \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int *, Function, int, size_t))                   \
  X(cuMemAlloc_v2, (DevicePointer *, size_t))                                                      \
  X(cuMemFree_v2, (DevicePointer))                                                                 \
  X(cuMemHostAlloc, (void **, size_t, unsigned))                                                   \
  X(cuMemFreeHost, (void *))                                                                       \
  X(cuMemcpyHtoDAsync_v2, (DevicePointer, const void *, size_t, Stream))                           \
  X(cuMemcpyDtoHAsync_v2, (void *, DevicePointer, size_t, Stream))                                 \
  X(cuMemcpyDtoDAsync_v2, (DevicePointer, DevicePointer, size_t, Stream))                          \
  X(cuMemsetD8Async, (DevicePointer, unsigned char, size_t, Stream))                               \
  X(cuStreamCreate, (Stream *, unsigned))                                                          \
  X(cuStreamDestroy_v2, (Stream))                                                                  \
  X(cuStreamSynchronize, (Stream))                                                                 \
  X(cuStreamWaitEvent, (Stream, Event, unsigned))                                                  \
  X(cuStreamBeginCapture_v2, (Stream, int))                                                        \
  X(cuStreamEndCapture, (Stream, Graph *))                                                         \
  X(cuGraphInstantiateWithFlags, (GraphExec *, Graph, unsigned long long))                         \
  X(cuGraphUpload, (GraphExec, Stream))                                                            \
  X(cuGraphLaunch, (GraphExec, Stream))                                                            \
  X(cuGraphExecDestroy, (GraphExec))                                                               \
  X(cuGraphDestroy, (Graph))                                                                       \
  X(cuEventCreate, (Event *, unsigned))                                                            \
  X(cuEventDestroy_v2, (Event))                                                                    \
  X(cuEventRecord, (Event, Stream))                                                                \
  X(cuEventSynchronize, (Event))                                                                   \
  X(cuEventElapsedTime, (float *, Event, Event))                                                   \
  X(cuLaunchKernelEx, (const LaunchConfig *, Function, void **, void **))

/// The driver's library and its entry points.
class Driver {
public:
  /// Version of the driver API that is needed at least: with 12.3 programmatic dependent launches
  /// can be captured into graphs.
  static constexpr int neededVersion = 12030;

  /// Loads the library ("libcuda.so.1", or for tests what the environment variable SLUICE_LIBCUDA
  /// names) and initialises it. Throws Error: no library, an entry point missing, too old a
  /// version, no device. It stays loaded until the process ends.
  static std::shared_ptr<const Driver> load();

  /// Throws Error "cuda: `what`: NAME (description)" unless the result is success. A failure of an
  /// earlier kernel may be reported by any call.
  void check(Result result, const std::string &what) const;
  /// "CUDA_ERROR_OUT_OF_MEMORY (out of memory)".
  std::string describe(Result result) const;

  /// 12030 for 12.3.
  int version() const { return driverVersion; }
  /// "12.3".
  static std::string versionText(int version);

#define SLUICE_CUDA_MEMBER(name, arguments) Result(*name) arguments = nullptr;
  SLUICE_CUDA_ENTRY_POINTS(SLUICE_CUDA_MEMBER)
#undef SLUICE_CUDA_MEMBER

private:
  int driverVersion = 0;
};

} // namespace sluice::runtime::cuda

#endif // SLUICE_RUNTIME_DEVICE_CUDA_DRIVER_H
