// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/device/CpuDevice.h"

#include "runtime/device/CpuFeatures.h"
#include "runtime/device/MemoryNeeds.h"
#include "runtime/device/SyntheticWeights.h"
#include "runtime/device/ThreadPool.h"
#include "sluice-support/Text.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <limits>
#include <link.h>
#include <mutex>
#include <numeric>
#include <sys/mman.h>

using namespace sluice::runtime;
using sluice::support::printable;

namespace {

using Kernel = void (*)(void *const *arguments, int64_t begin, int64_t end);

constexpr uint64_t alignment = 64;
constexpr int maxThreads = 1024;

uint64_t alignUp(uint64_t value) { return (value + alignment - 1) / alignment * alignment; }

/// Zeroed memory straight from the system, in huge pages where it has them.
class HostMemory {
public:
  HostMemory() = default;
  HostMemory(uint64_t bytes, const std::string &what) : size(bytes) {
    if (bytes == 0)
      return;
    void *address =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED)
      throw Error("cannot allocate " + std::to_string(bytes) + " bytes for " + what);
    memory = static_cast<std::byte *>(address);
#ifdef MADV_HUGEPAGE
    madvise(address, bytes, MADV_HUGEPAGE);
#endif
  }
  HostMemory(HostMemory &&other) noexcept { *this = std::move(other); }
  HostMemory &operator=(HostMemory &&other) noexcept {
    std::swap(memory, other.memory);
    std::swap(size, other.size);
    return *this;
  }
  ~HostMemory() {
    if (memory)
      munmap(memory, size);
  }

  std::byte *data() const { return memory; }
  uint64_t bytes() const { return size; }

private:
  std::byte *memory = nullptr;
  uint64_t size = 0;
};

struct LibraryCloser {
  void operator()(void *handle) const { dlclose(handle); }
};

struct BoundLaunch {
  Kernel kernel;
  int64_t grid;
  /// In `arguments` of the step.
  size_t firstArgument;
};

struct BoundStep {
  std::vector<BoundLaunch> launches;
  std::vector<void *> arguments;
};

class CpuDevice final : public Device {
public:
  explicit CpuDevice(const DeviceOptions &options)
      : threads(options.threads == 0 ? std::min(availableCpus(), maxThreads) : options.threads) {
    if (threads < 1 || threads > maxThreads)
      throw Error("option threads is " + std::to_string(options.threads) + ", expected 1 to " +
                  std::to_string(maxThreads) + ", or 0 for all CPUs");
  }

  std::string name() const override { return "cpu"; }
  std::string description() const override {
    return cpuModelName() + ", " + std::to_string(threads) +
           (threads == 1 ? " thread" : " threads");
  }

  void load(std::shared_ptr<const Artifact> newArtifact) override;
  uint32_t decodeStep() const override { return artifact->plan().decodeStep(/*graph=*/false); }
  void run(uint32_t step) override;
  void trace(uint32_t step, const std::function<bool(size_t)> &afterLaunch) override;
  std::vector<double> profile(uint32_t step) override;
  void write(uint32_t buffer, uint64_t offset, std::span<const std::byte> bytes) override;
  void read(uint32_t buffer, uint64_t offset, std::span<std::byte> bytes) override;
  const void *output(uint32_t buffer) override { return pointers.at(buffer); }
  void clearCaches() override;
  Bandwidth measureReadBandwidth() override;

private:
  void checkTarget() const;
  void loadKernels();
  void allocate();
  void bindWeights(uint32_t index);
  /// This thread's part of a launch.
  void runPart(const BoundStep &step, const BoundLaunch &launch, int thread) const {
    int64_t begin = launch.grid * thread / threads, end = launch.grid * (thread + 1) / threads;
    if (begin < end)
      launch.kernel(step.arguments.data() + launch.firstArgument, begin, end);
  }

