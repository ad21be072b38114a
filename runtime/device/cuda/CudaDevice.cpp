// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/cuda/CudaDevice.h"

#include "runtime/device/SyntheticWeights.h"
#include "runtime/device/cuda/Driver.h"
#include "runtime/device/cuda/Kernels.h"
#include "sluice-support/Text.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <thread>
#include <utility>

using namespace sluice::runtime;
using namespace sluice::runtime::cuda;
using sluice::support::printable;

namespace {

constexpr uint64_t alignment = 256;
/// An output of up to this size costs less to copy than to ask for later.
constexpr uint64_t smallOutput = 4096;
constexpr uint64_t stagingBytes = uint64_t(16) << 20;
/// A read of this many times the L2 cache is a read of memory.
constexpr uint64_t cachesToMeasure = 4;
constexpr int bandwidthRuns = 5;
constexpr const char *readCeilingKernel = "sluice_read_ceiling";
constexpr const char *synthesizeKernel = "sluice_synthesize";

uint64_t alignUp(uint64_t value) { return (value + alignment - 1) / alignment * alignment; }

/// Makes a context the calling thread's while it lives.
class CurrentContext {
public:
  CurrentContext(const Driver &driver, Context context) : driver(driver) {
    driver.check(driver.cuCtxPushCurrent_v2(context), "cannot use the GPU's context");
  }
  ~CurrentContext() {
    Context popped;
    driver.cuCtxPopCurrent_v2(&popped);
  }
  CurrentContext(const CurrentContext &) = delete;
  CurrentContext &operator=(const CurrentContext &) = delete;

private:
  const Driver &driver;
};

/// The primary context of a GPU, which all of a process shares.
class PrimaryContext {
public:
  PrimaryContext(std::shared_ptr<const Driver> theDriver, const Gpu &gpu)
      : driver(std::move(theDriver)), device(gpu.handle) {
    driver->check(driver->cuDevicePrimaryCtxRetain(&context, device),
                  "cannot make a context on " + gpu.name);
  }
  ~PrimaryContext() { driver->cuDevicePrimaryCtxRelease_v2(device); }
  PrimaryContext(const PrimaryContext &) = delete;
  PrimaryContext &operator=(const PrimaryContext &) = delete;

  operator Context() const { return context; }

private:
  std::shared_ptr<const Driver> driver;
  DeviceHandle device;
  Context context = nullptr;
};

// What follows is made and destroyed while the context is current.

class DeviceMemory {
public:
  DeviceMemory() = default;
  DeviceMemory(const Driver &driver, uint64_t bytes, const std::string &what)
      : driver(&driver), size(bytes) {
    if (bytes)
      driver.check(driver.cuMemAlloc_v2(&pointer, bytes),
                   "cannot allocate " + std::to_string(bytes) + " bytes of GPU memory for " + what);
  }
  DeviceMemory(DeviceMemory &&other) noexcept { *this = std::move(other); }
  DeviceMemory &operator=(DeviceMemory &&other) noexcept {
    std::swap(driver, other.driver);
    std::swap(pointer, other.pointer);
    std::swap(size, other.size);
    return *this;
  }
  ~DeviceMemory() {
    if (pointer)
      driver->cuMemFree_v2(pointer);
  }

  DevicePointer address() const { return pointer; }
  uint64_t bytes() const { return size; }

private:
  const Driver *driver = nullptr;
  DevicePointer pointer = 0;
  uint64_t size = 0;
};

/// Host memory that copies to and from the GPU run from without the host's help.
class PinnedMemory {
public:
  PinnedMemory() = default;
  PinnedMemory(const Driver &driver, uint64_t bytes) : driver(&driver), size(bytes) {
    if (!bytes)
      return;
    driver.check(driver.cuMemHostAlloc(&memory, bytes, 0),
                 "cannot pin " + std::to_string(bytes) + " bytes of host memory");
    std::memset(memory, 0, bytes);
  }
  PinnedMemory(PinnedMemory &&other) noexcept { *this = std::move(other); }
  PinnedMemory &operator=(PinnedMemory &&other) noexcept {
    std::swap(driver, other.driver);
    std::swap(memory, other.memory);
    std::swap(size, other.size);
    return *this;
  }
  ~PinnedMemory() {
    if (memory)
      driver->cuMemFreeHost(memory);
  }

