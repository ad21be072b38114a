// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sluice-runtime/Device.h"

#include "runtime/device/CpuDevice.h"
#include "runtime/device/cuda/CudaDevice.h"

#include <map>
#include <mutex>

using namespace sluice::runtime;

namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, DeviceFactory> factories{{"cpu", createCpuDevice},
                                                 {"cuda", createCudaDevice}};
};

} // namespace

static Registry &registry() {
  static Registry instance;
  return instance;
}

StepQueue::~StepQueue() = default;
Device::~Device() = default;

void sluice::runtime::registerDevice(const std::string &name, DeviceFactory factory) {
  std::lock_guard lock(registry().mutex);
  registry().factories[name] = std::move(factory);
}

std::vector<std::string> sluice::runtime::deviceNames() {
  std::lock_guard lock(registry().mutex);
  std::vector<std::string> names;
  for (const auto &[name, factory] : registry().factories)
    names.push_back(name);
  return names;
}

std::unique_ptr<Device> sluice::runtime::createDevice(const std::string &name,
                                                      const DeviceOptions &options) {
  DeviceFactory factory;
  {
    std::lock_guard lock(registry().mutex);
    auto found = registry().factories.find(name);
    if (found != registry().factories.end())
      factory = found->second;
  }
  if (!factory) {
    std::string known;
    for (const std::string &other : deviceNames())
      known += (known.empty() ? "" : ", ") + other;
    throw Error("device \"" + name + "\" is not available in this program, which has: " + known);
  }
  return factory(options);
}

std::string sluice::runtime::defaultDevice(const Plan &plan) {
  return plan.target.kind == "gpu" ? "cuda" : plan.target.kind;
}
