// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Device.h"
#include "sluice/Emulator/Emulator.h"

#include "runtime/device/SyntheticWeights.h"

#include <cstring>
#include <sys/mman.h>

using namespace sluice;
using runtime::Buffer;
using runtime::BufferKind;
using runtime::Error;

namespace {

constexpr const char *kModuleRole = "module";

/// Zeroed memory of its own pages.
class Pages {
public:
  Pages(uint64_t bytes, const std::string &what) : size(bytes ? bytes : 1) {
    data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
    if (data == MAP_FAILED)
      throw Error("cannot allocate " + std::to_string(bytes) + " bytes for " + what);
  }
  Pages(Pages &&other) noexcept
      : data(std::exchange(other.data, nullptr)), size(std::exchange(other.size, 0)) {}
  Pages &operator=(Pages &&) = delete;
  ~Pages() {
    if (data)
      munmap(data, size);
  }
  std::byte *begin() const { return static_cast<std::byte *>(data); }

private:
  void *data;
  uint64_t size;
};

class EmulatorDevice final : public runtime::Device {
public:
  EmulatorDevice(bool graph, const emulator::Options &options) : graph(graph), options(options) {}
  std::string name() const override { return "emulator"; }
  std::string description() const override {
    return "emulator: GPU kernels on the host, every access checked";
  }
  void load(std::shared_ptr<const runtime::Artifact> newArtifact) override;
  uint32_t decodeStep() const override { return artifact->plan().decodeStep(graph); }
  void run(uint32_t step) override { execute(step, nullptr); }
  void trace(uint32_t step, const std::function<bool(size_t)> &afterLaunch) override {
    // What a step has not written itself may not be read, so each run begins with the first launch.
    for (size_t i = 0; i < steps.at(step).size(); ++i) {
      check(machine->run(llvm::ArrayRef(steps[step]).take_front(i + 1)));
      if (!afterLaunch(i))
        return;
    }
  }
  std::vector<double> profile(uint32_t step) override {
    std::vector<double> seconds;
    execute(step, &seconds);
    return seconds;
  }
  void write(uint32_t buffer, uint64_t offset, std::span<const std::byte> bytes) override {
    artifact->plan().writableBufferPart(buffer, offset, bytes.size());
    if (!bytes.empty())
      std::memcpy(pointers[buffer] + offset, bytes.data(), bytes.size());
  }
  void read(uint32_t buffer, uint64_t offset, std::span<std::byte> bytes) override {
    artifact->plan().bufferPart(buffer, offset, bytes.size());
    if (!bytes.empty())
      std::memcpy(bytes.data(), pointers[buffer] + offset, bytes.size());
  }
  const void *output(uint32_t buffer) override { return pointers.at(buffer); }
  void clearCaches() override {
    const runtime::Plan &plan = artifact->plan();
    for (uint32_t i = 0; i < plan.buffers.size(); ++i)
      if (plan.buffers[i].kind == BufferKind::Cache)
        std::memset(pointers[i], 0, plan.buffers[i].bytes);
  }
  runtime::Bandwidth measureReadBandwidth() override {
    throw Error("the emulator has no memory bandwidth to measure");
  }

private:
  const bool graph;
  const emulator::Options options;
  void execute(uint32_t step, std::vector<double> *seconds) {
    check(machine->run(steps.at(step), seconds));
  }
  void check(llvm::Error error) const {
    if (error)
      throw Error(artifact->planName() + ": " + toString(std::move(error)));
  }

  std::shared_ptr<const runtime::Artifact> artifact;
  std::vector<Pages> pages;
  std::vector<std::byte *> pointers;
  std::unique_ptr<emulator::Emulator> machine;
  std::vector<std::vector<emulator::Launch>> steps;
};

} // namespace

void EmulatorDevice::load(std::shared_ptr<const runtime::Artifact> newArtifact) {
  if (artifact)
    throw Error(newArtifact->planName() + ": this device has loaded another artifact already");
  const runtime::Plan &plan = newArtifact->plan();
  if (plan.target.kind == "cpu")
    throw Error(newArtifact->planName() + ": was compiled for target \"" + plan.target.name +
                "\" (" + plan.target.kind + "), the emulator runs kernels of GPUs");
  const runtime::MappedFile &file = newArtifact->file(kModuleRole);
  auto created = emulator::Emulator::create(file.text(), file.path(), options);
  if (!created)
    throw Error(toString(created.takeError()));
  machine = std::move(*created);
  artifact = std::move(newArtifact);

  auto add = [&](const std::string &name, uint64_t bytes, emulator::MemoryKind kind) {
    pages.emplace_back(bytes, "\"" + name + "\"");
    return machine->addMemory(name, pages.back().begin(), bytes, kind);
  };
  uint32_t arena = add("arena", plan.arenaBytes, emulator::MemoryKind::Scratch);
  std::byte *arenaBegin = pages.back().begin();
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    const Buffer &buffer = plan.buffers[i];
    uint32_t memory = arena;
    uint64_t offset = 0;
    switch (buffer.kind) {
    case BufferKind::Arena:
      offset = buffer.offset;
      pointers.push_back(arenaBegin + offset);
      break;
    case BufferKind::Weights:
      // A copy: kernels may want more alignment than the file has.
      memory = add(buffer.name, buffer.bytes, emulator::MemoryKind::Constant);
      pointers.push_back(pages.back().begin());
      if (buffer.synthetic) {
        runtime::generateSynthetic(*buffer.synthetic, {pointers.back(), buffer.bytes}, 1);
      } else {
        std::span<const std::byte> bytes = artifact->weights(buffer);
        std::memcpy(pointers.back(), bytes.data(), bytes.size());
      }
      break;
    case BufferKind::Cache:
    case BufferKind::Input:
      memory = add(buffer.name, buffer.bytes, emulator::MemoryKind::Persistent);
      pointers.push_back(pages.back().begin());
      break;
    case BufferKind::Output:
      memory = add(buffer.name, buffer.bytes, emulator::MemoryKind::Scratch);
      pointers.push_back(pages.back().begin());
      break;
    }
    machine->addBuffer(buffer.name, memory, offset, buffer.bytes);
  }
  for (const runtime::Step &step : plan.steps) {
    auto &launches = steps.emplace_back();
    for (const runtime::Launch &launch : step.launches) {
      for (int64_t value : {launch.grid, launch.block, launch.shared, launch.cluster})
        if (value < 0 || value > UINT32_MAX)
          throw Error(artifact->planName() + ": launch \"" + launch.label +
                      "\": " + std::to_string(value) + " is out of range");
      launches.push_back({launch.kernel, launch.label, uint32_t(launch.grid),
                          uint32_t(launch.block), uint32_t(launch.shared),
                          uint32_t(std::max<int64_t>(launch.cluster, 1)), launch.overlap,
                          launch.arguments, launch.cooperative});
    }
  }
}

void emulator::registerEmulatorDevice(const Options &options) {
  runtime::registerDevice("emulator", [options](const runtime::DeviceOptions &device) {
    return std::make_unique<EmulatorDevice>(device.graph, options);
  });
}
