// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/cuda/Kernels.h"

#include "sluice-support/Text.h"

#include <array>
#include <cctype>

using namespace sluice::runtime;
using namespace sluice::runtime::cuda;
using sluice::support::printable;

static constexpr std::string_view cubinPrefix = "cubin.";

/// Clusters and dependent launches exist since compute capability 9.0.
static constexpr int clusterCapability = 90;

/// Blocks of a cluster that every GPU with clusters has room for.
static constexpr int64_t portableCluster = 8;

Gpu Gpu::query(const Driver &driver) {
  Gpu gpu;
  driver.check(driver.cuDeviceGet(&gpu.handle, 0), "cannot open the first GPU");
  std::array<char, 256> name{};
  driver.check(driver.cuDeviceGetName(name.data(), name.size() - 1, gpu.handle),
               "cannot ask for the GPU's name");
  gpu.name = printable(name.data(), name.size());
  auto attribute = [&](DeviceAttribute which) {
    int value = 0;
    driver.check(driver.cuDeviceGetAttribute(&value, which, gpu.handle),
                 "cannot ask for attribute " + std::to_string(which) + " of " + gpu.name);
    return value;
  };
  gpu.capability = 10 * attribute(capabilityMajor) + attribute(capabilityMinor);
  gpu.multiprocessors = attribute(multiprocessorCount);
  gpu.maxThreads = attribute(maxThreadsPerBlock);
  gpu.maxShared = attribute(maxSharedMemoryPerBlockOptin);
  gpu.l2Bytes = attribute(l2CacheSize);
  size_t bytes = 0;
  driver.check(driver.cuDeviceTotalMem_v2(&bytes, gpu.handle),
               "cannot ask for the memory of " + gpu.name);
  gpu.memoryBytes = bytes;
  return gpu;
}

namespace {

struct Arch {
  int capability = 0;
  /// 'a' or 'f', or 0.
  char suffix = 0;
};

} // namespace

/// "sm_90a"; nothing if it is no architecture.
static std::optional<Arch> parseArch(std::string_view text) {
  if (!text.starts_with("sm_"))
    return std::nullopt;
  text.remove_prefix(3);
  Arch arch;
  if (text.ends_with('a') || text.ends_with('f')) {
    arch.suffix = text.back();
    text.remove_suffix(1);
  }
  if (text.size() < 2 || text.size() > 3)
    return std::nullopt;
  for (char digit : text) {
    if (!std::isdigit(static_cast<unsigned char>(digit)))
      return std::nullopt;
    arch.capability = 10 * arch.capability + (digit - '0');
  }
  return arch;
}

static bool runsMachineCode(Arch arch, int capability) {
  if (arch.suffix == 'a')
    return arch.capability == capability;
  return arch.capability / 10 == capability / 10 && arch.capability <= capability;
}

static bool runsPtx(Arch arch, int capability) {
  if (arch.suffix == 'a')
    return arch.capability == capability;
  if (arch.suffix == 'f')
    return arch.capability / 10 == capability / 10 && arch.capability <= capability;
  return arch.capability <= capability;
}

void sluice::runtime::cuda::checkHasGpuKernels(const Artifact &artifact) {
  for (const auto &[role, file] : artifact.plan().files)
    if (role == "ptx" || role.starts_with(cubinPrefix))
      return;
  throw Error(artifact.planName() +
              ": the artifact has no GPU kernels: neither files.ptx nor files.cubin.sm_NN");
}

KernelFile sluice::runtime::cuda::chooseKernels(const Artifact &artifact, const Gpu &gpu) {
  const Plan &plan = artifact.plan();
  KernelFile best;
  int bestCapability = 0;
  std::string offered;
  auto offer = [&](const std::string &what) { offered += (offered.empty() ? "" : ", ") + what; };
  for (const auto &[role, info] : plan.files) {
    if (!role.starts_with(cubinPrefix))
      continue;
    std::optional<Arch> arch = parseArch(role.substr(cubinPrefix.size()));
    if (!arch)
      throw Error(artifact.planName() + ": files: role \"" + printable(role) +
                  "\" names no GPU architecture, expected \"cubin.sm_90\" or another one");
    offer("machine code for " + role.substr(cubinPrefix.size()));
    if (runsMachineCode(*arch, gpu.capability) && arch->capability > bestCapability) {
      best = {&artifact.file(role), false};
      bestCapability = arch->capability;
    }
  }
  if (!best.file && plan.files.count("ptx")) {
    offer("PTX for " + plan.target.arch);
    std::optional<Arch> arch = parseArch(plan.target.arch);
    if (arch && runsPtx(*arch, gpu.capability))
      best = {&artifact.file("ptx"), true};
  }
  if (!best.file)
    throw Error(artifact.planName() + ": " + gpu.name + " is " + gpu.arch() +
                ", but the artifact has " + offered + "; compile the model for this GPU");
  return best;
}

static std::string launchName(const Step &step, const Launch &launch) {
  return "launch \"" + printable(launch.label) + "\" of step \"" + printable(step.name) + "\"";
}