  std::byte *data() const { return static_cast<std::byte *>(memory); }
  uint64_t bytes() const { return size; }

private:
  const Driver *driver = nullptr;
  void *memory = nullptr;
  uint64_t size = 0;
};

class EventHandle {
public:
  explicit EventHandle(const Driver &driver) : driver(&driver) {
    driver.check(driver.cuEventCreate(&event, 0), "cannot create an event");
  }
  EventHandle(EventHandle &&other) noexcept
      : driver(other.driver), event(std::exchange(other.event, nullptr)) {}
  EventHandle &operator=(EventHandle &&) = delete;
  ~EventHandle() {
    if (event)
      driver->cuEventDestroy_v2(event);
  }
  void record(Stream stream) const {
    driver->check(driver->cuEventRecord(event, stream), "cannot record an event");
  }
  void wait(const std::string &what) const {
    driver->check(driver->cuEventSynchronize(event), what);
  }
  double secondsSince(const EventHandle &start) const {
    float milliseconds = 0;
    driver->check(driver->cuEventElapsedTime(&milliseconds, start.event, event),
                  "cannot read the time between two events");
    return static_cast<double>(milliseconds) * 1e-3;
  }

private:
  const Driver *driver;
  Event event = nullptr;
};

/// Everything that a loaded artifact has on a GPU; destroyed in the reverse order of its members,
/// while the context is current.
struct Loaded {
  explicit Loaded(std::shared_ptr<const Driver> theDriver) : driver(std::move(theDriver)) {
    driver->check(driver->cuStreamCreate(&stream, streamNonBlocking), "cannot create a stream");
  }
  ~Loaded() {
    // What still runs must not lose its memory. Its errors were reported or are of no use now.
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
  std::vector<double> profile(uint32_t step) override;
  std::string profileRemark() const override;
  std::optional<double> measureStep(uint32_t step, int64_t count) override;
  void write(uint32_t buffer, uint64_t offset, std::span<const std::byte> bytes) override;
  void read(uint32_t buffer, uint64_t offset, std::span<std::byte> bytes) override;
  const void *output(uint32_t buffer) override;
  void clearCaches() override;
  Bandwidth measureReadBandwidth() override;

private:
  /// Sizes of the three allocations, and where each buffer lies in its one.
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
  /// Before a step's launches: inputs go to the GPU, and the host's copies of outputs are old.
  void beginStep();
  void synchronize(const std::string &what);
  void requireLoaded() const;
  void checkExtent(uint32_t buffer, uint64_t offset, uint64_t bytes) const;
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
  /// By buffer: what kernels get.
  std::vector<DevicePointer> pointers;
  bool inputsChanged = true;
  /// By buffer: whether the host's copy of an output is that of the last step.
  std::vector<bool> copied;
};

} // namespace

std::unique_ptr<Device> sluice::runtime::createCudaDevice(const DeviceOptions &options) {
  return std::make_unique<CudaDevice>(options);
}

std::string CudaDevice::description() const {
  if (!loaded)
    return "the first NVIDIA GPU";
  return gpu.name + ", " + gpu.arch() + ", " + std::to_string(gpu.multiprocessors) +
         " multiprocessors, driver for CUDA " + Driver::versionText(driver->version()) + ", " +
         kernelsName;
}

void CudaDevice::layOut() {
  const Plan &plan = artifact->plan();
  layout = {};
  layout.offsets.resize(plan.buffers.size());
  uint64_t inputs = 0, outputs = 0;
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    const Buffer &buffer = plan.buffers[i];
    auto place = [&](uint64_t &end) {
      layout.offsets[i] = end;
      end += alignUp(buffer.bytes);
    };
    switch (buffer.kind) {
    case BufferKind::Weights:
      place(layout.weights);
      break;
    case BufferKind::Cache:
      place(layout.caches);
      break;
    case BufferKind::Input:
      place(inputs);
      break;
    case BufferKind::Output:
      place(outputs);
      break;
    case BufferKind::Arena:
      layout.offsets[i] = buffer.offset;
      break;
    }
  }
  // | inputs | outputs | arena |: inputs are one copy.
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    if (plan.buffers[i].kind == BufferKind::Output)
      layout.offsets[i] += inputs;
    else if (plan.buffers[i].kind == BufferKind::Arena)
      layout.offsets[i] += inputs + outputs;
  }
  layout.inputs = inputs;
  layout.outputs = outputs;
  layout.work = inputs + outputs + alignUp(plan.arenaBytes);
}

