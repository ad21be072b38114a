// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The cuda device. CudaDevice.cpp allocates memory and runs steps, Weights.cpp uploads or generates
// weights, Bandwidth.cpp measures the memory.

#ifndef SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICEIMPL_H
#define SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICEIMPL_H

#include "runtime/device/cuda/CudaDevice.h"
#include "runtime/device/cuda/Handles.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <thread>
#include <vector>

namespace sluice::runtime::cuda {

constexpr uint64_t alignment = 256;
inline uint64_t alignUp(uint64_t value) { return (value + alignment - 1) / alignment * alignment; }

/// Everything that a loaded artifact has on a GPU; destroyed in the reverse order of its members,
/// while the context is current.
struct Loaded {
  explicit Loaded(std::shared_ptr<const Driver> theDriver) : driver(std::move(theDriver)) {
    driver->check(driver->cuStreamCreate(&stream, streamNonBlocking), "cannot create a stream");
  }
  ~Loaded() {
    // Memory must not be freed while a kernel uses it. Errors were reported or are of no use now.
    driver->cuStreamSynchronize(stream);
    for (GraphExec step : steps)
      if (step)
        driver->cuGraphExecDestroy(step);
    driver->cuStreamDestroy_v2(stream);
  }
  Loaded(const Loaded &) = delete;
  Loaded &operator=(const Loaded &) = delete;

  std::shared_ptr<const Driver> driver;
  /// By step, by launch.
  std::unique_ptr<LoadedKernels> kernels;
  std::vector<std::vector<Function>> functions;
  Function readCeiling = nullptr, synthesize = nullptr;
  DeviceMemory weights, caches, work, bandwidthBuffer, bandwidthScratch;
  PinnedMemory inputs, outputs;
  Stream stream = nullptr;
  std::vector<GraphExec> steps;
};

class CudaDevice final : public Device {
public:
  explicit CudaDevice(const DeviceOptions &options) : options(options) {}
  ~CudaDevice() override {
    if (!loaded)
      return;
    Context popped;
    bool pushed = driver->cuCtxPushCurrent_v2(*context) == success;
    loaded.reset();
    if (pushed)
      driver->cuCtxPopCurrent_v2(&popped);
  }

  std::string name() const override { return "cuda"; }
  std::string description() const override;

  void load(std::shared_ptr<const Artifact> artifact) override;
  void run(uint32_t step) override;
  void trace(uint32_t step, const std::function<bool(size_t)> &afterLaunch) override;
  std::vector<double> profile(uint32_t step) override;
  std::string profileRemark() const override;
  std::optional<double> measureStep(uint32_t step, int64_t count) override;
  void write(uint32_t buffer, uint64_t offset, std::span<const std::byte> bytes) override;
  void read(uint32_t buffer, uint64_t offset, std::span<std::byte> bytes) override;
  const void *output(uint32_t buffer) override;
  void clearCaches() override;
  Bandwidth measureReadBandwidth() override;

private:
  /// Sizes of the three allocations, and the offset of each buffer in its allocation.
  struct Layout {
    uint64_t weights = 0, caches = 0, work = 0, inputs = 0, outputs = 0;
    std::vector<uint64_t> offsets;
    uint64_t total() const { return weights + caches + work; }
  };

  void layOut();
  void checkMemory(uint64_t available, const char *what) const;
  void findKernels(const KernelFile &file);
  void allocate();
  void fillWeights();
  void synthesizeOnGpu(const std::vector<uint32_t> &buffers,
                       const std::function<void(uint64_t)> &onDone);
  void upload(DevicePointer to, uint64_t bytes,
              const std::function<void(uint64_t offset, std::span<std::byte>)> &fill,
              const std::function<void(uint64_t)> &onDone);
  void launch(uint32_t step, size_t index, bool overlap);
  void launchUtility(Function function, const Utility &utility, void **parameters,
                     const char *name);
  void capture(uint32_t step);
  void copyInputs();
  /// Copies what steps leave for the host: small outputs along with a step, large ones (logits)
  /// when they are asked for.
  void copyOutput(uint32_t buffer);
  void copySmallOutputs();
  /// Before the launches of a step: copies inputs to the GPU and marks the host's copies of outputs
  /// as outdated.
  void beginStep();
  void synchronize(const std::string &what);
  void requireLoaded() const;
  const Buffer &bufferAt(uint32_t index) const { return artifact->plan().buffers.at(index); }
  int hostThreads() const {
    return options.threads > 0 ? options.threads
                               : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }

  const DeviceOptions options;
  std::shared_ptr<const Artifact> artifact;
  std::shared_ptr<const Driver> driver;
  Gpu gpu;
  Layout layout;
  std::string kernelsName;
  std::unique_ptr<PrimaryContext> context;
  std::unique_ptr<Loaded> loaded;
  /// By buffer: its address on the GPU, the kernels' argument.
  std::vector<DevicePointer> pointers;
  bool inputsChanged = true;
  /// By buffer: whether the host's copy of an output is that of the last step.
  std::vector<bool> copied;
};

} // namespace sluice::runtime::cuda

#endif // SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICEIMPL_H
