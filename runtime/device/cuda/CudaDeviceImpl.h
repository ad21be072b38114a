// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

// The cuda device. CudaDevice.cpp allocates memory and runs steps, Weights.cpp uploads or generates
// weights, Bandwidth.cpp measures the memory.

#ifndef SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICEIMPL_H
#define SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICEIMPL_H

#include "runtime/device/cuda/CudaDevice.h"
#include "runtime/device/cuda/Handles.h"

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <span>
#include <thread>
#include <vector>

namespace sluice::runtime::cuda {

constexpr uint64_t alignment = 256;
inline uint64_t alignUp(uint64_t value) { return (value + alignment - 1) / alignment * alignment; }

/// What one of two steps in flight has of its own: the inputs and outputs, here and on the GPU, and
/// graphs whose kernels use these. So the inputs of a step are copied while the one before it runs,
/// and its results are intact while the next one runs.
struct Slot {
  PinnedMemory inputs, outputs;
  /// On the GPU: all inputs, then all outputs.
  DevicePointer memory = 0;
  /// By buffer: its address on the GPU, the kernels' argument.
  std::vector<DevicePointer> pointers;
  /// By step; null for one that does not run.
  std::vector<GraphExec> graphs;
  std::optional<EventHandle> uploaded, computed, downloaded;
  /// Which one of the plan this slot's last one is.
  uint32_t step = 0;
  /// Whether the copies to the host that end it were asked for.
  bool downloading = false;
  /// By buffer: whether `outputs` has what the last step of this slot left.
  std::vector<bool> copied;
};

/// Everything that a loaded artifact has on a GPU; destroyed in the reverse order of its members,
/// while the context is current.
struct Loaded {
  explicit Loaded(std::shared_ptr<const Driver> theDriver)
      : driver(std::move(theDriver)), stream(*driver), copies(*driver) {}
  ~Loaded() {
    // Memory must not be freed while a kernel or a copy uses it. Errors were reported or are of no
    // use now.
    driver->cuStreamSynchronize(stream);
    driver->cuStreamSynchronize(copies);
    for (Slot &slot : slots)
      for (GraphExec graph : slot.graphs)
        if (graph)
          driver->cuGraphExecDestroy(graph);
  }
  Loaded(const Loaded &) = delete;
  Loaded &operator=(const Loaded &) = delete;

  std::shared_ptr<const Driver> driver;
  /// By step, by launch.
  std::unique_ptr<LoadedKernels> kernels;
  std::vector<std::vector<Function>> functions;
  Function readCeiling = nullptr, synthesize = nullptr;
  DeviceMemory weights, caches, work, bandwidthBuffer, bandwidthScratch;
  std::array<Slot, 2> slots;
  /// Of kernels, and of copies that need not wait for the kernels before them.
  StreamHandle stream, copies;
};

class CudaDevice final : public Device, private StepQueue {
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
  uint32_t decodeStep() const override { return artifact->plan().decodeStep(graph); }
  void run(uint32_t step) override;
  StepQueue *queue() override { return this; }
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
  void start(uint32_t step, bool fed) override;
  void finish() override;

  /// Sizes of the three allocations, and the offset of each buffer in its allocation or, of inputs
  /// and outputs, among all of its kind. Inputs that outputs feed come first.
  struct Layout {
    uint64_t weights = 0, caches = 0, inputs = 0, outputs = 0, fed = 0, arena = 0;
    std::vector<uint64_t> offsets;
    /// The third allocation is | inputs | outputs | of each slot, then the arena |.
    uint64_t work() const { return 2 * (inputs + outputs) + arena; }
  };

  void layOut();
  void checkMemory(uint64_t present, const char *what) const;
  void findKernels(const KernelFile &file);
  /// Why the blocks of a step's cooperative launches cannot live at the same time; empty if they
  /// can.
  std::string findNoRoom(uint32_t step) const;
  /// Decides which step decodes. An Error if a step cannot run.
  void checkResidency();
  void allocate();
  void fillWeights();
  void synthesizeOnGpu(const std::vector<uint32_t> &buffers,
                       const std::function<void(uint64_t)> &onDone);
  void upload(DevicePointer to, uint64_t bytes,
              const std::function<void(uint64_t offset, std::span<std::byte>)> &fill,
              const std::function<void(uint64_t)> &onDone);
  void launch(Slot &slot, uint32_t step, size_t index, bool overlap);
  void launchUtility(Function function, const Utility &utility, void **parameters,
                     const char *name);
  void capture(Slot &slot, uint32_t step);
  /// Before the launches of a step: copies its inputs to the GPU and marks the host's copies of
  /// outputs as outdated. Returns the step's slot, the next one.
  Slot &copyInputs(bool fed);
  /// The same for launches that run while no step is in flight, and which finish by themselves.
  Slot &beginAlone();
  /// After the launches: copies small outputs; large ones (logits) are copied when they are asked
  /// for.
  void copySmallOutputs(Slot &slot);
  void copyOutput(Slot &slot, uint32_t buffer);
  /// Of the step that was finished last.
  Slot &finishedSlot() const { return loaded->slots[finished]; }
  void synchronize(const std::string &what);
  void requireLoaded() const;
  const Buffer &bufferAt(uint32_t index) const { return artifact->plan().buffers.at(index); }
  int hostThreads() const {
    return options.threads > 0 ? options.threads
                               : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }

  const DeviceOptions options;
  /// Whether a token's step is a graph of kernels where it could be one kernel.
  bool graph = options.graph;
  std::shared_ptr<const Artifact> artifact;
  std::shared_ptr<const Driver> driver;
  Gpu gpu;
  Layout layout;
  std::string kernelsName;
  std::unique_ptr<PrimaryContext> context;
  std::unique_ptr<Loaded> loaded;
  /// All inputs as they were written last.
  std::vector<std::byte> inputs;
  /// Slots of the next step to be started and of the last one finished; steps take turns.
  size_t next = 0, finished = 1;
  int inFlight = 0;
};

} // namespace sluice::runtime::cuda

#endif // SLUICE_RUNTIME_DEVICE_CUDA_CUDADEVICEIMPL_H