void CudaDevice::checkMemory(uint64_t available, const char *what) const {
  if (layout.total() > available)
    throw Error(artifact->planName() + ": a session needs " + std::to_string(layout.total()) +
                " bytes of GPU memory (weights " + std::to_string(layout.weights) + ", caches " +
                std::to_string(layout.caches) + ", the rest " + std::to_string(layout.work) +
                "), " + gpu.name + " has " + std::to_string(available) + what +
                "; compile the model with smaller weights or a shorter context");
}

void CudaDevice::load(std::shared_ptr<const Artifact> newArtifact) {
  if (artifact)
    throw Error(newArtifact->planName() + ": this device has loaded another artifact already");
  artifact = std::move(newArtifact);
  const TargetInfo &target = artifact->plan().target;
  if (target.kind != "gpu")
    throw Error(artifact->planName() + ": was compiled for target \"" + target.name + "\" (" +
                target.kind + "), which the cuda device cannot run");
  checkHasGpuKernels(*artifact);
  driver = Driver::load();
  gpu = Gpu::query(*driver);
  KernelFile file = chooseKernels(*artifact, gpu);
  checkLaunches(*artifact, gpu);
  layOut();
  checkMemory(gpu.memoryBytes, "");

  context = std::make_unique<PrimaryContext>(driver, gpu);
  CurrentContext current(*driver, *context);
  size_t freeBytes = 0, totalBytes = 0;
  driver->check(driver->cuMemGetInfo_v2(&freeBytes, &totalBytes), "cannot ask for free memory");
  checkMemory(freeBytes, " free");
  // Destroyed here, in the context, if anything below throws.
  struct Rollback {
    std::unique_ptr<Loaded> &loaded;
    bool done = false;
    ~Rollback() {
      if (!done)
        loaded.reset();
    }
  } rollback{loaded};
  loaded = std::make_unique<Loaded>(driver);
  findKernels(file);
  allocate();
  fillWeights();
  for (uint32_t step = 0; step < artifact->plan().steps.size(); ++step)
    capture(step);
  synchronize("cannot prepare the artifact's steps");
  rollback.done = true;
}

void CudaDevice::findKernels(const KernelFile &file) {
  loaded->kernels = std::make_unique<LoadedKernels>(driver, file);
  kernelsName = (file.isPtx ? "compiled by the driver from " : "") +
                std::filesystem::path(file.file->path()).filename().string();
  const Plan &plan = artifact->plan();
  // The largest of what its launches ask for: a kernel's limits are set once.
  std::map<std::string, Launch> largest;
  for (const Step &step : plan.steps)
    for (const Launch &launch : step.launches) {
      Launch &all = largest.try_emplace(launch.kernel, launch).first->second;
      all.block = std::max(all.block, launch.block);
      all.shared = std::max(all.shared, launch.shared);
      all.cluster = std::max(all.cluster, launch.cluster);
    }
  std::map<std::string, Function> functions;
  for (const auto &[name, all] : largest)
    functions[name] = loaded->kernels->find(name, all.block, all.shared, all.cluster,
                                            "launch \"" + printable(all.label) + "\"");
  for (const Step &step : plan.steps) {
    auto &bound = loaded->functions.emplace_back();
    for (const Launch &launch : step.launches)
      bound.push_back(functions.at(launch.kernel));
  }
  auto findUtility = [&](const char *name) -> Function {
    auto utility = plan.utilities.find(name);
    if (utility == plan.utilities.end())
      return nullptr;
    return loaded->kernels->find(name, utility->second.block, utility->second.shared, 1,
                                 std::string("utilities.") + name);
  };
  loaded->readCeiling = findUtility(readCeilingKernel);
  loaded->synthesize = findUtility(synthesizeKernel);
}