  const int threads;
  std::shared_ptr<const Artifact> artifact;
  std::unique_ptr<void, LibraryCloser> library;
  /// By step, by launch.
  std::vector<std::vector<Kernel>> kernels;
  HostMemory arena, persistent;
  std::vector<HostMemory> copiedWeights;
  std::vector<void *> pointers;
  std::vector<BoundStep> steps;
  std::unique_ptr<ThreadPool> pool;
};

} // namespace

std::unique_ptr<Device> sluice::runtime::createCpuDevice(const DeviceOptions &options) {
  return std::make_unique<CpuDevice>(options);
}

void CpuDevice::checkTarget() const {
  const TargetInfo &target = artifact->plan().target;
  if (target.kind != "cpu")
    throw Error(artifact->planName() + ": was compiled for target \"" + target.name + "\" (" +
                target.kind + "), which the cpu device cannot run");
  std::string architecture = target.triple.substr(0, target.triple.find('-'));
  if (architecture != hostArchitecture())
    throw Error(artifact->planName() + ": was compiled for " + target.triple +
                ", but this machine is " + hostArchitecture());
  std::string missing;
  for (const std::string &feature : missingCpuFeatures(target.features))
    missing += (missing.empty() ? "" : ", ") + feature;
  if (!missing.empty())
    throw Error(artifact->planName() + ": its kernels need CPU features that this machine lacks: " +
                missing + "; compile the model for this machine");
}

/// The dynamic loader trusts an ELF file's headers: with a damaged one it crashes. What is checked
/// here is what it follows before it has mapped the file.
static void checkSharedObject(const MappedFile &file) {
  auto fail = [&](const std::string &why) {
    throw Error(file.path() + ": is not a shared object for this machine: " + why);
  };
#if defined(__x86_64__)
  constexpr uint16_t machine = EM_X86_64;
#elif defined(__aarch64__)
  constexpr uint16_t machine = EM_AARCH64;
#else
  constexpr uint16_t machine = EM_NONE;
#endif
  std::span<const std::byte> bytes = file.bytes();
  Elf64_Ehdr header;
  if (bytes.size() < sizeof(header))
    fail("it has " + std::to_string(bytes.size()) + " bytes");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG))
    fail("it is not an ELF file");
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_type != ET_DYN ||
      header.e_machine != machine)
    fail("class, type or machine is another one");
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phoff > bytes.size() ||
      header.e_phnum > (bytes.size() - header.e_phoff) / sizeof(Elf64_Phdr))
    fail("its program headers lie outside of it");
  bool hasDynamic = false, hasLoad = false;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment;
    std::memcpy(&segment, bytes.data() + header.e_phoff + i * sizeof(segment), sizeof(segment));
    if (segment.p_type != PT_LOAD && segment.p_type != PT_DYNAMIC)
      continue;
    (segment.p_type == PT_LOAD ? hasLoad : hasDynamic) = true;
    constexpr uint64_t limit = uint64_t(1) << 40;
    if (segment.p_offset > bytes.size() || segment.p_filesz > bytes.size() - segment.p_offset ||
        segment.p_memsz < segment.p_filesz || segment.p_memsz > limit || segment.p_vaddr > limit)
      fail("a segment lies outside of it");
  }
  if (!hasDynamic || !hasLoad)
    fail("it has no dynamic section");
}

void CpuDevice::loadKernels() {
  const MappedFile &file = artifact->file("kernels");
  const std::string path = file.path();
  checkSharedObject(file);
  // A name without a slash would be looked for in the system's folders.
  dlerror();
  library.reset(dlopen(std::filesystem::absolute(file.path()).c_str(), RTLD_NOW | RTLD_LOCAL));
  if (!library) {
    const char *why = dlerror();
    throw Error(path + ": cannot be loaded: " + printable(why ? why : "unknown reason", 300));
  }
  link_map *map = nullptr;
  if (dlinfo(library.get(), RTLD_DI_LINKMAP, &map))
    throw Error(path + ": cannot be loaded: the dynamic loader does not know it");
  for (const Step &step : artifact->plan().steps) {
    auto &bound = kernels.emplace_back();
    for (const Launch &launch : step.launches) {
      void *address = dlsym(library.get(), launch.kernel.c_str());
      // dlsym also looks into the libraries that this one needs.
      Dl_info info;
      if (!address || !dladdr(address, &info) ||
          reinterpret_cast<ElfW(Addr)>(info.dli_fbase) != map->l_addr)
        throw Error(path + ": has no kernel \"" + printable(launch.kernel) + "\", which launch \"" +
                    printable(launch.label) + "\" needs");
      bound.push_back(reinterpret_cast<Kernel>(address));
    }
  }
}

