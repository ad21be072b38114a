// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/MemoryNeeds.h"
#include "runtime/device/cuda/CudaDeviceImpl.h"
#include "sluice-support/Text.h"

#include <array>

using namespace sluice::runtime;
using namespace sluice::runtime::cuda;
using sluice::support::printable;

/// An output of up to this size costs less to copy than to ask for later.
static constexpr uint64_t smallOutput = 4096;

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
  auto place = [&](size_t i, uint64_t &end) {
    layout.offsets[i] = end;
    end += alignUp(plan.buffers[i].bytes);
  };
  for (size_t i = 0; i < plan.buffers.size(); ++i)
    if (plan.buffers[i].fedBy)
      place(i, layout.inputs);
  layout.fed = layout.inputs;
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    const Buffer &buffer = plan.buffers[i];
    switch (buffer.kind) {
    case BufferKind::Weights:
      place(i, layout.weights);
      break;
    case BufferKind::Cache:
      place(i, layout.caches);
      break;
    case BufferKind::Input:
      if (!buffer.fedBy)
        place(i, layout.inputs);
      break;
    case BufferKind::Output:
      place(i, layout.outputs);
      break;
    case BufferKind::Arena:
      layout.offsets[i] = buffer.offset;
      break;
    }
  }
  layout.arena = alignUp(plan.arenaBytes);
}

void CudaDevice::checkMemory(uint64_t present, const char *what) const {
  requireMemory(*artifact, {layout.weights, layout.caches, layout.work()}, present, "GPU memory",
                gpu.name + " has " + std::to_string(present) + what);
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
  checkResidency();
  allocate();
  fillWeights();
  for (Slot &slot : loaded->slots)
    for (uint32_t step = 0; step < artifact->plan().steps.size(); ++step)
      capture(slot, step);
  synchronize("cannot prepare the artifact's steps");
  rollback.done = true;
}