void CudaDevice::allocate() {
  const Plan &plan = artifact->plan();
  // Weights first: a large buffer that is allocated after others were freed was seen to read 13 to
  // 15% slower.
  loaded->weights = DeviceMemory(*driver, layout.weights, "weights");
  loaded->caches = DeviceMemory(*driver, layout.caches, "caches");
  loaded->work = DeviceMemory(*driver, layout.work, "intermediate results");
  loaded->inputs = PinnedMemory(*driver, layout.inputs);
  loaded->outputs = PinnedMemory(*driver, layout.outputs);
  copied.assign(plan.buffers.size(), true); // zeros here and there
  pointers.assign(plan.buffers.size(), 0);
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    BufferKind kind = plan.buffers[i].kind;
    const DeviceMemory &memory = kind == BufferKind::Weights ? loaded->weights
                                 : kind == BufferKind::Cache ? loaded->caches
                                                             : loaded->work;
    pointers[i] = memory.address() + layout.offsets[i];
  }
  for (const DeviceMemory *memory : {&loaded->caches, &loaded->work})
    if (memory->bytes())
      driver->check(driver->cuMemsetD8Async(memory->address(), 0, memory->bytes(), loaded->stream),
                    "cannot clear GPU memory");
}

/// Copies `bytes` bytes in pieces: `fill` makes a piece in pinned memory while the one before it is
/// on its way.
void CudaDevice::upload(DevicePointer to, uint64_t bytes,
                        const std::function<void(uint64_t, std::span<std::byte>)> &fill,
                        const std::function<void(uint64_t)> &onDone) {
  const uint64_t piece = std::min(bytes, stagingBytes);
  std::array<PinnedMemory, 2> staging = {PinnedMemory(*driver, piece),
                                         PinnedMemory(*driver, piece)};
  std::array<EventHandle, 2> copied = {EventHandle(*driver), EventHandle(*driver)};
  // Memory must not be freed while a copy reads it, also when something below throws.
  struct Waiter {
    const Driver &driver;
    Stream stream;
    ~Waiter() { driver.cuStreamSynchronize(stream); }
  } waiter{*driver, loaded->stream};
  for (uint64_t at = 0, i = 0; at < bytes; at += piece, ++i) {
    const uint64_t length = std::min(piece, bytes - at);
    if (i >= 2)
      copied[i % 2].wait("cannot copy weights to the GPU");
    fill(at, {staging[i % 2].data(), length});
    driver->check(
        driver->cuMemcpyHtoDAsync_v2(to + at, staging[i % 2].data(), length, loaded->stream),
        "cannot copy weights to the GPU");
    copied[i % 2].record(loaded->stream);
    onDone(length);
  }
  driver->check(driver->cuStreamSynchronize(loaded->stream), "cannot copy weights to the GPU");
}

void CudaDevice::fillWeights() {
  const Plan &plan = artifact->plan();
  uint64_t done = 0, total = 0;
  for (const Buffer &buffer : plan.buffers)
    total += buffer.kind == BufferKind::Weights ? buffer.bytes : 0;
  auto onDone = [&](uint64_t bytes) {
    done += bytes;
    if (options.onProgress)
      options.onProgress(done, total);
  };
  // One stream of pieces for all: a weight may be much smaller than a piece.
  struct Source {
    uint64_t begin;
    uint32_t buffer;
  };
  std::vector<Source> sources;
  std::vector<uint32_t> onGpu;
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    const Buffer &buffer = plan.buffers[i];
    if (buffer.kind != BufferKind::Weights)
      continue;
    if (buffer.synthetic && loaded->synthesize && buffer.synthetic->isWordAligned() &&
        buffer.bytes % 8 == 0)
      onGpu.push_back(i);
    else
      sources.push_back({layout.offsets[i], i});
  }
  synthesizeOnGpu(onGpu, onDone);
  // Runs of neighbours, with the gaps between them as zeros.
  for (size_t first = 0; first < sources.size();) {
    size_t last = first + 1;
    auto endOf = [&](size_t i) {
      return sources[i].begin + alignUp(plan.buffers[sources[i].buffer].bytes);
    };
    while (last < sources.size() && sources[last].begin == endOf(last - 1))
      ++last;
    const uint64_t begin = sources[first].begin;
    size_t next = first;
    auto fill = [&](uint64_t offset, std::span<std::byte> out) {
      std::memset(out.data(), 0, out.size());
      const uint64_t from = begin + offset, to = from + out.size();
      while (endOf(next) <= from)
        ++next;
      for (size_t i = next; i < last && sources[i].begin < to; ++i) {
        const Buffer &buffer = plan.buffers[sources[i].buffer];
        const uint64_t start = std::max(from, sources[i].begin),
                       stop = std::min(to, sources[i].begin + buffer.bytes);
        if (start >= stop)
          continue;
        std::span<std::byte> part = out.subspan(start - from, stop - start);
        const uint64_t inBuffer = start - sources[i].begin;
        if (buffer.synthetic)
          generateSynthetic(*buffer.synthetic, part, hostThreads(), inBuffer);
        else
          std::memcpy(part.data(), artifact->weights(buffer).data() + inBuffer, part.size());
      }
    };
    upload(loaded->weights.address() + begin, endOf(last - 1) - begin, fill, onDone);
    first = last;
  }
}