void CpuDevice::bindWeights(uint32_t index) {
  const Buffer &buffer = artifact->plan().buffers[index];
  std::span<const std::byte> bytes;
  if (!buffer.synthetic) {
    bytes = artifact->weights(buffer);
    if (reinterpret_cast<uintptr_t>(bytes.data()) % alignment == 0) {
      // Kernels only read it: the mapping is read-only.
      pointers[index] = const_cast<std::byte *>(bytes.data());
      return;
    }
  }
  HostMemory &copy = copiedWeights.emplace_back(buffer.bytes, "buffer \"" + buffer.name + "\"");
  if (buffer.synthetic)
    generateSynthetic(*buffer.synthetic, {copy.data(), buffer.bytes}, threads);
  else
    std::memcpy(copy.data(), bytes.data(), buffer.bytes);
  pointers[index] = copy.data();
}

void CpuDevice::allocate() {
  const Plan &plan = artifact->plan();
  // Weights of a file are read where it is mapped, so that the system can give up their memory.
  MemoryNeeds needs;
  uint64_t interfaceBytes = 0;
  for (const Buffer &buffer : plan.buffers) {
    if (buffer.kind == BufferKind::Weights)
      needs.weights += buffer.synthetic ? alignUp(buffer.bytes) : 0;
    else if (buffer.kind == BufferKind::Cache)
      needs.caches += alignUp(buffer.bytes);
    else if (buffer.kind != BufferKind::Arena)
      interfaceBytes += alignUp(buffer.bytes);
  }
  needs.rest = plan.arenaBytes + interfaceBytes;
  if (uint64_t present = availableMemoryBytes())
    requireMemory(*artifact, needs, present, "memory",
                  "this machine has " + std::to_string(present) + " free");

  arena = HostMemory(plan.arenaBytes, "intermediate results");
  persistent = HostMemory(needs.caches + interfaceBytes, "caches");
  pointers.assign(plan.buffers.size(), nullptr);
  std::byte *next = persistent.data();
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    const Buffer &buffer = plan.buffers[i];
    switch (buffer.kind) {
    case BufferKind::Arena:
      pointers[i] = arena.data() + buffer.offset;
      break;
    case BufferKind::Weights:
      bindWeights(i);
      break;
    case BufferKind::Cache:
    case BufferKind::Input:
    case BufferKind::Output:
      pointers[i] = next;
      next += alignUp(buffer.bytes);
      break;
    }
  }
}

void CpuDevice::load(std::shared_ptr<const Artifact> newArtifact) {
  if (artifact)
    throw Error(newArtifact->planName() + ": this device has loaded another artifact already");
  artifact = std::move(newArtifact);
  checkTarget();
  loadKernels();
  allocate();
  const Plan &plan = artifact->plan();
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    BoundStep &bound = steps.emplace_back();
    for (size_t i = 0; i < plan.steps[s].launches.size(); ++i) {
      const Launch &launch = plan.steps[s].launches[i];
      bound.launches.push_back({kernels[s][i], launch.grid, bound.arguments.size()});
      for (uint32_t argument : launch.arguments)
        bound.arguments.push_back(pointers[argument]);
    }
  }
  pool = std::make_unique<ThreadPool>(threads);
}

void CpuDevice::run(uint32_t index) {
  const BoundStep &step = steps.at(index);
  pool->run([&](int thread) {
    for (size_t i = 0; i < step.launches.size(); ++i) {
      if (i > 0)
        pool->barrier(thread);
      runPart(step, step.launches[i], thread);
    }
  });
}