void CudaDevice::findKernels(const KernelFile &file) {
  loaded->kernels = std::make_unique<LoadedKernels>(driver, file);
  kernelsName = (file.isPtx ? "compiled by the driver from " : "") +
                std::filesystem::path(file.file->path()).filename().string();
  const Plan &plan = artifact->plan();
  // A kernel's limits are set once, to the largest that any of its launches asks for.
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
  loaded->work = DeviceMemory(*driver, layout.work(), "intermediate results");
  inputs.resize(layout.inputs);
  const uint64_t slotBytes = layout.inputs + layout.outputs;
  for (size_t s = 0; s < loaded->slots.size(); ++s) {
    Slot &slot = loaded->slots[s];
    slot.inputs = PinnedMemory(*driver, layout.inputs);
    slot.outputs = PinnedMemory(*driver, layout.outputs);
    slot.copied.assign(plan.buffers.size(), true); // both copies are zeros
    for (auto *event : {&slot.uploaded, &slot.computed, &slot.downloaded})
      event->emplace(*driver, eventDisableTiming);
    slot.memory = loaded->work.address() + s * slotBytes;
    const std::map<BufferKind, DevicePointer> bases = {
        {BufferKind::Weights, loaded->weights.address()},
        {BufferKind::Cache, loaded->caches.address()},
        {BufferKind::Input, slot.memory},
        {BufferKind::Output, slot.memory + layout.inputs},
        {BufferKind::Arena, loaded->work.address() + loaded->slots.size() * slotBytes}};
    for (size_t i = 0; i < plan.buffers.size(); ++i)
      slot.pointers.push_back(bases.at(plan.buffers[i].kind) + layout.offsets[i]);
  }
  // A step leaves an output that feeds an input in the place where the next step, which has the
  // other slot, looks for that input. So the host has nothing to do between the two.
  for (size_t i = 0; i < plan.buffers.size(); ++i)
    if (std::optional<uint32_t> output = plan.buffers[i].fedBy)
      for (size_t s = 0; s < loaded->slots.size(); ++s)
        loaded->slots[s].pointers[*output] = loaded->slots[1 - s].pointers[i];
  for (const DeviceMemory *memory : {&loaded->caches, &loaded->work})
    if (memory->bytes())
      driver->check(driver->cuMemsetD8Async(memory->address(), 0, memory->bytes(), loaded->stream),
                    "cannot clear GPU memory");
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

namespace {
/// A launch as the driver takes it. It points into itself.
struct Configured {
  Configured(const Launch &launch, Stream stream, bool overlap) {
    config.gridX = static_cast<unsigned>(launch.grid);
    config.blockX = static_cast<unsigned>(launch.block);
    config.sharedBytes = static_cast<unsigned>(launch.shared);
    config.stream = stream;
    config.attributes = attributes.data();
    if (overlap)
      add(launchProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
    if (launch.cluster > 1)
      add(launchClusterDimension).clusterDimension = {static_cast<unsigned>(launch.cluster), 1, 1};
    if (launch.cooperative)
      add(launchCooperative).cooperative = 1;
  }
  Configured(const Configured &) = delete;
  Configured &operator=(const Configured &) = delete;

  LaunchConfig config;

private:
  LaunchAttribute &add(LaunchAttributeId id) {
    LaunchAttribute &attribute = attributes[config.attributeCount++];
    attribute.id = id;
    return attribute;
  }
  std::array<LaunchAttribute, 3> attributes{};
};
} // namespace

std::string CudaDevice::findNoRoom(uint32_t index) const {
  const Step &step = artifact->plan().steps[index];
  for (size_t i = 0; i < step.launches.size(); ++i) {
    const Launch &launch = step.launches[i];
    if (!launch.cooperative)
      continue;
    Function function = loaded->functions[index][i];
    const std::string name = "launch \"" + printable(launch.label) + "\" of step \"" +
                             printable(step.name) + "\"",
                      asking = "cannot ask how many blocks of " + name + " live at the same time";
    int resident = 0;
    if (launch.cluster > 1) {
      Configured configured(launch, loaded->stream, /*overlap=*/false);
      driver->check(driver->cuOccupancyMaxActiveClusters(&resident, function, &configured.config),
                    asking);
    } else {
      driver->check(driver->cuOccupancyMaxActiveBlocksPerMultiprocessor(
                        &resident, function, static_cast<int>(launch.block),
                        static_cast<size_t>(launch.shared)),
                    asking);
      resident *= gpu.multiprocessors;
    }
    if (int64_t needed = launch.grid / launch.cluster; resident < needed)
      return name + " needs " + std::to_string(needed) +
             (launch.cluster > 1 ? " clusters of " + std::to_string(launch.cluster) : "") +
             " blocks at the same time, " + gpu.name + " has room for " + std::to_string(resident);
  }
  return {};
}

void CudaDevice::checkResidency() {
  const Plan &plan = artifact->plan();
  for (uint32_t index = 0; index < plan.steps.size(); ++index) {
    const std::string what = findNoRoom(index);
    if (what.empty())
      continue;
    if (index != plan.decodeStep(/*graph=*/false) || !plan.findStep(Plan::graphStep))
      throw Error(artifact->planName() + ": " + what);
    graph = true;
    if (options.onWarning)
      options.onWarning(artifact->planName() + ": " + what +
                        "; its tokens are decoded by a graph of kernels");
  }
}

void CudaDevice::launch(Slot &slot, uint32_t stepIndex, size_t index, bool overlap) {
  const Step &step = artifact->plan().steps[stepIndex];
  const Launch &launch = step.launches[index];
  Configured configured(launch, loaded->stream, overlap);
  // The driver copies the values during the call.
  std::vector<void *> parameters;
  for (uint32_t argument : launch.arguments)
    parameters.push_back(&slot.pointers[argument]);
  driver->check(driver->cuLaunchKernelEx(&configured.config, loaded->functions[stepIndex][index],
                                         parameters.data(), nullptr),
                "cannot launch kernel \"" + printable(launch.kernel) + "\" (\"" +
                    printable(launch.label) + "\")");
}

void CudaDevice::capture(Slot &slot, uint32_t stepIndex) {
  const Step &step = artifact->plan().steps[stepIndex];
  // Of the two that decode a token one runs.
  if (stepIndex != decodeStep() &&
      (stepIndex == artifact->plan().decodeStep(/*graph=*/false) || step.name == Plan::graphStep)) {
    slot.graphs.push_back(nullptr);
    return;
  }
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
    // The first launch has no launch before it in the graph to overlap with.
    for (size_t i = 0; i < step.launches.size(); ++i)
      launch(slot, stepIndex, i, i > 0 && step.launches[i].overlap);
  } catch (const Error &) {
    driver->cuStreamEndCapture(loaded->stream, &captured.graph);
    throw;
  }
  driver->check(driver->cuStreamEndCapture(loaded->stream, &captured.graph), what);
  GraphExec executable = nullptr;
  driver->check(driver->cuGraphInstantiateWithFlags(&executable, captured.graph, 0), what);
  slot.graphs.push_back(executable);
  driver->check(driver->cuGraphUpload(executable, loaded->stream), what);
}

void CudaDevice::requireLoaded() const {
  if (!loaded)
    throw Error("the cuda device has loaded no artifact");
}

Slot &CudaDevice::copyInputs(bool fed) {
  Slot &slot = loaded->slots[next], &before = loaded->slots[1 - next];
  slot.copied.assign(slot.copied.size(), false);
  slot.downloading = false;
  // The step before leaves what it feeds among these inputs. Copy it from there before the host's
  // take its place.
  if (!fed && inFlight > 0 && layout.fed > 0) {
    copySmallOutputs(before);
    loaded->stream.waitFor(*before.downloaded);
  }
  const uint64_t begin = fed ? layout.fed : 0;
  if (begin == layout.inputs)
    return slot;
  // The slot's last step has ended, so nothing reads these now.
  std::memcpy(slot.inputs.data(), inputs.data(), inputs.size());
  driver->check(driver->cuMemcpyHtoDAsync_v2(slot.memory + begin, slot.inputs.data() + begin,
                                             layout.inputs - begin,
                                             fed ? loaded->copies : loaded->stream),
                "cannot copy inputs to the GPU");
  if (fed) {
    slot.uploaded->record(loaded->copies);
    loaded->stream.waitFor(*slot.uploaded);
  }
  return slot;
}

void CudaDevice::copyOutput(Slot &slot, uint32_t index) {
  driver->check(driver->cuMemcpyDtoHAsync_v2(slot.outputs.data() + layout.offsets[index],
                                             slot.pointers[index], bufferAt(index).bytes,
                                             loaded->copies),
                "cannot copy outputs from the GPU");
  slot.copied[index] = true;
}

void CudaDevice::copySmallOutputs(Slot &slot) {
  if (slot.downloading)
    return;
  slot.downloading = true;
  loaded->copies.waitFor(*slot.computed);
  const std::vector<Buffer> &buffers = artifact->plan().buffers;
  // An output that feeds an input does not stay where it is, whatever its size.
  auto feeds = [&](uint32_t i) {
    return std::any_of(buffers.begin(), buffers.end(),
                       [&](const Buffer &input) { return input.fedBy == i; });
  };
  for (uint32_t i = 0; i < buffers.size(); ++i)
    if (buffers[i].kind == BufferKind::Output && (buffers[i].bytes <= smallOutput || feeds(i)))
      copyOutput(slot, i);
  slot.downloaded->record(loaded->copies);
}

Slot &CudaDevice::beginAlone() {
  if (inFlight > 0)
    throw Error("a step of the cuda device is in flight, which has to be finished first");
  Slot &slot = copyInputs(/*fed=*/false);
  finished = next;
  next = 1 - next;
  return slot;
}

void CudaDevice::synchronize(const std::string &what) {
  driver->check(driver->cuStreamSynchronize(loaded->stream), what);
}

static std::string stepFailed(const Step &step) {
  return "step \"" + printable(step.name) + "\" failed";
}

void CudaDevice::run(uint32_t index) {
  start(index, /*fed=*/false);
  finish();
}

void CudaDevice::start(uint32_t index, bool fed) {
  requireLoaded();
  const Step &step = artifact->plan().steps.at(index);
  if (!loaded->slots[next].graphs[index])
    throw Error("step \"" + printable(step.name) + "\" does not run on this device");
  if (inFlight == 2)
    throw Error("two steps of the cuda device are in flight, one has to be finished first");
  CurrentContext current(*driver, *context);
  Slot &slot = copyInputs(fed);
  driver->check(driver->cuGraphLaunch(slot.graphs[index], loaded->stream), stepFailed(step));
  slot.computed->record(loaded->stream);
  slot.step = index;
  next = 1 - next;
  ++inFlight;
}

void CudaDevice::finish() {
  if (inFlight == 0)
    throw Error("no step of the cuda device is in flight");
  const size_t oldest = inFlight == 2 ? next : 1 - next;
  try {
    CurrentContext current(*driver, *context);
    Slot &slot = loaded->slots[oldest];
    // Only now, so that the inputs of a step that was started ahead did not queue behind them.
    copySmallOutputs(slot);
    slot.downloaded->wait(stepFailed(artifact->plan().steps[slot.step]));
  } catch (const Error &) {
    inFlight = 0;
    throw;
  }
  finished = oldest;
  --inFlight;
}

void CudaDevice::trace(uint32_t index, const std::function<bool(size_t)> &afterLaunch) {
  requireLoaded();
  const Step &step = artifact->plan().steps.at(index);
  CurrentContext current(*driver, *context);
  Slot &slot = beginAlone();
  for (size_t i = 0; i < step.launches.size(); ++i) {
    launch(slot, index, i, /*overlap=*/false);
    synchronize(stepFailed(step));
    if (!afterLaunch(i))
      return;
  }
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
  Slot &slot = beginAlone();
  // A whole step runs first. Meanwhile the host queues the launches to be measured, so that these
  // do not wait for the host. Two runs of a step have the same effect as one.
  driver->check(driver->cuGraphLaunch(slot.graphs[index], loaded->stream), stepFailed(step));
  events[0].record(loaded->stream);
  for (size_t i = 0; i < step.launches.size(); ++i) {
    launch(slot, index, i, /*overlap=*/false);
    events[i + 1].record(loaded->stream);
  }
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
  Slot &slot = beginAlone();
  start.record(loaded->stream);
  for (int64_t i = 0; i < count; ++i)
    driver->check(driver->cuGraphLaunch(slot.graphs[index], loaded->stream), stepFailed(step));
  end.record(loaded->stream);
  synchronize(stepFailed(step));
  return end.secondsSince(start) / static_cast<double>(std::max<int64_t>(count, 1));
}

void CudaDevice::write(uint32_t index, uint64_t offset, std::span<const std::byte> bytes) {
  requireLoaded();
  const Buffer &buffer = artifact->plan().writableBufferPart(index, offset, bytes.size());
  if (buffer.kind == BufferKind::Input) {
    std::copy(bytes.begin(), bytes.end(), inputs.begin() + layout.offsets[index] + offset);
    return;
  }
  if (bytes.empty())
    return;
  CurrentContext current(*driver, *context);
  Slot &slot = finishedSlot();
  const std::string what = "cannot write buffer \"" + printable(buffer.name) + "\"";
  driver->check(driver->cuMemcpyHtoDAsync_v2(slot.pointers[index] + offset, bytes.data(),
                                             bytes.size(), loaded->stream),
                what);
  synchronize(what);
  if (buffer.kind == BufferKind::Output)
    std::memcpy(slot.outputs.data() + layout.offsets[index] + offset, bytes.data(), bytes.size());
}

void CudaDevice::read(uint32_t index, uint64_t offset, std::span<std::byte> bytes) {
  requireLoaded();
  const Buffer &buffer = artifact->plan().bufferPart(index, offset, bytes.size());
  if (buffer.kind == BufferKind::Input)
    std::copy_n(inputs.begin() + layout.offsets[index] + offset, bytes.size(), bytes.begin());
  if (bytes.empty() || buffer.kind == BufferKind::Input)
    return;
  CurrentContext current(*driver, *context);
  const std::string what = "cannot read buffer \"" + printable(buffer.name) + "\"";
  driver->check(driver->cuMemcpyDtoHAsync_v2(bytes.data(), finishedSlot().pointers[index] + offset,
                                             bytes.size(), loaded->stream),
                what);
  synchronize(what);
}

const void *CudaDevice::output(uint32_t index) {
  requireLoaded();
  const Buffer &buffer = bufferAt(index);
  if (buffer.kind != BufferKind::Output)
    throw Error("buffer \"" + buffer.name + "\" is no output");
  Slot &slot = finishedSlot();
  if (!slot.copied[index]) {
    CurrentContext current(*driver, *context);
    copyOutput(slot, index);
    driver->check(driver->cuStreamSynchronize(loaded->copies), "cannot copy outputs from the GPU");
  }
  return slot.outputs.data() + layout.offsets[index];
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