void CudaDevice::synthesizeOnGpu(const std::vector<uint32_t> &buffers,
                                 const std::function<void(uint64_t)> &onDone) {
  if (buffers.empty())
    return;
  const Utility &utility = artifact->plan().utilities.at(synthesizeKernel);
  std::vector<uint64_t> table, starts;
  for (uint32_t index : buffers) {
    const Buffer &buffer = bufferAt(index);
    starts.push_back(table.size() * sizeof(uint64_t));
    table.insert(table.end(), {buffer.bytes, buffer.synthetic->seed, buffer.synthetic->period(),
                               buffer.synthetic->regions.size()});
    for (const sluice::synthetic::SyntheticRegion &region : buffer.synthetic->regions)
      table.insert(table.end(), {region.end, region.masks.keep, region.masks.set});
  }
  const uint64_t tableBytes = table.size() * sizeof(uint64_t);
  DeviceMemory memory(*driver, tableBytes, "the patterns of generated weights");
  upload(
      memory.address(), tableBytes,
      [&](uint64_t offset, std::span<std::byte> out) {
        std::memcpy(out.data(), reinterpret_cast<const std::byte *>(table.data()) + offset,
                    out.size());
      },
      [](uint64_t) {});
  for (size_t i = 0; i < buffers.size(); ++i) {
    DevicePointer pattern = memory.address() + starts[i];
    void *parameters[] = {&pattern, &pointers[buffers[i]]};
    launchUtility(loaded->synthesize, utility, parameters, synthesizeKernel);
    onDone(bufferAt(buffers[i]).bytes);
  }
  synchronize("cannot generate weights");
}

void CudaDevice::launchUtility(Function function, const Utility &utility, void **parameters,
                               const char *name) {
  LaunchConfig config;
  config.gridX = static_cast<unsigned>(gpu.multiprocessors * utility.blocksPerMultiprocessor);
  config.blockX = static_cast<unsigned>(utility.block);
  config.sharedBytes = static_cast<unsigned>(utility.shared);
  config.stream = loaded->stream;
  driver->check(driver->cuLaunchKernelEx(&config, function, parameters, nullptr),
                std::string("cannot launch ") + name);
}

void CudaDevice::launch(uint32_t stepIndex, size_t index, bool overlap) {
  const Step &step = artifact->plan().steps[stepIndex];
  const Launch &launch = step.launches[index];
  std::array<LaunchAttribute, 2> attributes{};
  LaunchConfig config;
  config.gridX = static_cast<unsigned>(launch.grid);
  config.blockX = static_cast<unsigned>(launch.block);
  config.sharedBytes = static_cast<unsigned>(launch.shared);
  config.stream = loaded->stream;
  config.attributes = attributes.data();
  if (overlap) {
    LaunchAttribute &attribute = attributes[config.attributeCount++];
    attribute.id = launchProgrammaticStreamSerialization;
    attribute.programmaticStreamSerializationAllowed = 1;
  }
  if (launch.cluster > 1) {
    LaunchAttribute &attribute = attributes[config.attributeCount++];
    attribute.id = launchClusterDimension;
    attribute.clusterDimension = {static_cast<unsigned>(launch.cluster), 1, 1};
  }
  // The driver copies the values during the call.
  std::vector<void *> parameters;
  for (uint32_t argument : launch.arguments)
    parameters.push_back(&pointers[argument]);
  driver->check(driver->cuLaunchKernelEx(&config, loaded->functions[stepIndex][index],
                                         parameters.data(), nullptr),
                "cannot launch kernel \"" + printable(launch.kernel) + "\" (\"" +
                    printable(launch.label) + "\")");
}

