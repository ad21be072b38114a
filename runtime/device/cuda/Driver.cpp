// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/cuda/Driver.h"

#include "sluice-runtime/Error.h"
#include "sluice-support/Text.h"

#include <cstdlib>
#include <dlfcn.h>

using namespace sluice::runtime;
using namespace sluice::runtime::cuda;
using sluice::support::printable;

std::string Driver::versionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string Driver::describe(Result result) const {
  const char *name = nullptr, *text = nullptr;
  if (cuGetErrorName(result, &name) != success || !name)
    return "error " + std::to_string(result);
  if (cuGetErrorString(result, &text) != success || !text)
    return name;
  return std::string(name) + " (" + text + ")";
}

void Driver::check(Result result, const std::string &what) const {
  if (result != success)
    throw Error("cuda: " + what + ": " + describe(result));
}

std::shared_ptr<const Driver> Driver::load() {
  const char *chosen = std::getenv("SLUICE_LIBCUDA");
  const std::string library = chosen && *chosen ? chosen : "libcuda.so.1";
  dlerror();
  void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char *why = dlerror();
    throw Error("cuda: there is no NVIDIA driver on this machine: " +
                printable(why ? why : library + " cannot be loaded", 300));
  }
  auto driver = std::make_shared<Driver>();
  // The version first: a driver that lacks an entry point is most likely an old one.
  driver->cuDriverGetVersion =
      reinterpret_cast<decltype(driver->cuDriverGetVersion)>(dlsym(handle, "cuDriverGetVersion"));
  if (!driver->cuDriverGetVersion)
    throw Error("cuda: " + library + " is not an NVIDIA driver: it has no cuDriverGetVersion");
  if (driver->cuDriverGetVersion(&driver->driverVersion) == success &&
      driver->driverVersion < neededVersion)
    throw Error("cuda: the NVIDIA driver is too old: it is for CUDA " +
                versionText(driver->driverVersion) + ", at least " + versionText(neededVersion) +
                " is needed");
#define SLUICE_CUDA_FIND(name, arguments)                                                          \
  driver->name = reinterpret_cast<decltype(driver->name)>(dlsym(handle, #name));                   \
  if (!driver->name)                                                                               \
    throw Error("cuda: the NVIDIA driver " + library + " lacks " #name);
  SLUICE_CUDA_ENTRY_POINTS(SLUICE_CUDA_FIND)
#undef SLUICE_CUDA_FIND

  Result result = driver->cuInit(0);
  if (result == errorNoDevice)
    throw Error("cuda: there is no NVIDIA GPU on this machine, or none that is visible "
                "(CUDA_VISIBLE_DEVICES)");
  if (result == errorStubLibrary)
    throw Error("cuda: " + library + " is the toolkit's stub for linking, not a driver");
  driver->check(result, "cannot initialise the driver");
  driver->check(driver->cuDriverGetVersion(&driver->driverVersion),
                "cannot ask for the driver's version");
  int devices = 0;
  driver->check(driver->cuDeviceGetCount(&devices), "cannot count the GPUs");
  if (devices == 0)
    throw Error("cuda: there is no NVIDIA GPU on this machine, or none that is visible "
                "(CUDA_VISIBLE_DEVICES)");
  return driver;
}