void sluice::runtime::cuda::checkLaunches(const Artifact &artifact, const Gpu &gpu) {
  for (const Step &step : artifact.plan().steps)
    for (const Launch &launch : step.launches) {
      auto fail = [&](const std::string &what, int64_t found, const std::string &expected) {
        throw Error(artifact.planName() + ": " + launchName(step, launch) + " has " + what + " " +
                    std::to_string(found) + ", expected " + expected + " on " + gpu.name);
      };
      if (launch.block < 1 || launch.block > gpu.maxThreads)
        fail("block", launch.block, "1 to " + std::to_string(gpu.maxThreads) + " threads");
      if (launch.shared > gpu.maxShared)
        fail("shared", launch.shared, "at most " + std::to_string(gpu.maxShared) + " bytes");
      if (launch.cluster < 1 || launch.grid % launch.cluster)
        fail("cluster", launch.cluster,
             "a divisor of its grid of " + std::to_string(launch.grid) + " blocks");
      if (gpu.capability < clusterCapability) {
        if (launch.cluster > 1)
          fail("cluster", launch.cluster, "1 (clusters need sm_90)");
        if (launch.overlap)
          throw Error(artifact.planName() + ": " + launchName(step, launch) +
                      " overlaps the launch before it, which needs sm_90, but " + gpu.name +
                      " is " + gpu.arch());
      }
    }
}

/// A log of the driver as a part of one line.
static std::string oneLine(std::string log) {
  std::string line;
  for (char c : log) {
    if (c == '\0')
      break;
    if (c != '\n' && c != '\r')
      line += c;
    else if (!line.empty() && !line.ends_with("; "))
      line += "; ";
  }
  while (line.ends_with(' ') || line.ends_with(';'))
    line.pop_back();
  return printable(line, 1000);
}

LoadedKernels::LoadedKernels(std::shared_ptr<const Driver> theDriver, const KernelFile &kernels)
    : driver(std::move(theDriver)), path(kernels.file->path()) {
  std::span<const std::byte> bytes = kernels.file->bytes();
  // The driver reads headers before it knows the size.
  constexpr size_t elfHeader = 64;
  if (!kernels.isPtx && (bytes.size() < elfHeader || !kernels.file->text().starts_with("\x7f"
                                                                                       "ELF")))
    throw Error(path + ": is not an ELF file with GPU machine code");
  // PTX ends with a zero byte, which the file does not have.
  std::string text;
  if (kernels.isPtx) {
    text = kernels.file->text();
    if (text.find('\0') != text.npos)
      throw Error(path + ": is not PTX: it has a zero byte");
  }
  std::string log(16384, '\0');
  int options[] = {jitErrorLogBuffer, jitErrorLogBufferBytes};
  // The driver expects numbers as pointers.
  void *values[] = {log.data(), reinterpret_cast<void *>(log.size() - 1)};
  Result result = driver->cuModuleLoadDataEx(
      &module, kernels.isPtx ? static_cast<const void *>(text.c_str()) : bytes.data(), 2, options,
      values);
  if (result != success) {
    std::string details = oneLine(log);
    throw Error(path + ": the NVIDIA driver (CUDA " + Driver::versionText(driver->version()) +
                ") cannot " + (kernels.isPtx ? "compile" : "load") +
                " it: " + driver->describe(result) + (details.empty() ? "" : ": " + details));
  }
}

LoadedKernels::~LoadedKernels() {
  if (module)
    driver->cuModuleUnload(module);
}

Function LoadedKernels::find(const std::string &name, int64_t block, int64_t shared,
                             int64_t cluster, const std::string &what) const {
  Function function = nullptr;
  Result result = driver->cuModuleGetFunction(&function, module, name.c_str());
  if (result == errorNotFound)
    throw Error(path + ": has no kernel \"" + printable(name) + "\", which " + what + " needs");
  const std::string kernel = path + ": kernel \"" + printable(name) + "\"";
  auto check = [&](Result r, const char *action) {
    if (r != success)
      throw Error(kernel + ": cannot " + action + ": " + driver->describe(r));
  };
  check(result, "find it");
  // Asking also makes the driver load it now: it must not do so while a graph is captured.
  int threads = 0;
  check(driver->cuFuncGetAttribute(&threads, functionMaxThreadsPerBlock, function),
        "ask for its threads");
  if (block > threads)
    throw Error(kernel + " runs with at most " + std::to_string(threads) +
                " threads per block on this GPU, but " + what + " has " + std::to_string(block));
  check(
      driver->cuFuncSetAttribute(function, functionMaxDynamicSharedBytes, static_cast<int>(shared)),
      ("reserve " + std::to_string(shared) + " bytes of shared memory").c_str());
  if (cluster > portableCluster)
    check(driver->cuFuncSetAttribute(function, functionNonPortableClusterSizeAllowed, 1),
          ("allow clusters of " + std::to_string(cluster) + " blocks").c_str());
  return function;
}