void CudaDevice::capture(uint32_t stepIndex) {
  const Step &step = artifact->plan().steps[stepIndex];
  const std::string what = "cannot capture step \"" + printable(step.name) + "\" as a graph";
  struct GraphHandle {
    const Driver &driver;
    Graph graph = nullptr;
    ~GraphHandle() {
      if (graph)
        driver.cuGraphDestroy(graph);
    }
  } captured{*driver};
  driver->check(driver->cuStreamBeginCapture_v2(loaded->stream, captureModeThreadLocal), what);
  try {
    // The first one has nothing before it in the graph.
    for (size_t i = 0; i < step.launches.size(); ++i)
      launch(stepIndex, i, i > 0 && step.launches[i].overlap);
  } catch (const Error &) {
    driver->cuStreamEndCapture(loaded->stream, &captured.graph);
    throw;
  }
  driver->check(driver->cuStreamEndCapture(loaded->stream, &captured.graph), what);
  GraphExec executable = nullptr;
  driver->check(driver->cuGraphInstantiateWithFlags(&executable, captured.graph, 0), what);
  loaded->steps.push_back(executable);
  driver->check(driver->cuGraphUpload(executable, loaded->stream), what);
}

void CudaDevice::requireLoaded() const {
  if (!loaded)
    throw Error("the cuda device has loaded no artifact");
}

void CudaDevice::copyInputs() {
  if (!inputsChanged || layout.inputs == 0)
    return;
  driver->check(driver->cuMemcpyHtoDAsync_v2(loaded->work.address(), loaded->inputs.data(),
                                             layout.inputs, loaded->stream),
                "cannot copy inputs to the GPU");
  inputsChanged = false;
}

void CudaDevice::copyOutput(uint32_t index) {
  driver->check(
      driver->cuMemcpyDtoHAsync_v2(loaded->outputs.data() + (layout.offsets[index] - layout.inputs),
                                   pointers[index], bufferAt(index).bytes, loaded->stream),
      "cannot copy outputs from the GPU");
  copied[index] = true;
}

void CudaDevice::beginStep() {
  copied.assign(copied.size(), false);
  copyInputs();
}

void CudaDevice::copySmallOutputs() {
  const std::vector<Buffer> &buffers = artifact->plan().buffers;
  for (uint32_t i = 0; i < buffers.size(); ++i)
    if (buffers[i].kind == BufferKind::Output && buffers[i].bytes <= smallOutput)
      copyOutput(i);
}

void CudaDevice::synchronize(const std::string &what) {
  driver->check(driver->cuStreamSynchronize(loaded->stream), what);
}

static std::string stepFailed(const Step &step) {
  return "step \"" + printable(step.name) + "\" failed";
}

void CudaDevice::run(uint32_t index) {
  requireLoaded();
  const Step &step = artifact->plan().steps.at(index);
  CurrentContext current(*driver, *context);
  beginStep();
  driver->check(driver->cuGraphLaunch(loaded->steps[index], loaded->stream), stepFailed(step));
  copySmallOutputs();
  synchronize(stepFailed(step));
}

std::string CudaDevice::profileRemark() const {
  return "measured outside of the graph, with an event after each kernel: no kernel overlaps "
         "another, so the times add up to more than the step's";
}