void CpuDevice::trace(uint32_t index, const std::function<bool(size_t)> &afterLaunch) {
  const BoundStep &step = steps.at(index);
  for (size_t i = 0; i < step.launches.size(); ++i) {
    pool->run([&](int thread) { runPart(step, step.launches[i], thread); });
    if (!afterLaunch(i))
      return;
  }
}

std::vector<double> CpuDevice::profile(uint32_t index) {
  const BoundStep &step = steps.at(index);
  std::vector<double> seconds(step.launches.size());
  pool->run([&](int thread) {
    auto start = std::chrono::steady_clock::now();
    for (size_t i = 0; i < step.launches.size(); ++i) {
      runPart(step, step.launches[i], thread);
      pool->barrier(thread);
      auto end = std::chrono::steady_clock::now();
      if (thread == 0)
        seconds[i] = std::chrono::duration<double>(end - start).count();
      start = end;
    }
  });
  return seconds;
}

void CpuDevice::write(uint32_t index, uint64_t offset, std::span<const std::byte> bytes) {
  artifact->plan().writableBufferPart(index, offset, bytes.size());
  std::memcpy(static_cast<std::byte *>(pointers[index]) + offset, bytes.data(), bytes.size());
}

void CpuDevice::read(uint32_t index, uint64_t offset, std::span<std::byte> bytes) {
  artifact->plan().bufferPart(index, offset, bytes.size());
  std::memcpy(bytes.data(), static_cast<const std::byte *>(pointers[index]) + offset, bytes.size());
}

void CpuDevice::clearCaches() {
  const Plan &plan = artifact->plan();
  for (uint32_t i = 0; i < plan.buffers.size(); ++i)
    if (plan.buffers[i].kind == BufferKind::Cache)
      std::memset(pointers[i], 0, plan.buffers[i].bytes);
}

Bandwidth CpuDevice::measureReadBandwidth() {
  Bandwidth result;
  const std::byte *data = nullptr;
  uint64_t enough = 4 * largestCacheBytes();
  if (!artifact->model().synthetic && artifact->file("weights").bytes().size() >= enough) {
    data = artifact->file("weights").bytes().data();
    result.bufferBytes = artifact->file("weights").bytes().size();
    result.buffer = "the weights";
  } else {
    // One for all devices of the process: on a virtual machine, to get a gigabyte takes seconds.
    static std::mutex creating;
    static HostMemory shared;
    std::lock_guard lock(creating);
    if (shared.bytes() == 0) {
      shared = HostMemory(enough, "measuring the memory");
      // Written by the thread that reads it: memory is placed where it is first touched.
      pool->run([&](int thread) {
        uint64_t begin = enough / threads * thread,
                 end = thread + 1 == threads ? enough : enough / threads * (thread + 1);
        std::memset(shared.data() + begin, 1, end - begin);
      });
    }
    data = shared.data();
    result.bufferBytes = shared.bytes();
    result.buffer = "a buffer of its own";
  }
  std::atomic<uint64_t> sum{0};
  // A program that takes a CPU for some milliseconds disturbs some parts only.
  constexpr uint64_t parts = 32;
  std::vector<double> seconds;
  for (uint64_t part = 0; part < parts; ++part) {
    uint64_t first = result.bufferBytes * part / parts / alignment * alignment,
             last = result.bufferBytes * (part + 1) / parts / alignment * alignment;
    auto start = std::chrono::steady_clock::now();
    pool->run([&](int thread) {
      uint64_t share = (last - first) / threads / alignment * alignment,
               begin = first + share * thread, end = thread + 1 == threads ? last : begin + share;
      sum.fetch_add(readAll(data + begin, end - begin), std::memory_order_relaxed);
    });
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  result.bytesPerSecond = static_cast<double>(result.bufferBytes) /
                          std::accumulate(seconds.begin(), seconds.end(), 0.0);
  auto quarter = seconds.begin() + seconds.size() / 4;
  std::nth_element(seconds.begin(), quarter, seconds.end());
  result.undisturbed = static_cast<double>(result.bufferBytes) / parts / *quarter;
  return result;
}