std::vector<double> CudaDevice::profile(uint32_t index) {
  requireLoaded();
  const Step &step = artifact->plan().steps.at(index);
  CurrentContext current(*driver, *context);
  std::vector<EventHandle> events;
  events.reserve(step.launches.size() + 1);
  for (size_t i = 0; i <= step.launches.size(); ++i)
    events.emplace_back(*driver);
  beginStep();
  // A whole step first: while it runs the host gets ahead, so that what is measured does not wait
  // for it. The same step twice leaves what it leaves once.
  driver->check(driver->cuGraphLaunch(loaded->steps[index], loaded->stream), stepFailed(step));
  events[0].record(loaded->stream);
  for (size_t i = 0; i < step.launches.size(); ++i) {
    launch(index, i, /*overlap=*/false);
    events[i + 1].record(loaded->stream);
  }
  copySmallOutputs();
  synchronize(stepFailed(step));
  std::vector<double> seconds(step.launches.size());
  for (size_t i = 0; i < seconds.size(); ++i)
    seconds[i] = events[i + 1].secondsSince(events[i]);
  return seconds;
}

std::optional<double> CudaDevice::measureStep(uint32_t index, int64_t count) {
  requireLoaded();
  const Step &step = artifact->plan().steps.at(index);
  CurrentContext current(*driver, *context);
  EventHandle start(*driver), end(*driver);
  beginStep();
  start.record(loaded->stream);
  for (int64_t i = 0; i < count; ++i)
    driver->check(driver->cuGraphLaunch(loaded->steps[index], loaded->stream), stepFailed(step));
  end.record(loaded->stream);
  copySmallOutputs();
  synchronize(stepFailed(step));
  return end.secondsSince(start) / static_cast<double>(std::max<int64_t>(count, 1));
}

void CudaDevice::checkExtent(uint32_t index, uint64_t offset, uint64_t bytes) const {
  requireLoaded();
  const Buffer &buffer = bufferAt(index);
  if (offset > buffer.bytes || bytes > buffer.bytes - offset)
    throw Error("buffer \"" + buffer.name + "\" has " + std::to_string(buffer.bytes) +
                " bytes, access to " + std::to_string(bytes) + " at " + std::to_string(offset) +
                " leaves it");
}

void CudaDevice::write(uint32_t index, uint64_t offset, std::span<const std::byte> bytes) {
  checkExtent(index, offset, bytes.size());
  const Buffer &buffer = bufferAt(index);
  if (buffer.kind == BufferKind::Weights)
    throw Error("buffer \"" + buffer.name + "\" holds weights, which cannot be written");
  if (buffer.kind == BufferKind::Input) {
    // Nothing runs now that reads it: every step is waited for.
    std::memcpy(loaded->inputs.data() + layout.offsets[index] + offset, bytes.data(), bytes.size());
    inputsChanged = true;
    return;
  }
  if (bytes.empty())
    return;
  CurrentContext current(*driver, *context);
  const std::string what = "cannot write buffer \"" + printable(buffer.name) + "\"";
  driver->check(driver->cuMemcpyHtoDAsync_v2(pointers[index] + offset, bytes.data(), bytes.size(),
                                             loaded->stream),
                what);
  synchronize(what);
  if (buffer.kind == BufferKind::Output)
    std::memcpy(loaded->outputs.data() + (layout.offsets[index] - layout.inputs) + offset,
                bytes.data(), bytes.size());
}

void CudaDevice::read(uint32_t index, uint64_t offset, std::span<std::byte> bytes) {
  checkExtent(index, offset, bytes.size());
  if (bytes.empty())
    return;
  const Buffer &buffer = bufferAt(index);
  CurrentContext current(*driver, *context);
  const std::string what = "cannot read buffer \"" + printable(buffer.name) + "\"";
  if (buffer.kind == BufferKind::Input)
    copyInputs();
  driver->check(driver->cuMemcpyDtoHAsync_v2(bytes.data(), pointers[index] + offset, bytes.size(),
                                             loaded->stream),
                what);
  synchronize(what);
}

const void *CudaDevice::output(uint32_t index) {
  requireLoaded();
  const Buffer &buffer = bufferAt(index);
  if (buffer.kind != BufferKind::Output)
    throw Error("buffer \"" + buffer.name + "\" is no output");
  if (!copied[index]) {
    CurrentContext current(*driver, *context);
    copyOutput(index);
    synchronize("cannot copy outputs from the GPU");
  }
  return loaded->outputs.data() + (layout.offsets[index] - layout.inputs);
}

void CudaDevice::clearCaches() {
  requireLoaded();
  if (layout.caches == 0)
    return;
  CurrentContext current(*driver, *context);
  driver->check(driver->cuMemsetD8Async(loaded->caches.address(), 0, layout.caches, loaded->stream),
                "cannot clear the caches");
  synchronize("cannot clear the caches");
}

Bandwidth CudaDevice::measureReadBandwidth() {
  requireLoaded();
  CurrentContext current(*driver, *context);
  const uint64_t enough =
      std::max<uint64_t>(cachesToMeasure * static_cast<uint64_t>(gpu.l2Bytes), uint64_t(64) << 20);
  auto ownBuffer = [&](DeviceMemory &memory, const char *what) {
    if (memory.bytes())
      return;
    memory = DeviceMemory(*driver, enough / readCeilingUnit * readCeilingUnit, what);
    driver->check(driver->cuMemsetD8Async(memory.address(), 1, memory.bytes(), loaded->stream),
                  "cannot fill memory to be measured");
  };
  Bandwidth result;
  DevicePointer buffer = loaded->weights.address();
  uint64_t bytes = layout.weights / readCeilingUnit * readCeilingUnit;
  result.buffer = "the weights";
  if (bytes < enough) {
    ownBuffer(loaded->bandwidthBuffer, "measuring the memory");
    buffer = loaded->bandwidthBuffer.address();
    bytes = loaded->bandwidthBuffer.bytes();
    result.buffer = "a buffer of its own";
  }
  result.bufferBytes = bytes;

  std::function<void()> readOnce;
  uint64_t moved = bytes;
  if (loaded->readCeiling) {
    const Utility &utility = artifact->plan().utilities.at(readCeilingKernel);
    result.method = std::string("reads by ") + readCeilingKernel;
    uint64_t outBytes = 8 * static_cast<uint64_t>(gpu.multiprocessors) *
                        static_cast<uint64_t>(utility.blocksPerMultiprocessor);
    // | the kernel's parameters | its results |
    if (loaded->bandwidthScratch.bytes() == 0) {
      loaded->bandwidthScratch =
          DeviceMemory(*driver, alignment + outBytes, "measuring the memory");
      upload(
          loaded->bandwidthScratch.address(), sizeof(bytes),
          [&](uint64_t, std::span<std::byte> out) {
            std::memcpy(out.data(), &bytes, sizeof(bytes));
          },
          [](uint64_t) {});
    }
    readOnce = [&] {
      DevicePointer size = loaded->bandwidthScratch.address(), out = size + alignment;
      void *parameters[] = {&buffer, &size, &out};
      launchUtility(loaded->readCeiling, utility, parameters, readCeilingKernel);
    };
  } else {
    result.method = "copies on the GPU, reads and writes counted,";
    ownBuffer(loaded->bandwidthScratch, "measuring the memory");
    moved = 2 * bytes;
    readOnce = [&] {
      const DeviceMemory &to = loaded->bandwidthScratch;
      for (uint64_t at = 0; at < bytes; at += to.bytes())
        driver->check(driver->cuMemcpyDtoDAsync_v2(to.address(), buffer + at,
                                                   std::min(to.bytes(), bytes - at),
                                                   loaded->stream),
                      "cannot copy within the GPU");
    };
  }
  std::vector<EventHandle> events;
  events.reserve(bandwidthRuns + 1);
  for (int i = 0; i <= bandwidthRuns; ++i)
    events.emplace_back(*driver);
  readOnce();
  events[0].record(loaded->stream);
  for (int i = 0; i < bandwidthRuns; ++i) {
    readOnce();
    events[i + 1].record(loaded->stream);
  }
  synchronize("cannot measure the memory");
  std::array<double, bandwidthRuns> seconds{};
  for (int i = 0; i < bandwidthRuns; ++i)
    seconds[i] = events[i + 1].secondsSince(events[i]);
  std::sort(seconds.begin(), seconds.end());
  result.bytesPerSecond = static_cast<double>(moved) / seconds[bandwidthRuns / 2];
  return result;
}
